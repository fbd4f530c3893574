"""Text prompts: an instruction and few-shot examples before the same template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from softprompt.data.default_template import default_text
from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.conversations import CONVERSATIONS
from softprompt.data.targets import joined, without_written_ends
from softprompt.data.template import VIRTUAL, Template, fill
from softprompt.data.tokenizer import writes_system_turn
from softprompt.formatting.formatted_prompt import FormattedPrompt, no_prompt
from softprompt.models.frozen_lm import FrozenLM


def instruction_for(labels: Sequence[str]) -> str:
    """An instruction made from the class labels."""
    return f"Classify the text. Answer with one of: {', '.join(labels)}."


APART = "\n\n"  # between instruction, examples and row of a text prompt


def text_prompt(lm: FrozenLM, template: Template, instruction: str, shots: Sequence[Record] = ()) -> FormattedPrompt:
    """A text prompt: an instruction and worked examples before the same template.

    In chat the instruction is the system turn and the examples open the user's turn; a model whose chat template
    has no system turn (Gemma 2) gets the instruction there too.
    """
    shots = without_written_ends(shots, template, lm.tokenizer) if shots else ()
    examples = "".join(worked_example(template, shot) + APART for shot in shots if not shot.messages)
    opening = instruction.strip() + APART if instruction.strip() else ""
    if template.kind != "chat" or (template.text and opening and not writes_system_turn(lm.tokenizer)):
        template = replace(template, text=_escape(opening + examples) + template.text)
    else:
        text = _escape(examples) + template.text if template.text else ""
        kept = "" if template.system == VIRTUAL else template.system
        system = APART.join(filter(None, (kept, instruction.strip())))
        template = replace(template, text=text, system=system)
    stop = (APART,) if examples and template.kind == "text" else ()
    return replace(no_prompt(lm, template), stop=stop)


def worked_example(template: Template, record: Record) -> str:
    """A row with its answer, as text."""
    apart = "\n" if template.kind == "chat" else ""  # there the answer is a turn of its own, which nothing joins
    return fill(template, record) + apart + joined(record.target or "", template)


def as_turns(row: Record, template: Template) -> Record:
    """A row for a template of conversations: its text is the user's turn, its answer stays for comparison."""
    if row.is_conversation or template.kind != "chat" or template.text:
        return row
    words = fill(Template("text", default_text(row)), row)
    target = (Message("assistant", row.target),) if row.target is not None else ()
    return replace(row, kind=CONVERSATIONS.kind, messages=(Message("user", words), *target))


def without_shared_system(row: Record, template: Template) -> Record:
    """A conversation without the system turn that the template adds, so that a text prompt's instruction joins it."""
    turns, shared = row.messages, template.system
    if not turns or shared in ("", VIRTUAL) or turns[0].role != "system" or turns[0].content != shared:
        return row
    return replace(row, messages=Message.without_first(turns), context=max(0, row.context - 1))


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
