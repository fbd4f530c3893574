"""Few-shot rows as token ids, to initialize virtual tokens from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.sampler import permutation
from softprompt.data.targets import end_id, without_written_ends
from softprompt.data.template import Template, conversation_text, fill
from softprompt.errors import ConfigError
from softprompt.formatting.text_prompt import APART, instruction_for, worked_example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.prepare import PreparedTask

FULL = 0.9  # demonstrations that fill so much of the room are enough: no search for one that still fits


@dataclass(frozen=True)
class Demonstrations:
    """Worked examples as token ids.

    Attributes:
        ids: an opening and all of them.
        spans: first and last position of each one in `ids`, by the `where` of its row.
    """

    ids: tuple[int, ...]
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class _Demonstration:
    """One worked example as token ids; of a conversation its text and its turns, too."""

    ids: list[int]
    text: str = ""
    turns: Sequence[Message] = ()


def demonstrations(task: PreparedTask, lm: FrozenLM, opening: str | None, room: int, seed: int) -> Demonstrations:
    """As many worked examples as fit in `room` tokens, drawn by seed, every label in turn.

    Args:
        opening: the text before them; by default the instruction, if there is one.

    Raises ConfigError if not one fits.
    """
    opening = opening or (instruction_for(task.classes) if task.classes else "")
    ids = lm.encode(opening + APART) if opening else []
    spans: dict[str, tuple[int, int]] = {}
    before, turns = "", list[Message]()
    for record in in_turn(without_written_ends(task.splits.train, task.template, lm.tokenizer), seed):
        shot = _written(task.template, record, turns, before, lm)
        if len(ids) + len(shot.ids) > room:
            if len(spans) >= 1 and len(ids) > room * FULL:
                break
            continue
        spans[record.where] = (len(ids), len(ids) + len(shot.ids))
        ids += shot.ids
        turns, before = [*turns, *shot.turns], before + shot.text
    if not spans:
        raise ConfigError(
            "not one demonstration fits",
            where="method",
            got=f"{room} tokens",
            hint="more --n-tokens (with --init selected: --method.text-tokens), or another --init",
        )
    return Demonstrations(tuple(ids), spans)


def in_turn(records: Sequence[Record], seed: int) -> list[Record]:
    """The records in an order drawn by seed in which the labels take turns."""
    order = permutation(len(records), seed).tolist()
    if not shape_of(records[0]).has_classes:
        return [records[i] for i in order]
    turn: dict[str | None, int] = {}
    place: dict[int, int] = {}
    for i in order:
        place[i] = turn[records[i].target] = turn.get(records[i].target, 0) + 1
    return [records[i] for i in sorted(order, key=place.__getitem__)]


def _written(template: Template, record: Record, turns: Sequence[Message], before: str, lm: FrozenLM) -> _Demonstration:
    """One more demonstration after those before it.

    An answer ends as in training: one that goes on with the next demonstration would teach not to end.
    """
    if template.kind == "text":
        end = end_id(template, lm.tokenizer)
        return _Demonstration([*lm.encode(worked_example(template, record)), end, *lm.encode(APART)])
    messages = list(record.messages) or [
        Message("user", fill(template, record)),
        Message("assistant", record.target or ""),
    ]
    whole = conversation_text(template, [*turns, *messages], lm.tokenizer)
    if not whole.startswith(before):  # a chat template that rewrites earlier turns: each one for itself
        whole = before + conversation_text(template, messages, lm.tokenizer)
    text = whole[len(before) :]
    return _Demonstration(lm.encode(text), text, messages)
