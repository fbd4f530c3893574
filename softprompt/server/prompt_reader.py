"""Turns texts and conversations into token ids for a soft prompt, or for the base model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.data.tokenizer import has_chat_template
from softprompt.formatting.chat_template import ChatTemplateOf, use_chat_template
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt
from softprompt.formatting.inputs import chat_input_ids, text_input_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.server.error_responses import invalid


@dataclass(frozen=True)
class EncodedPrompt:
    """A text as token ids.

    Attributes:
        ids: token ids after the prefix.
        end_ids: tokens that end the answer.
        text_tokens: tokens of prefix and ids without virtual tokens, as `usage` counts them.
        taken: tokens of prefix and ids with virtual tokens, which take up the context.
    """

    ids: tuple[int, ...]
    end_ids: frozenset[int]
    text_tokens: int
    taken: int


class SoftPromptReader:
    """Reads texts through the template of a soft prompt.

    Args:
        formatted: the soft prompt (or none) with its template and layout.
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
        return self._encoded(text_input_ids(text, self.formatted, self._tokenizer, where))

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt:
        """A conversation, up to the start of the assistant's answer. Raises DataError."""
        return self._encoded(chat_input_ids(messages, self.formatted, self._tokenizer))

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt:
        """Raises ApiError: a soft prompt was trained with its template, which ids would bypass."""
        raise invalid("A soft prompt reads texts through its template, not token ids.", "prompt")

    def _encoded(self, ids: Sequence[int]) -> EncodedPrompt:
        text = self._constant + len(ids)
        return EncodedPrompt(self._job_ids(ids), self.end_ids, text, self._virtual + text)

    def _job_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of the job. The engine adds a soft prompt's prefix; the base model's constant text is added here."""
        if self.formatted.prompt is not None:
            return tuple(ids)
        return (*self.prefix.lead, *self.prefix.follow, *ids)


class PromptReader(Protocol):
    """Reads texts for one model."""

    def text(self, text: str, where: str) -> EncodedPrompt: ...

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt: ...

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt: ...


def load_reader(lm: FrozenLM, path: Path, chat_template: ChatTemplateOf = "") -> SoftPromptReader:
    """The reader of the soft prompt in a folder. Raises StoreError, WrongBaseError, DataError.

    Args:
        chat_template: whose to use if the model has another one than the soft prompt was trained with.
    """
    prompt, card = store.load(path, lm.geometry)
    return SoftPromptReader(lm, use_chat_template(from_card(prompt, card), chat_template, lm), card.sha256)


class BaseModelReader:
    """Reads for the base model alone: texts unchanged, conversations through its chat template."""

    digest = ""

    def __init__(self, lm: FrozenLM) -> None:
        self._vocab = lm.geometry.vocab
        self._plain = SoftPromptReader(lm, no_prompt(lm, Template("text", "{text}")))
        self._chat = SoftPromptReader(lm, no_prompt(lm, Template("chat"))) if has_chat_template(lm.tokenizer) else None

    def text(self, text: str, where: str) -> EncodedPrompt:
        """One text, with BOS if the tokenizer adds it. Raises DataError."""
        return self._plain.text(text, where)

    def chat(self, messages: Sequence[Message]) -> EncodedPrompt:
        """A conversation. Raises DataError, or ApiError if the model has no chat template."""
        if self._chat is None:
            raise invalid("The base model has no chat template: use /v1/completions.", "messages", "no_chat_template")
        return self._chat.chat(messages)

    def tokens(self, ids: Sequence[int]) -> EncodedPrompt:
        """Token ids, unchanged. Raises ApiError for an id outside the vocabulary."""
        if not ids or any(not 0 <= token < self._vocab for token in ids):
            raise invalid(f"Token ids are between 0 and {self._vocab - 1}, at least one.", "prompt")
        return EncodedPrompt(tuple(ids), self._plain.end_ids, len(ids), len(ids))
