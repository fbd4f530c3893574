"""How the constant text of a template is laid around the virtual tokens, as token ids.

    [BOS] lead · virtual tokens · [BOS] follow · row

The BOS stands in front; behind the virtual tokens only for prompts of tools that put these first (`interchange`).
`follow` is the template's constant opening: it is part of the prefix, computed once, and the row holds only what
varies. A text prompt is nothing but a template with a longer opening.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from softprompt.data.template import VIRTUAL, Template, bos_ids, head
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import form_class


@dataclass(frozen=True)
class FormattedPrompt:
    """Something to evaluate or talk to: a prompt (or none) in its frame.

    Attributes:
        prompt: None for the base model or a text prompt.
        template: how records become rows.
        layout: what stands around the virtual tokens.
        stop: strings that end an answer, for a text prompt whose examples end so: it has not learned the end token.
    """

    prompt: SoftPrompt | None
    template: Template
    layout: Layout
    stop: tuple[str, ...] = ()

    def prefix(self, lm: FrozenLM) -> Prefix:
        """The prefix as token ids and virtual tokens."""
        lead, follow = layout_ids(lm, self.layout)
        return Prefix(self.prompt, lead, follow)


def layout_for(lm: FrozenLM, template: Template, form: str | None) -> Layout:
    """The layout of a prompt of this form, or of no prompt for None.

    Before an embedding prompt there is BOS alone, before a KV prompt nothing; the template's constant opening follows
    after the virtual tokens. If these stand in the system turn, the opening of that turn is the lead of an embedding
    prompt and part of a KV prompt (`opening_ids`).
    """
    lead, _, follow = head(template, lm.tokenizer).rpartition(VIRTUAL)
    if form is not None and form_class(form).begins_the_sequence:
        return Layout(follow=follow)
    return Layout(bos=bool(bos_ids(lm.tokenizer)), lead=lead, follow=follow)


def opening_ids(lm: FrozenLM, template: Template) -> list[int]:
    """The ids that a KV prompt begins with: BOS, and what opens the system turn that its virtual tokens stand in."""
    lead, _, _ = head(template, lm.tokenizer).rpartition(VIRTUAL)
    return [*bos_ids(lm.tokenizer), *lm.encode(lead)]


def layout_ids(lm: FrozenLM, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids in front of the virtual tokens and behind them."""
    lead = (bos_ids(lm.tokenizer) if layout.bos else []) + (lm.encode(layout.lead) if layout.lead else [])
    follow = (bos_ids(lm.tokenizer) if layout.follow_bos else []) + (lm.encode(layout.follow) if layout.follow else [])
    return tuple(lead), tuple(follow)


def no_prompt(lm: FrozenLM, template: Template) -> FormattedPrompt:
    """The base model with the template alone; without the system turn that virtual tokens would stand in."""
    if template.system == VIRTUAL:
        template = replace(template, system="")
    return FormattedPrompt(None, template, layout_for(lm, template, None))


def from_card(prompt: SoftPrompt, card: Card) -> FormattedPrompt:
    """A loaded soft prompt in the frame its card gives."""
    return FormattedPrompt(prompt, Template.from_dict(card.template), card.layout)
