"""Multiple choice: a question with choices of its own, which are ranked by their log-likelihood.

{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
{"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}
{"ctx": "He opens the door and", "endings": ["walks in.", "flies away."], "label": "0"}
{"goal": "Open a jar.", "sol1": "Turn the lid.", "sol2": "Turn the table.", "label": 0}
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, Scoring, brief
from softprompt.data.row_shapes.values import as_word

__all__ = ["CHOICES", "SHAPES", "ChoicesShape"]

_LETTERS = string.ascii_uppercase


@final
@dataclass(frozen=True)
class ChoicesShape(RowShape):
    """A question with choices; the right one is learned, and all are ranked.

    Templates may call the question {prompt}, and the choices, a lettered line each, {choices}.

    Attributes:
        texts: columns that make up the question, a line each, in their order; `source` if empty. Those that are not in
            `source` may be missing or empty.
        columns: the column that lists the choices, or one column for each choice.
        first_number: the number of the first choice where the right one is given by its number.
    """

    source: tuple[str, ...]
    target: str | None
    example: str
    columns: tuple[str, ...] = ("choices",)
    title: str = ""
    texts: tuple[str, ...] = ()
    first_number: int = 0
    kind = "choices"
    description = "questions with choices"
    scoring: Scoring = "choices"

    @property
    def fields(self) -> tuple[str, ...]:
        """The question, the choices, the answer."""
        return (*self.source, *self.columns, *([self.target] if self.target else []))

    def match(self, row: RowFields) -> Match:
        """The choices must be there; one column of them must hold a list or an object."""
        fits = all(name in row for name in (*self.source, *self.columns))
        if not fits or (len(self.columns) == 1 and not isinstance(row[self.columns[0]], list | dict)):
            return Match.NO
        return Match.COMPLETE if self.target in row else Match.INCOMPLETE

    def reads(self, row: RowFields) -> frozenset[str]:
        """The optional parts of the question, too."""
        return super().reads(row) | frozenset(name for name in self.texts if row.get(name) is not None)

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """The right choice as the target, all of them beside it."""
        names, choices = self._choices(row, where)
        letters = names or list(_LETTERS[: len(choices)])
        parts: dict[str, str] = {}
        for name in self.texts or self.source:
            if name in self.source or row.get(name):
                parts[name] = self.string(row, name, where)
            elif name in first:
                parts[name] = ""
        lines = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, choices, strict=True))
        others = self.other_strings(row, (*self.texts, "choices"))
        fields = others | {"prompt": "\n".join(filter(None, parts.values()))} | parts | {"choices": lines}
        answer = row.get(str(self.target))
        if not require_target and answer in (None, "", -1, "-1"):
            return Record(fields, None, self.kind, where=where, choices=tuple(choices))
        target = choices[self._right(answer, names, choices, where)]
        return Record(fields, target, self.kind, references=(target,), where=where, choices=tuple(choices))

    def default_text(self, record: Record) -> str:
        """The question alone: the choices are ranked, not shown."""
        return "{prompt}"

    def write(self, record: Record) -> dict[str, object]:
        """The question whole, the list of choices, and the number of the right one."""
        row: dict[str, object] = {"question": record.fields["prompt"], "choices": list(record.choices)}
        if record.target is not None:
            row["answer"] = record.choices.index(record.target)
        left_out = {*row, *self.fields, "prompt"}
        return row | {name: text for name, text in record.fields.items() if name not in left_out}

    def _choices(self, row: RowFields, where: str) -> tuple[list[str], list[str]]:
        """Name and text of every choice."""
        listed = row.get(self.columns[0]) if len(self.columns) == 1 else [row.get(name) for name in self.columns]
        names, texts = _named(listed)
        if not 2 <= len(texts) <= len(_LETTERS):
            name = self.columns[0]
            raise self.error(where, f"field {name!r} must hold 2 to {len(_LETTERS)} choices", got=brief(listed))
        choices = [self.text(as_word(text), f"choice {i + 1}", where) for i, text in enumerate(texts)]
        if len(set(choices)) < len(choices):
            raise self.error(where, "two choices are the same", got=brief(choices))
        return names, choices

    def _right(self, answer: object, names: Sequence[str], choices: Sequence[str], where: str) -> int:
        """The place of the right choice, given by its name, number or text. Raises DataError if that is unclear."""
        numbers = [str(self.first_number + i) for i in range(len(choices))]
        word, letters = as_word(answer), list(_LETTERS[: len(choices)])
        ways: Sequence[Sequence[str]] = [names] if word in names else [choices, letters, numbers]
        if not isinstance(answer, str) and word not in names:
            ways = [numbers] if word in numbers else [choices]
        found = {way.index(str(word)) for way in ways if word in way}
        if len(found) == 1:
            return found.pop()
        if word is None:
            hint = "--columns answer=COLUMN names the column that it is in"
            raise self.error(where, f"field {self.target!r} is missing", hint=hint)
        what = f"field {self.target!r} names {'two choices' if found else 'none of the choices'}"
        known = names or letters
        hint = f"{known[0]} to {known[-1]}, the number {numbers[0]} to {numbers[-1]}, or the text of a choice"
        raise self.error(where, what, got=brief(answer), hint=hint)


def _named(listed: object) -> tuple[list[str], list[object]]:
    """Names and texts of choices: of a list of texts or of objects, an object of lists, or one of texts by name."""
    if isinstance(listed, Mapping):
        choices = cast(Mapping[str, object], listed)
        texts, labels = choices.get("text"), choices.get("label")
        if isinstance(texts, list):
            names = [str(label) for label in cast(list[object], labels)] if isinstance(labels, list) else []
            return (names if len(names) == len(cast(list[object], texts)) else []), cast(list[object], texts)
        return list(choices), list(choices.values())
    if not isinstance(listed, list):
        return [], []
    items = cast(list[object], listed)
    if items and all(isinstance(item, Mapping) and {"text", "label"} <= item.keys() for item in items):
        turns = cast(list[Mapping[str, object]], items)
        return [str(item["label"]) for item in turns], [item["text"] for item in turns]
    return [], items


def _listed(source: str, target: str, columns: str = "choices", title: str = "", *texts: str) -> ChoicesShape:
    """A shape with one column of choices."""
    example = f'{{"{source}": "2 + 2?", "{columns}": ["3", "4"], "{target}": 1}}'
    return ChoicesShape((source,), target, example, (columns,), title, (*texts, source) if texts else ())


CHOICES = _listed("question", "answer", "choices", "", "context", "passage", "article")

SHAPES = (
    CHOICES,
    ChoicesShape(
        ("question",),
        "answerKey",
        '{"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}',
        title="ARC",
    ),
    _listed("question_stem", "answerKey", "choices", "OpenBookQA"),
    _listed("ctx", "label", "endings", "HellaSwag"),
    _listed("question", "answer", "options", "RACE", "article", "context", "passage"),
    _listed("question", "label", "choices", "", "context", "passage", "article"),
    _listed("input", "label"),
    _listed("input", "target"),
    _listed("prompt", "completion"),
    _listed("prompt", "answer"),
    _listed("prompt", "label"),
    _listed("text", "label"),
    ChoicesShape(
        ("goal",),
        "label",
        '{"goal": "Open a jar.", "sol1": "Turn the lid.", "sol2": "Turn the table.", "label": 0}',
        ("sol1", "sol2"),
        "PIQA",
    ),
    ChoicesShape(
        ("premise", "question"),
        "label",
        '{"premise": "It rained.", "question": "effect", "choice1": "The street is wet.", "choice2": "It is hot.", '
        '"label": 0}',
        ("choice1", "choice2"),
        "COPA",
    ),
    ChoicesShape(
        ("context", "question"),
        "label",
        '{"context": "Ann fell.", "question": "How does she feel?", "answerA": "hurt", "answerB": "rich", '
        '"answerC": "tall", "label": "1"}',
        ("answerA", "answerB", "answerC"),
        "Social IQa",
        first_number=1,
    ),
    ChoicesShape(
        ("sentence",),
        "answer",
        '{"sentence": "The cup does not fit, because the _ is large.", "option1": "cup", "option2": "box", '
        '"answer": "1"}',
        ("option1", "option2"),
        "WinoGrande",
        first_number=1,
    ),
)
