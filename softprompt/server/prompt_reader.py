"""Turns texts and conversations into token ids for a soft prompt, or for the base model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.data.tokenizer import bos_ids, decode, has_chat_template
from softprompt.formatting.chat_template import ChatTemplateOf, use_chat_template
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt, opening_ids
from softprompt.formatting.inputs import closing_text, text_input_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.server.chat_format import ChatFormat
from softprompt.server.chat_reading import NO_OPTIONS, ChatOptions, SystemTurns, read_conversation
from softprompt.server.error_responses import ApiError, invalid, shown_value
from softprompt.server.tools import ToolUse


@dataclass(frozen=True)
class EncodedPrompt:
    """A text as token ids.

    Attributes:
        ids: token ids after the prefix.
        end_ids: tokens that end the answer.
        text_tokens: tokens of prefix and ids without virtual tokens, as `usage` counts them.
        taken: tokens of prefix and ids with virtual tokens, which take up the context.
        sent: the text as the request has it, for a text or token ids.
        skipped: words of the prefix that the request's own tokens follow; None if the template writes around a text, so
            that its own tokens cannot be told apart.
        held: token ids of the request that the virtual tokens hold already, such as BOS.
        words: token ids of the prefix, without virtual tokens, that the engine adds to the ids.
        bos: how many tokens of words and ids a tokenizer puts before any text.
        virtual: where virtual tokens begin and end in the prefix.
        ignored: fields of the request that change nothing for this model.
    """

    ids: tuple[int, ...]
    end_ids: frozenset[int]
    text_tokens: int
    taken: int
    sent: str = ""
    skipped: int | None = None
    held: tuple[int, ...] = ()
    words: tuple[int, ...] = ()
    bos: int = 0
    virtual: tuple[int, int] = (0, 0)
    ignored: tuple[str, ...] = ()


class SoftPromptReader:
    """Reads texts through the template of a soft prompt.

    Args:
        formatted: the soft prompt (or none) with its template and layout.
        digest: sha256 of the soft prompt, "" for the base model.
        system_turns: what becomes of system turns that the soft prompt was not trained with; "": as its card says.

    Raises DataError for a template that the base model cannot use.
    """

    def __init__(
        self, lm: FrozenLM, formatted: FormattedPrompt, digest: str = "", system_turns: SystemTurns = ""
    ) -> None:
        self.formatted, self.digest = formatted, digest
        self._system_turns: SystemTurns = system_turns
        self.prefix: Prefix = formatted.prefix(lm)
        self._tokenizer = lm.tokenizer
        self.end_ids = frozenset(end_ids(lm, formatted.template))
        self._words = self.prefix.lead + self.prefix.follow
        self._constant = len(self._words)
        bos = tuple(bos_ids(lm.tokenizer))
        self._bos = len(bos) if self._words[: len(bos)] == bos else 0
        self._virtual = formatted.prompt.n_tokens if formatted.prompt is not None else 0
        self._is_bare = formatted.template.text == "".join(f"{{{name}}}" for name in formatted.template.names[:1])
        prompt = formatted.prompt
        inside = prompt is not None and prompt.begins_the_sequence and not formatted.layout.follow_bos
        self._held = tuple(opening_ids(lm, formatted.template)) if inside else ()
        self._vocab = lm.geometry.vocab
        self.chat_format = ChatFormat(formatted.template, lm.tokenizer)

    def text(self, text: str, where: str) -> EncodedPrompt:
        """One text through the template. Raises DataError."""
        encoded = self._encoded(text_input_ids(text, self.formatted, self._tokenizer, where))
        bare = self._is_bare and self.formatted.template.kind == "text"
        return replace(encoded, sent=text, skipped=self._constant if bare else None)

    def chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = NO_OPTIONS,
        tools: ToolUse | None = None,
        thoughts: Sequence[str] = (),
    ) -> EncodedPrompt:
        """A conversation, up to the start of the assistant's answer or of the rest of it. Raises DataError, ApiError.

        Args:
            tools: functions that the answer may call.
            thoughts: for each turn the thought before its words, or "".
        """
        ids, ignored = read_conversation(
            self.chat_format.with_thoughts(messages, thoughts),
            options,
            self._system_turns,
            self.formatted,
            self._tokenizer,
            shown=lambda turns: self.chat_format.shown(turns, tools),
        )
        return replace(self._encoded(ids), ignored=ignored)

    def tokens(self, ids: Sequence[int], *, is_answered: bool) -> EncodedPrompt:
        """Token ids of a whole text, template included; what the prefix begins with may be left out.

        Raises ApiError for ids outside the vocabulary, without the template's opening, or, of a text that is to be
        answered, without what the template writes before an answer.
        """
        check_token_ids(ids, self._vocab)
        lead, follow = self.prefix.lead, self.prefix.follow
        rest, skipped = tuple(ids), len(lead)
        held: tuple[int, ...] = ()
        if lead and rest[: len(lead)] == lead:
            rest, skipped = rest[len(lead) :], 0
        elif self._held and rest[: len(self._held)] == self._held:
            rest, held = rest[len(self._held) :], self._held
        text = decode(ids, self._tokenizer)
        if rest[: len(follow)] != follow or len(rest) == len(follow):
            raise _unopened(decode(follow, self._tokenizer), "begin", "opening")
        closing = closing_text(self.formatted, self._tokenizer) if is_answered else ""
        if not text.rstrip().endswith(closing.rstrip()):
            raise _unopened(closing, "end", "words before an answer,")
        encoded = self._encoded(rest[len(follow) :])
        return replace(encoded, sent=text, skipped=skipped, held=held)

    def _encoded(self, ids: Sequence[int]) -> EncodedPrompt:
        """The ids of the job. The engine adds a soft prompt's prefix; the base model's constant text is added here."""
        text = self._constant + len(ids)
        words, given = self._words, tuple(ids)
        if self.formatted.prompt is None:
            words, given = (), words + given
        start = len(self.prefix.lead)
        span = (start, start + self._virtual)
        taken = self._virtual + text
        return EncodedPrompt(given, self.end_ids, text, taken, words=words, bos=self._bos, virtual=span)


class PromptReader(Protocol):
    """Reads texts for one model."""

    @property
    def chat_format(self) -> ChatFormat: ...

    def text(self, text: str, where: str) -> EncodedPrompt: ...

    def chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = NO_OPTIONS,
        tools: ToolUse | None = None,
        thoughts: Sequence[str] = (),
    ) -> EncodedPrompt: ...

    def tokens(self, ids: Sequence[int], *, is_answered: bool) -> EncodedPrompt: ...


def load_reader(
    lm: FrozenLM, path: Path, chat_template: ChatTemplateOf = "", system_turns: SystemTurns = ""
) -> SoftPromptReader:
    """The reader of the soft prompt in a folder. Raises StoreError, WrongBaseError, DataError.

    Args:
        chat_template: whose to use if the model has another one than the soft prompt was trained with.
        system_turns: as SoftPromptReader takes it.
    """
    prompt, card = store.load(path, lm.geometry)
    return SoftPromptReader(
        lm, use_chat_template(from_card(prompt, card), chat_template, lm), card.sha256, system_turns
    )


class BaseModelReader:
    """Reads for the base model alone: texts unchanged, conversations through its chat template."""

    digest = ""

    def __init__(self, lm: FrozenLM) -> None:
        self._vocab, self._tokenizer = lm.geometry.vocab, lm.tokenizer
        self.chat_format = ChatFormat(Template("chat"), lm.tokenizer)
        self._plain = SoftPromptReader(lm, no_prompt(lm, Template("text", "{text}")))
        self._chat = SoftPromptReader(lm, no_prompt(lm, Template("chat"))) if has_chat_template(lm.tokenizer) else None

    def text(self, text: str, where: str) -> EncodedPrompt:
        """One text, with BOS if the tokenizer adds it. Raises DataError."""
        return self._plain.text(text, where)

    def chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = NO_OPTIONS,
        tools: ToolUse | None = None,
        thoughts: Sequence[str] = (),
    ) -> EncodedPrompt:
        """A conversation. Raises DataError, or ApiError if the model has no chat template."""
        if self._chat is None:
            raise invalid("The base model has no chat template: use /v1/completions.", "messages", "no_chat_template")
        return self._chat.chat(messages, options, tools, thoughts)

    def tokens(self, ids: Sequence[int], *, is_answered: bool) -> EncodedPrompt:
        """Token ids, unchanged. Raises ApiError for an id outside the vocabulary."""
        check_token_ids(ids, self._vocab)
        text = decode(ids, self._tokenizer)
        return EncodedPrompt(tuple(ids), self._plain.end_ids, len(ids), len(ids), text, 0)


def check_token_ids(ids: Sequence[int], vocab: int, param: str = "prompt") -> None:
    """Raise ApiError for no ids, or ids outside the vocabulary."""
    if not ids or any(not 0 <= token < vocab for token in ids):
        raise invalid(f"Token ids are between 0 and {vocab - 1}, at least one.", param)


def _unopened(words: str, place: str, name: str) -> ApiError:
    what = "A soft prompt was trained with a template, which token ids bypass, and these do not"
    hint = "Send the text itself (lm-eval: tokenized_requests=False), or the ids of the whole text with these words."
    return invalid(f"{what} {place} with its {name} {shown_value(words)}. {hint}", "prompt")
