"""Random soft prompts to export, without files."""

from __future__ import annotations

from softprompt.data.template import Template
from softprompt.export.base import ExportSource
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.state import compute_states
from softprompt.prefix.verify import verify
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from tests.support.cases import random_prompt, text_ids

TEXT = Template("text", "Text: {text}\nLabel:")


def export_source(
    lm: FrozenLM, form: str, template: Template = TEXT, *, seed: int = 0, n_tokens: int = 5
) -> ExportSource:
    """A soft prompt of random numbers; of a hybrid's state, that which a random text leaves."""
    if form == "state":
        verify(lm)
        return source_of(lm, compute_states(lm, Prefix(None, tuple(text_ids(n_tokens, seed)))), template)
    return source_of(lm, random_prompt(lm, form, n_tokens, seed), template)


def source_of(lm: FrozenLM, prompt: SoftPrompt, template: Template = TEXT) -> ExportSource:
    """This soft prompt with a card, as training leaves it."""
    layout = layout_for(lm, template, prompt.form)
    method = {"name": "random"}
    card = Card.draft("tone", prompt, lm.geometry, layout=layout, template=template.to_dict(), method=method)
    return ExportSource(prompt, card, lambda: lm)
