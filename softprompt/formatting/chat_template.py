"""Which chat template a soft prompt is used with, and with which system turn.

A card holds the text of the chat template that its soft prompt was trained with. It is only compared with the model's:
to render a text that came with a soft prompt is for the user to choose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from softprompt.data.template import VIRTUAL, Template
from softprompt.data.tokenizer import Tokenizer, chat_template_text
from softprompt.errors import ConfigError
from softprompt.formatting.formatted_prompt import FormattedPrompt, check_chat_template, layout_for
from softprompt.models.frozen_lm import FrozenLM

ChatTemplateOf = Literal["", "prompt", "model"]


def chat_template_of(choice: str) -> ChatTemplateOf:
    """A choice as typed. Raises ConfigError for any other than "prompt", "model" and none."""
    if choice in ("", "prompt", "model"):
        return choice
    what = "the choice is between the soft prompt's chat template and the model's"
    raise ConfigError(what, where="--chat-template", expected="prompt or model", got=choice)


def pinned_chat_template(template: Template, tokenizer: Tokenizer) -> str:
    """The Jinja text for the card of a soft prompt with this template; "" where no chat template is used."""
    return (template.chat_template or chat_template_text(tokenizer)) if template.kind == "chat" else ""


def use_chat_template(formatted: FormattedPrompt, of: ChatTemplateOf, lm: FrozenLM) -> FormattedPrompt:
    """The formatted prompt with its own chat template or with the model's.

    Args:
        of: whose chat template writes texts and conversations; "": there must be no difference.

    Raises:
        WrongBaseError: they differ, and `of` does not choose.
    """
    if not of or not formatted.chat_template:
        check_chat_template(formatted.chat_template, lm.tokenizer)
        return formatted
    own = formatted.chat_template if of == "prompt" else ""
    template = replace(formatted.template, chat_template=own)
    return _framed(replace(formatted, template=template, chat_template=""), lm)


def use_system(formatted: FormattedPrompt, system: str, lm: FrozenLM) -> FormattedPrompt:
    """The formatted prompt with another system turn than it was trained with, for conversations that bring none.

    Raises:
        ConfigError: its texts have no system turn, or its virtual tokens stand there.
    """
    template = formatted.template
    if template.kind != "chat":
        raise ConfigError("this soft prompt was trained on plain text, which has no system turn", where="--system")
    if template.system == VIRTUAL:
        raise ConfigError("this soft prompt stands in the system turn itself", where="--system", got=repr(system[:60]))
    return _framed(replace(formatted, template=replace(template, system=system, system_from="")), lm)


def _framed(formatted: FormattedPrompt, lm: FrozenLM) -> FormattedPrompt:
    """With the constant text around the virtual tokens as the template writes it."""
    form = formatted.prompt.form if formatted.prompt is not None else None
    made = layout_for(lm, formatted.template, form)
    return replace(formatted, layout=formatted.layout.model_copy(update={"lead": made.lead, "follow": made.follow}))
