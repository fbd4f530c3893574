"""A soft prompt of a tiny model, as `softprompt export` gets it."""

from __future__ import annotations

from softprompt.data.template import Template
from softprompt.export.base import ExportOptions, ExportSource
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.card import Card
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm


def source_of(
    lm: FrozenLM | None = None,
    form: str = "embedding",
    n_tokens: int = 3,
    *,
    text: str = "Q: {text}\nA:",
    options: ExportOptions | None = None,
) -> ExportSource:
    """A random prompt with a template of plain text."""
    lm = lm or tiny_lm("llama", bos=True)
    prompt = random_prompt(lm, form, n_tokens, 5)
    template = Template("text", text)
    card = Card.draft(
        "tone",
        prompt,
        lm.geometry,
        layout=layout_for(lm, template, form),
        template=template.to_dict(),
        method={"name": "prompt-tuning"},
    )
    return ExportSource(prompt, card, lambda: lm, options or ExportOptions())
