"""The text that follows an exported soft prompt's prefix, for engines that know nothing of templates."""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.data.template import USER, body
from softprompt.export.base import ExportSource
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import text_to_record
from softprompt.models.frozen_lm import FrozenLM


@dataclass(frozen=True)
class RowText:
    """The constant text around an input.

    Attributes:
        before: directly before the input, often whitespace: the template's opening is part of the prefix.
        after: between the input and the answer.
    """

    before: str
    after: str

    def around(self, text: str) -> str:
        """The whole text of a row with this input."""
        return self.before + text + self.after


def row_text(source: ExportSource) -> RowText | None:
    """The text around the input of a soft prompt's rows; None for a template with several fields."""
    return text_around_input(source.formatted, source.lm)


def text_around_input(formatted: FormattedPrompt, lm: FrozenLM) -> RowText | None:
    """As `row_text`, of a formatted prompt."""
    if len(formatted.template.names) > 1:
        return None
    text = body(text_to_record(USER, formatted, "text"), formatted.template, lm.tokenizer)
    parts = text.split(USER)
    return RowText(parts[0], parts[1]) if len(parts) == 2 else None
