"""Soft prompts of which it is known what they do, on rows of a tiny model."""

from __future__ import annotations

from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.inspection.effect import PromptEffect
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from tests.support.tiny import tiny_lm

ROWS = [
    Record({"text": text}, answer, "completion", where=text)
    for text, answer in (("one two", "three"), ("red", "green blue"), ("cold winter", "warm"))
]


def formatted_of(lm: FrozenLM, prompt: SoftPrompt) -> FormattedPrompt:
    template = Template("text", "Q: {text}\nA:")
    return FormattedPrompt(prompt, template, layout_for(lm, template, prompt.form))


def effect_of(prompt: SoftPrompt, lm: FrozenLM | None = None) -> PromptEffect:
    lm = lm or tiny_lm()
    return PromptEffect(lm, formatted_of(lm, prompt), ROWS)
