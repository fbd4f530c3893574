"""Preferences: a chosen and a rejected answer, of which the chosen one is learned.

{"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}
{"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, brief
from softprompt.data.row_shapes.completions import PROMPT_COMPLETION
from softprompt.data.row_shapes.conversations import CONVERSATIONS

__all__ = ["SHAPES", "PreferenceShape"]


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
    remark = "the chosen answers are learned; the rejected ones are not used"

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

    def _conversation(self, row: RowFields, where: str, require_target: bool) -> Record:
        """The prompt's turns, if there are any, and the chosen ones."""
        chosen: object = row.get("chosen")
        turns = cast(list[object], chosen) if isinstance(chosen, list) else list[object]()
        prompt: object = row.get("prompt")
        if isinstance(prompt, str):  # beside whole conversations it only repeats their first turn
            asked: list[object] = [{"role": "user", "content": self.text(prompt, "field 'prompt'", where)}]
            prompt = asked if len(turns) == 1 else None
        if prompt is None:
            own: dict[str, object] = {"messages": chosen}
            return CONVERSATIONS.parse(own, where, first=own, require_target=require_target)
        if isinstance(chosen, str):
            turns = [{"role": "assistant", "content": chosen}]
        own = {"prompt": prompt, "completion": turns or chosen}
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


_TEXT = "Human: Name a color. Assistant:"

SHAPES = (
    PreferenceShape(("prompt",), '{"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}'),
    PreferenceShape((), f'{{"chosen": "{_TEXT} Blue", "rejected": "{_TEXT} Dog"}}'),
)
