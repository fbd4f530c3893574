"""Instructions: a prompt with its completion, under two pairs of names, or as lists of messages.

{"prompt": "Name a color.", "completion": "Blue"}
{"input": "Name a color.", "target": "Blue"}
{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello!"}]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import RowFields, RowShape
from softprompt.data.row_shapes.conversations import CONVERSATIONS

__all__ = ["INPUT_TARGET", "PROMPT_COMPLETION", "CompletionShape"]


@final
@dataclass(frozen=True)
class CompletionShape(RowShape):
    """A prompt with its completion. Templates may call the prompt {prompt} or {input}."""

    source: tuple[str, ...]
    target: str | None
    example: str
    kind = "completion"
    description = "prompts with completions"

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Message lists become a conversation of which the completion alone is learned."""
        if self.source == ("prompt",) and isinstance(row.get("prompt"), list):
            return CONVERSATIONS.parse_lists(row, where, "prompt", "completion", require_target=require_target)
        prompt = self.string(row, self.source[0], where)
        target = self.parse_target(row, where, require_target=require_target)
        if {"prompt", "input"} <= row.keys():
            raise self.error(where, "the row has both 'prompt' and 'input', which mean the same")
        fields = {"prompt": prompt, "input": prompt, **self.other_strings(row)}
        return Record(fields, target, self.kind, references=self.references(row, target, where), where=where)

    def default_text(self, record: Record) -> str:
        """The prompt alone."""
        return "{prompt}"


PROMPT_COMPLETION = CompletionShape(("prompt",), "completion", '{"prompt": "Name a color.", "completion": "Blue"}')
INPUT_TARGET = CompletionShape(("input",), "target", '{"input": "Name a color.", "target": "Blue"}')
