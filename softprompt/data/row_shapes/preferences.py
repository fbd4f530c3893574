"""Preferences: a prompt with a chosen and a rejected answer.

{"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}
{"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}
{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

The next-token objective learns the chosen answers alone. With `ReadOptions.pairs` a record carries the rejected answer,
too, as a record of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, brief
from softprompt.data.row_shapes.completions import PROMPT_COMPLETION
from softprompt.data.row_shapes.conversations import CONVERSATIONS
from softprompt.errors import DataError

__all__ = ["SHAPES", "OpenAIPreferenceShape", "PreferenceShape"]

_PREFERRED = "preferred_output"
REMARK = "the chosen answers are learned; only the objective dpo uses the rejected ones"


@final
@dataclass(frozen=True)
class PreferenceShape(RowShape):
    """A prompt with a chosen and a rejected answer; without the prompt, the text that both begin with is the prompt."""

    source: tuple[str, ...]
    example: str
    target = "chosen"
    title = "preferences"
    kind = "completion"
    description = "prompts with chosen and rejected answers"
    optional = ("rejected", "system")
    remark = REMARK

    def match(self, row: RowFields) -> Match:
        """Both answers must be there."""
        fits = all(name in row for name in (*self.source, "chosen", "rejected"))
        return Match.COMPLETE if fits else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Answers that are lists of messages become conversations."""
        chosen, prompt = row.get("chosen"), row.get("prompt")
        if isinstance(chosen, list) or isinstance(prompt, list):
            return self._conversation(row, where, require_target)
        if not self.source:
            prompt, chosen = self._split(row, where)
        elif chosen is None and require_target:
            raise self.error(where, "field 'chosen' is missing", got=f"fields {', '.join(sorted(map(str, row)))}")
        others = {key: value for key, value in row.items() if key not in ("rejected", "chosen", "prompt")}
        own = others | {"prompt": prompt, "completion": chosen}
        return PROMPT_COMPLETION.parse(own, where, first=own, require_target=require_target)

    def rejected(self, row: RowFields, where: str) -> Record:
        """Chosen and rejected answer must be of one kind."""
        if not isinstance(row.get("rejected"), list):
            self.string(row, "rejected", where)
        if isinstance(row.get("chosen"), list) != isinstance(row["rejected"], list):
            got = f"chosen {brief(row.get('chosen'))}, rejected {brief(row['rejected'])}"
            raise self.error(where, "both answers must be texts, or both must be lists of messages", got=got)
        swapped = {**row, "chosen": row["rejected"], "rejected": row.get("chosen")}
        try:
            return self.parse(swapped, where, first=swapped)
        except DataError as error:
            raise self.error(where, f"the rejected answer: {error.what}", got=error.got, hint=error.hint) from error

    def _conversation(self, row: RowFields, where: str, require_target: bool) -> Record:
        """The prompt's turns, if there are any, and the chosen ones."""
        chosen: object = row.get("chosen")
        turns = cast(list[object], chosen) if isinstance(chosen, list) else list[object]()
        prompt: object = row.get("prompt")
        if isinstance(prompt, str):  # beside whole conversations it only repeats their first turn
            asked: list[object] = [{"role": "user", "content": self.text(prompt, "field 'prompt'", where)}]
            prompt = asked if len(turns) == 1 else None
        if prompt is None:
            own: dict[str, object] = {"messages": chosen, "tools": row.get("tools")}
            return CONVERSATIONS.parse(own, where, first=own, require_target=require_target)
        if isinstance(chosen, str):
            turns = [{"role": "assistant", "content": chosen}]
        own = {"prompt": prompt, "completion": turns or chosen, "tools": row.get("tools")}
        return CONVERSATIONS.parse_lists(own, where, "prompt", "completion", require_target=require_target)

    def _split(self, row: RowFields, where: str) -> tuple[str, str]:
        """The text that both answers begin with, up to the end of its last line, and the rest of the chosen one."""
        chosen, rejected = (self.string(row, name, where) for name in ("chosen", "rejected"))
        differ = (i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
        shared = chosen[: next(differ, min(len(chosen), len(rejected)))]
        cut = max((shared.rfind(mark) + len(mark) for mark in ("Assistant:", "\n") if mark in shared), default=0)
        prompt, answer = chosen[:cut], chosen[cut:]
        if not prompt.strip() or not answer.strip():
            hint = "write what both answer into a field 'prompt'"
            raise self.error(
                where, "the answers begin with no text that could be the prompt", got=brief(chosen), hint=hint
            )
        return prompt.rstrip(" "), answer.strip(" ")

    def default_text(self, record: Record) -> str:
        """The prompt alone."""
        return PROMPT_COMPLETION.default_text(record)


@final
@dataclass(frozen=True)
class OpenAIPreferenceShape(RowShape):
    """A preference as OpenAI's fine-tuning API takes it: the conversation, the preferred turn and the other one."""

    source = ("input",)
    target = _PREFERRED
    title = "OpenAI preferences"
    kind = "messages"
    description = "conversations with preferred and other answers"
    optional = ("non_preferred_output",)
    remark = REMARK
    example = (
        '{"input": {"messages": [{"role": "user", "content": "Hi"}]}, "preferred_output": [{"role": "assistant", '
        '"content": "Hello!"}], "non_preferred_output": [{"role": "assistant", "content": "What?"}]}'
    )

    def match(self, row: RowFields) -> Match:
        """Input and both answers must be there."""
        named = ("input", "preferred_output", "non_preferred_output")
        return Match.COMPLETE if all(name in row for name in named) else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """A conversation of which the preferred turns are learned."""
        own = self._with_prompt(row, where)
        return _PROMPTED.parse(own, where, first=own, require_target=require_target)

    def rejected(self, row: RowFields, where: str) -> Record | None:
        """The same conversation with the other turns."""
        return _PROMPTED.rejected(self._with_prompt(row, where), where)

    def _with_prompt(self, row: RowFields, where: str) -> RowFields:
        """The row under the names of `PreferenceShape`."""
        given: object = row.get("input")
        if not isinstance(given, Mapping) or not isinstance(row.get(_PREFERRED), list):
            wrong = "input" if not isinstance(given, Mapping) else _PREFERRED
            raise self.error(where, f"field {wrong!r} has another type", got=brief(row.get(wrong)))
        asked = cast(Mapping[str, object], given)
        names = {"chosen": _PREFERRED, "rejected": "non_preferred_output"}
        answers = {ours: row[theirs] for ours, theirs in names.items() if theirs in row}
        return {"prompt": asked.get("messages"), "tools": asked.get("tools"), **answers}


_TEXT = "Human: Name a color. Assistant:"
_PROMPTED = PreferenceShape(("prompt",), '{"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}')

SHAPES = (
    _PROMPTED,
    PreferenceShape((), f'{{"chosen": "{_TEXT} Blue", "rejected": "{_TEXT} Dog"}}'),
    OpenAIPreferenceShape(),
)
