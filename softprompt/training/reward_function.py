"""Calls a reward function that the user wrote, as TRL calls its own.

    def polite(prompts, completions, rows):        # of each answer: its prompt, its text, its row
        return [float("please" in text) for text in completions]

Parameters are passed by name: `prompts`, `completions`, `rows`, and each column of the rows as a list; with `**kwargs`
all of them. Of conversations prompts are lists of messages, and completions are lists with the assistant's message.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsFloat, cast

from softprompt.data.convert import own_row
from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.conversations import turn_fields
from softprompt.data.template import Template, fill
from softprompt.errors import TrainError
from softprompt.user_function import load_user_function

_EXPECTED = "FILE.py:function, a function of (prompts, completions, rows) that returns a list of numbers"
_ANSWER_COLUMNS = ("prompt", "completion", "completions", "prompts", "rows")


class RewardFunction:
    """A function of the user's, loaded from the place that the command line names.

    Raises ConfigError for a function that cannot be loaded; a call raises TrainError where it fails, or returns no list
    of finite numbers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = load_user_function(name, "reward", _EXPECTED)
        parameters = inspect.signature(self._function).parameters.values()
        self._takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._required = {p.name for p in parameters if p.kind in named and p.default is p.empty}
        self._optional = {p.name for p in parameters if p.kind in named} - self._required

    @property
    def label(self) -> str:
        """Its name without folders, for cards."""
        return f"{Path(self.name.rpartition(':')[0]).name}:{self.name.rpartition(':')[2]}"

    @property
    def sha256(self) -> str:
        """The digest of its file, for cards; "" of an installed module."""
        place = Path(self.name.rpartition(":")[0])
        return hashlib.sha256(place.read_bytes()).hexdigest() if place.suffix == ".py" else ""

    def __call__(self, rows: Sequence[tuple[Record, Template]], answers: Sequence[str]) -> list[float]:
        """The reward of each answer.

        Args:
            rows: of each answer its row and template.
            answers: texts.
        """
        arguments = self._arguments(rows, answers)
        try:
            returned = self._function(**arguments)
        except Exception as error:  # a user's own code may raise anything
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            got = f"{type(error).__name__}: {error} (line {line})"
            raise TrainError("the reward failed", where=self.name, expected="a list of numbers", got=got) from error
        return self._checked(returned, answers)

    def _arguments(self, rows: Sequence[tuple[Record, Template]], answers: Sequence[str]) -> dict[str, object]:
        """What the function takes, by name."""
        sources = [_source(record) for record, _ in rows]
        columns = {name: None for source in sources for name in source if name not in _ANSWER_COLUMNS}
        given: dict[str, object] = {name: [source.get(name) for source in sources] for name in columns}
        given |= {
            "prompts": [_prompt(record, template) for record, template in rows],
            "completions": [
                [{"role": "assistant", "content": answer}] if record.is_conversation else answer
                for (record, _), answer in zip(rows, answers, strict=True)
            ],
            "rows": sources,
        }
        if missing := sorted(self._required - given.keys()):
            what = f"the reward takes {', '.join(missing)}, which the rows do not have"
            raise TrainError(what, where=self.name, expected=", ".join(given), hint="prompts, completions, rows")
        wanted = self._required | self._optional
        return {name: value for name, value in given.items() if self._takes_all or name in wanted}

    def _checked(self, returned: object, answers: Sequence[str]) -> list[float]:
        values = list(cast("Iterable[object]", returned)) if isinstance(returned, Iterable) else None
        if values is None or len(values) != len(answers):
            got = type(returned).__name__ if values is None else f"{len(values)} numbers"
            expected = f"a list of {len(answers)} numbers, one for each answer"
            raise TrainError("the reward returns another number of values", where=self.name, expected=expected, got=got)
        try:
            numbers = [float(cast(SupportsFloat, value)) for value in values]
        except (TypeError, ValueError) as error:
            raise TrainError("the reward is no number", where=self.name, got=f"{error}") from error
        for number, answer in zip(numbers, answers, strict=True):
            if not math.isfinite(number):
                raise TrainError("the reward is not a finite number", where=self.name, got=f"{number} for {answer!r}")
        return numbers


def _source(record: Record) -> Mapping[str, object]:
    """The row as it was read."""
    return own_row(record) if record.source is None else record.source


def _prompt(record: Record, template: Template) -> object:
    """The prompt as the row has it: text, or messages."""
    if not record.is_conversation:
        return record.fields.get("prompt") or fill(template, record)
    turns: Sequence[Message] = record.messages
    return [turn_fields(turn) for turn in (turns if record.target is None else turns[:-1])]
