"""A model as requests name it, the base model alone or behind a soft prompt, and how it reads what it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.data.tokenizer import has_chat_template
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt
from softprompt.formatting.inputs import chat_input_ids, text_input_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.server.error_responses import invalid


@dataclass(frozen=True)
class EncodedPrompt:
    """A text as a job takes it.

    Attributes:
        ids: token ids behind the prefix.
        end_ids: tokens that end the answer.
        text_tokens: tokens of text in prefix and ids together; virtual ones do not count.
        taken: tokens of prefix and ids together, virtual ones too.
    """

    ids: tuple[int, ...]
    end_ids: frozenset[int]
    text_tokens: int
    taken: int


class SoftPromptReader:
    """A subject with what is the same for all its texts.

    Args:
        subject: the base model or a soft prompt, in the frame that its card gives.
        digest: sha256 of the soft prompt, "" for the base model.

    Raises DataError for a template that the base model cannot use.
    """

    def __init__(self, lm: FrozenLM, formatted: FormattedPrompt, digest: str = "") -> None:
        self.formatted, self.digest = formatted, digest
        self.prefix: Prefix = formatted.prefix(lm)
        self._tokenizer = lm.tokenizer
        self.end_ids = frozenset(end_ids(lm, formatted.template))
        self._constant = len(self.prefix.lead) + len(self.prefix.follow)
        self._virtual = formatted.prompt.n_tokens if formatted.prompt is not None else 0

    def text(self, text: str, where: str) -> EncodedPrompt:
        """One text through the template. Raises DataError."""
        return self._behind(text_input_ids(text, self.formatted, self._tokenizer, where))

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt:
        """A conversation, up to where the assistant begins. Raises DataError."""
        return self._behind(chat_input_ids(messages, self.formatted, self._tokenizer))

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt:
        """Raises ProblemError: a soft prompt has learned behind its template."""
        raise invalid("A soft prompt reads texts through its template, not token ids.", "prompt")

    def _behind(self, ids: Sequence[int]) -> EncodedPrompt:
        text = self._constant + len(ids)
        return EncodedPrompt(self._whole(ids), self.end_ids, text, self._virtual + text)

    def _whole(self, ids: Sequence[int]) -> tuple[int, ...]:
        """What the job gets: the engine knows the prefix of a soft prompt, and of the base model there is none."""
        if self.formatted.prompt is not None:
            return tuple(ids)
        return (*self.prefix.lead, *self.prefix.follow, *ids)


class PromptReader(Protocol):
    """A model that reads texts."""

    def text(self, text: str, where: str) -> EncodedPrompt: ...

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt: ...

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt: ...


def load_reader(lm: FrozenLM, path: Path) -> SoftPromptReader:
    """The soft prompt of a folder, checked. Raises StoreError, WrongBaseError, DataError."""
    prompt, card = store.load(path, lm.geometry)
    return SoftPromptReader(lm, from_card(prompt, card), card.sha256)


class BaseModelReader:
    """The base model alone: texts as they are, conversations by its chat template."""

    digest = ""

    def __init__(self, lm: FrozenLM) -> None:
        self._vocab = lm.geometry.vocab
        self._plain = SoftPromptReader(lm, no_prompt(lm, Template("text", "{text}")))
        self._talk = SoftPromptReader(lm, no_prompt(lm, Template("chat"))) if has_chat_template(lm.tokenizer) else None

    def text(self, text: str, where: str) -> EncodedPrompt:
        """One text, with the BOS that the tokenizer gives every text. Raises DataError."""
        return self._plain.text(text, where)

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt:
        """A conversation. Raises DataError, or ProblemError if the model has no chat template."""
        if self._talk is None:
            raise invalid("The base model has no chat template: ask /v1/completions.", "messages", "no_chat_template")
        return self._talk.chat(messages)

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt:
        """A text that comes as token ids, taken as they are. Raises ProblemError for what is no token of the model."""
        if not ids or any(not 0 <= token < self._vocab for token in ids):
            raise invalid(f"Token ids are between 0 and {self._vocab - 1}, one at least.", "prompt")
        return EncodedPrompt(tuple(ids), self._plain.end_ids, len(ids), len(ids))
