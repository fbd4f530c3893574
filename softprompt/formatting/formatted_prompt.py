"""A soft prompt with its template and layout: the constant text around the virtual tokens, as token ids.

    [BOS] lead · virtual tokens · [BOS] follow · row

The BOS comes first; after the virtual tokens it comes only for prompts of tools that put these first (`interchange`).
`follow` is the template's constant opening: it is part of the prefix, computed once, and the row holds only what
varies. A text prompt is nothing but a template with a longer opening.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

from softprompt.data.template import VIRTUAL, Template, bos_ids, head
from softprompt.data.tokenizer import Tokenizer, chat_template_text
from softprompt.errors import ConfigError, WrongBaseError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import form_class


@dataclass(frozen=True)
class FormattedPrompt:
    """A soft prompt, a text prompt or none, with its template and layout: all that is needed to make token ids.

    Attributes:
        prompt: None for the base model or a text prompt.
        template: how records become rows.
        layout: the text around the virtual tokens.
        stop: strings that end an answer, for a text prompt whose examples end so: it has not learned the end token.
        chat_template: Jinja text that the soft prompt was trained with, which the model must have; "": any.
    """

    prompt: SoftPrompt | None
    template: Template
    layout: Layout
    stop: tuple[str, ...] = ()
    chat_template: str = ""

    def prefix(self, lm: FrozenLM) -> Prefix:
        """The prefix as token ids and virtual tokens.

        Raises:
            WrongBaseError: the model's chat template is not the one that the soft prompt was trained with.
        """
        check_chat_template(self.chat_template, lm.tokenizer)
        lead_ids, follow_ids = layout_ids(lm, self.layout)
        return Prefix(self.prompt, lead_ids, follow_ids)


PLACE = "{prompt}"  # of the virtual tokens in a frame


def frame_parts(frame: str) -> tuple[str, str]:
    """The words before the virtual tokens and after them. Raises ConfigError unless there is one place for these."""
    if frame.count(PLACE) != 1:
        expected = 'one {prompt}, as in "Please {prompt}."'
        raise ConfigError(
            "the frame needs one place for the virtual tokens", where="frame", expected=expected, got=frame
        )
    before, after = frame.split(PLACE)
    return before.strip(), after.strip()


def framed_layout(lm: FrozenLM, template: Template, form: str, frame: str) -> Layout:
    """The layout of a prompt whose virtual tokens stand inside a sentence, such as "Please {prompt}.".

    A prompt that is trained inside a sentence can be put into words more often (docs/study-results.md). Without a
    frame it is that of `layout_for`.

    Raises ConfigError: as `frame_parts`, for words before keys and values, and for conversations whose system turn does
    not hold the virtual tokens.
    """
    layout = layout_for(lm, template, form)
    if not frame:
        return layout
    before, after = frame_parts(frame)
    if before and form_class(form).begins_the_sequence:
        hint = "--method prompt-tuning, or a frame that begins with {prompt}"
        raise ConfigError("no words can stand before keys and values", where="frame", got=frame, hint=hint)
    if template.kind == "chat" and template.system != VIRTUAL:
        hint = "a plain template: --no-chat --template '...'"
        raise ConfigError("in a conversation the virtual tokens stand before the first turn", where="frame", hint=hint)
    apart = "" if template.kind == "chat" or not layout.follow else "\n\n"
    return layout.model_copy(update={"lead": layout.lead + before, "follow": after + apart + layout.follow})


def layout_for(lm: FrozenLM, template: Template, form: str | None) -> Layout:
    """The layout of a prompt of this form, or of no prompt for None.

    Before an embedding prompt there is BOS alone, before a KV prompt nothing; the template's constant opening follows
    after the virtual tokens. If these stand in the system turn, the opening of that turn is the lead of an embedding
    prompt and part of a KV prompt (`opening_ids`). An encoder reads BOS after a KV prompt, which may act elsewhere.
    """
    lead, follow = _around_virtual(lm, template)
    if form is not None and form_class(form).begins_the_sequence:
        return Layout(follow=follow, follow_bos=lm.is_encoder_decoder and bool(bos_ids(lm.tokenizer)))
    return Layout(bos=bool(bos_ids(lm.tokenizer)), lead=lead, follow=follow)


def opening_ids(lm: FrozenLM, template: Template) -> list[int]:
    """The ids that a KV prompt begins with: BOS, and what opens the system turn that its virtual tokens stand in."""
    lead, _ = _around_virtual(lm, template)
    return [*bos_ids(lm.tokenizer), *lm.encode(lead)]


def _around_virtual(lm: FrozenLM, template: Template) -> tuple[str, str]:
    """The head's text before the virtual tokens (empty unless they stand in the system turn) and after them."""
    parts = head(template, lm.tokenizer).rpartition(VIRTUAL)
    return parts[0], parts[2]


def layout_ids(lm: FrozenLM, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before the virtual tokens and after them: (lead_ids, follow_ids)."""
    bos = bos_ids(lm.tokenizer)
    lead_ids = (bos if layout.bos else []) + (lm.encode(layout.lead) if layout.lead else [])
    follow_ids = (bos if layout.follow_bos else []) + (lm.encode(layout.follow) if layout.follow else [])
    return tuple(lead_ids), tuple(follow_ids)


def no_prompt(lm: FrozenLM, template: Template) -> FormattedPrompt:
    """The base model with the template alone; without the system turn that virtual tokens would stand in."""
    if template.system == VIRTUAL:
        template = replace(template, system="")
    return FormattedPrompt(None, template, layout_for(lm, template, None))


def from_card(prompt: SoftPrompt, card: Card) -> FormattedPrompt:
    """A loaded soft prompt with the template and layout of its card."""
    template = Template.from_dict(card.template)
    old = not card.chat_template and card.versions.get("softprompt", "").startswith("0.1.")
    if old and template.kind == "chat":
        template = replace(template, thoughts="open")  # it was trained so
    return FormattedPrompt(prompt, template, card.layout, chat_template=card.chat_template)


def check_chat_template(own: str, tokenizer: Tokenizer) -> None:
    """Refuse a soft prompt that was trained with the chat template `own` if the model has another one.

    The text is only compared: it may come from a stranger, so it is rendered only where the user chooses it.

    Raises:
        WrongBaseError: they differ; the message shows where.
    """
    found = chat_template_text(tokenizer)
    if not own or own.strip() == found.strip():
        return
    expected, got = _difference(own.strip(), found.strip())
    raise WrongBaseError(
        "this soft prompt was trained with another chat template than the model's tokenizer has",
        expected=f"{expected!r}, as on its card",
        got=repr(got) if found else "no chat template",
        hint="--chat-template prompt (generate, chat, eval, serve) uses the soft prompt's own, model the model's",
    )


def _difference(first: str, second: str) -> tuple[str, str]:
    """Two texts around the first character that differs."""
    pairs = zip_longest(first, second)
    start = max(0, next(i for i, (one, other) in enumerate(pairs) if one != other) - 20)
    return first[start : start + 70], second[start : start + 70]
