"""How the constant text of a template is laid around the virtual tokens, as token ids.

    [BOS] lead · virtual tokens · [BOS] follow · row

The BOS stands in front; behind the virtual tokens only for prompts of tools that put these first (`interchange`).
`follow` is the template's constant opening: it is part of the prefix, computed once, and the row holds only what
varies. A text prompt is nothing but a template with a longer opening.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from softprompt.data.records import Message, Record
from softprompt.data.targets import end_id, joined
from softprompt.data.template import VIRTUAL, Template, bos_ids, default_text, fill, head
from softprompt.data.tokenizer import writes_system_turn
from softprompt.errors import DataError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import Prompt

APART = "\n\n"  # between instruction, examples and row of a text prompt


@dataclass(frozen=True)
class Subject:
    """Something to evaluate or talk to: a prompt (or none) in its frame.

    Attributes:
        prompt: None for the base model or a text prompt.
        template: how records become rows.
        layout: what stands around the virtual tokens.
        stop: strings that end an answer, for a text prompt whose examples end so: it has not learned the end token.
    """

    prompt: Prompt | None
    template: Template
    layout: Layout
    stop: tuple[str, ...] = ()

    def prefix(self, lm: FrozenLM) -> Prefix:
        """The prefix as token ids and virtual tokens."""
        lead, follow = layout_ids(lm, self.layout)
        return Prefix(self.prompt, lead, follow)


def layout_for(lm: FrozenLM, template: Template, form: str) -> Layout:
    """The layout of a prompt of this form: BOS and nothing else in front of an embedding prompt (or of no prompt),
    nothing in front of a KV prompt, the template's constant opening behind. If virtual tokens stand in the system turn,
    what opens it is the lead of an embedding prompt, and part of a KV prompt (`opening_ids`)."""
    lead, _, follow = head(template, lm.tokenizer).rpartition(VIRTUAL)
    return Layout(bos=form != "kv" and bool(bos_ids(lm.tokenizer)), lead="" if form == "kv" else lead, follow=follow)


def opening_ids(lm: FrozenLM, template: Template) -> list[int]:
    """The ids that a KV prompt begins with: BOS, and what opens the system turn that its virtual tokens stand in."""
    lead, _, _ = head(template, lm.tokenizer).rpartition(VIRTUAL)
    return [*bos_ids(lm.tokenizer), *lm.encode(lead)]


def layout_ids(lm: FrozenLM, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids in front of the virtual tokens and behind them."""
    lead = (bos_ids(lm.tokenizer) if layout.bos else []) + (lm.encode(layout.lead) if layout.lead else [])
    follow = (bos_ids(lm.tokenizer) if layout.follow_bos else []) + (lm.encode(layout.follow) if layout.follow else [])
    return tuple(lead), tuple(follow)


def base_subject(lm: FrozenLM, template: Template) -> Subject:
    """The base model with the template alone; without the system turn that virtual tokens would stand in."""
    if template.system == VIRTUAL:
        template = replace(template, system="")
    return Subject(None, template, layout_for(lm, template, "none"))


def card_subject(prompt: Prompt, card: Card) -> Subject:
    """A loaded soft prompt in the frame its card gives."""
    return Subject(prompt, Template.from_dict(card.template), card.layout)


def text_subject(lm: FrozenLM, template: Template, instruction: str, shots: Sequence[Record] = ()) -> Subject:
    """A text prompt: an instruction and worked examples in front of the same template.

    In chat the instruction is the system turn and the examples open the user's turn; a model whose chat template
    has no system turn (Gemma 2) gets the instruction there too.
    """
    examples = "".join(worked_example(template, shot) + APART for shot in shots if not shot.messages)
    opening = instruction.strip() + APART if instruction.strip() else ""
    if template.kind != "chat":
        template = replace(template, text=_escape(opening + examples) + template.text)
    elif template.text and opening and not writes_system_turn(lm.tokenizer):
        template = Template("chat", _escape(opening + examples) + template.text)
    else:
        template = Template("chat", _escape(examples) + template.text if template.text else "", instruction)
    stop = (APART,) if examples and template.kind == "text" else ()
    return replace(base_subject(lm, template), stop=stop)


def worked_example(template: Template, record: Record) -> str:
    """A row with its answer, as text."""
    apart = "\n" if template.kind == "chat" else ""  # there the answer is a turn of its own, which nothing joins
    return fill(template, record) + apart + joined(record.target or "", template)


def as_turns(row: Record, template: Template) -> Record:
    """A row for a template of conversations: its text is the user's turn, its answer stays for comparison."""
    if row.kind == "messages" or template.kind != "chat" or template.text:
        return row
    words = fill(Template("text", default_text(row)), row)
    target = (Message("assistant", row.target),) if row.target is not None else ()
    return replace(row, kind="messages", messages=(Message("user", words), *target))


def end_ids(lm: FrozenLM, template: Template) -> list[int]:
    """Every token that ends an answer: the template's own, and those of the model's generation config."""
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({end_id(template, lm.tokenizer), *(i for i in configured if isinstance(i, int))})


def check_context(lm: FrozenLM, rows: Iterable[tuple[str, int, int]], hint: str) -> None:
    """Refuse rows that are too long before time is spent on any.

    Args:
        rows: for each row where it is, its own tokens, and the tokens around it (prefix, answer).

    Raises DataError naming the longest row if it does not fit in the model's context.
    """
    where, own, around = max(rows, key=lambda row: row[1] + row[2])
    if own + around > lm.geometry.max_positions:
        raise DataError(
            "the longest row does not fit in the model's context with the prompt and the answer around it",
            where=where,
            expected=f"together <= {lm.geometry.max_positions} tokens",
            got=f"{own} + {around}",
            hint=hint,
        )


def check_records(lm: FrozenLM, records: Sequence[Record], bodies: Sequence[Sequence[int]], around: int) -> None:
    """`check_context` for records whose texts are these token ids, with `around` tokens around each."""
    rows = [(record.where, len(body), around) for record, body in zip(records, bodies, strict=True)]
    check_context(lm, rows, "leave the row out, ask for fewer new tokens, or give the text prompt fewer --shots")


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
