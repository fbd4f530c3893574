"""Rows as `softprompt data preview` shows them: the constant head, the body, and in «» what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.data.objective_rows import encode_prompts
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.targets import target_text
from softprompt.data.template import Template, fill, head
from softprompt.data.tokenize import Example, encode_rows
from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.training.objective_config import ObjectiveName

LEARNED = "bold green"  # how learned text looks

ObjectiveOption: TypeAlias = ObjectiveName | None  # that rows are for; None: whatever they fit


def encode_for(
    objective: ObjectiveOption, rows: Sequence[Record], template: Template, tokenizer: Tokenizer
) -> list[Example]:
    """The rows as token ids: prompts alone for grpo, otherwise with their answers. Raises DataError."""
    encode = encode_prompts if objective == "grpo" else encode_rows
    return encode(rows, template, tokenizer)


def shown_row(
    record: Record, template: Template, tokenizer: Tokenizer | None, objective: ObjectiveOption = None
) -> list[Text]:
    """A row, or the rows that a conversation becomes; with a tokenizer every learned token is marked."""
    if tokenizer is None:
        return [_as_text(record, template, objective)]
    return [_marked(example, template, tokenizer) for example in encode_for(objective, [record], template, tokenizer)]


def _marked(example: Example, template: Template, tokenizer: Tokenizer) -> Text:
    shown = Text(escaped(head(template, tokenizer)), style="dim")
    pending: list[int] = []
    for i, (token, learned) in enumerate(zip(example.ids, example.mask, strict=True)):
        pending.append(token)
        text = decode(pending, tokenizer)
        # Half a character decodes to U+FFFD: show it with the token that completes it.
        if text.endswith("\ufffd") and example.mask[i + 1 : i + 2] == (learned,) and len(pending) < 4:
            continue
        _append(shown, text, learned)
        pending = []
    return shown


def _as_text(record: Record, template: Template, objective: ObjectiveOption) -> Text:
    """One row without a tokenizer."""
    shown = Text()
    if record.is_conversation:
        for i, message in enumerate(record.messages):
            shown.append(f"{message.role}: ", style="dim")
            learned = message.role == "assistant" and i >= record.context and objective != "grpo"
            _append(shown, message.content, learned)
            shown.append("\n" if i + 1 < len(record.messages) else "")
    else:
        _append(shown, fill(template, record), not shape_of(record).has_answers)
        if record.target is not None and objective != "grpo":
            _append(shown, target_text(record.target, template), True)
    return shown


def _append(shown: Text, text: str, learned: bool) -> None:
    """Add text, in «» when it is learned: readable without color too."""
    shown_text = escaped(text)
    if learned:
        shown.append(f"«{shown_text.replace(chr(10), '↵')}»" + "\n" * text.count("\n"), style=LEARNED)
    else:
        shown.append(shown_text, style="not dim")
