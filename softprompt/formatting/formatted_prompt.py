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
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import Prompt


@dataclass(frozen=True)
class FormattedPrompt:
    """Something to evaluate or talk to: a prompt (or none) in its frame.

    Attributes:
        prompt: None for the base model or a text prompt.
        template: how records become rows.
        layout: what stands around the virtual tokens.
        stop: strings that end an answer, for a text prompt whose examples end so: it has not learned the end token.
    """

    prompt: Prompt | None
    template: Template
    layout: Layout
    stop: tuple[str, ...] = ()

    def prefix(self, lm: FrozenLM) -> Prefix:
        """The prefix as token ids and virtual tokens."""
        lead, follow = layout_ids(lm, self.layout)
        return Prefix(self.prompt, lead, follow)


def layout_for(lm: FrozenLM, template: Template, form: str) -> Layout:
    """The layout of a prompt of this form: BOS and nothing else in front of an embedding prompt (or of no prompt),
    nothing in front of a KV prompt, the template's constant opening behind. If virtual tokens stand in the system turn,
    what opens it is the lead of an embedding prompt, and part of a KV prompt (`opening_ids`)."""
    lead, _, follow = head(template, lm.tokenizer).rpartition(VIRTUAL)
    return Layout(bos=form != "kv" and bool(bos_ids(lm.tokenizer)), lead="" if form == "kv" else lead, follow=follow)


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
    return FormattedPrompt(None, template, layout_for(lm, template, "none"))


def from_card(prompt: Prompt, card: Card) -> FormattedPrompt:
    """A loaded soft prompt in the frame its card gives."""
    return FormattedPrompt(prompt, Template.from_dict(card.template), card.layout)
