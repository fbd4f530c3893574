"""Answers as OpenAI's response objects, complete or in chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NotRequired  # pydantic reads them, and wants these before Python 3.12

from typing_extensions import TypedDict

from softprompt.server.call_text import CallPart
from softprompt.server.message_types import AssistantMessage, Delta
from softprompt.server.prepared import PreparedRequest
from softprompt.server.streaming import LEAST, PromptLogprob, ScoredToken, TextPiece
from softprompt.server.token_text import TokenText


class PromptTokensDetails(TypedDict):
    """The tokens of texts that were found in the prefix cache; like all counts without virtual tokens."""

    cached_tokens: int


class Usage(TypedDict):
    """Token counts of texts and answers, without virtual tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(TypedDict):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat answer or of a chunk of it."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log-probabilities of a completion or of a chunk of it; null for a repeated token that nothing predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


Finish = Literal["stop", "length", "tool_calls", "function_call"]
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatChunkChoice(TypedDict):
    """The new part of one answer in a stream."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class TextChoice(TypedDict):
    """One completion, or the new part of it in a stream."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class _Head(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: NotRequired[Usage | None]


class ChatCompletion(_Head):
    """Response of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: NotRequired[PromptLogprobs]


class ChatChunk(_Head):
    """Event in a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextCompletion(_Head):
    """Response of /v1/completions, and event in its stream."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


@dataclass
class UsageCount:
    """Counts tokens of a request as its answers come.

    Attributes:
        tokens: of all answers.
        cached: of the texts, found in the prefix cache when the first answer to each began.
    """

    work: PreparedRequest
    tokens: int = 0
    cached: int = 0

    def add(self, piece: TextPiece) -> None:
        """Count a piece of an answer."""
        self.tokens += piece.tokens
        if piece.cached and piece.choice % self.work.n == 0:
            self.cached += self.work.text_tokens_among(piece.cached)

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return {
            "prompt_tokens": self.work.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.work.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class FullResponse:
    """An answer, collected from its pieces."""

    text: str = ""
    scored: list[ScoredToken] = field(default_factory=list)
    finish: str = ""
    prompt: PromptLogprobs | None = None
    thought: str = ""
    calls: dict[int, CallPart] = field(default_factory=dict)

    def add(self, piece: TextPiece) -> None:
        self.text += piece.text
        self.thought += piece.thought
        for part in piece.calls:
            begun = self.calls.setdefault(part.index, part)
            self.calls[part.index] = replace(begun, arguments=begun.arguments + part.arguments) if not part.id else part
        self.scored += piece.scored
        self.finish = piece.finish
        if piece.prompt is not None:
            self.prompt = list(piece.prompt)

    @property
    def likelihood(self) -> float:
        """Mean log-probability of its tokens; an answer without tokens is as likely as can be."""
        values = [one.logprob for one in self.scored if one.logprob is not None]
        return sum(values) / len(values) if values else 0.0


def likeliest(answers: Sequence[FullResponse], made: int, n: int) -> list[FullResponse]:
    """The `n` likeliest of every `made` answers, the best first, as OpenAI's `best_of` orders them."""
    if made == n:
        return list(answers)
    groups = [answers[start : start + made] for start in range(0, len(answers), made)]
    return [one for group in groups for one in sorted(group, key=lambda answer: -answer.likelihood)[:n]]


class ResponseBuilder:
    """Builds the response objects of one request.

    Args:
        chat: for /v1/chat/completions; else for /v1/completions.
        model: the model's name in the request.
        logprobs: whether to include log-probabilities.
        usage: whether a stream ends with the usage; all other events then have the field, too, as in OpenAI's API.
    """

    def __init__(self, work: PreparedRequest, model: str, *, chat: bool, logprobs: bool, usage: bool = False) -> None:
        self._chat, self._logprobs = chat, logprobs
        self._work, self._usage = work, usage
        self._uses_old_names = work.answer is not None and work.answer.uses_old_names
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{work.id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": work.fingerprint,
        }

    def whole(self, answers: Sequence[FullResponse], usage: Usage) -> dict[str, object]:
        """The complete response: a ChatCompletion or TextCompletion."""
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        kind = "chat.completion" if self._chat else "text_completion"
        reply: dict[str, object] = {**self._head, "object": kind, "choices": choices, "usage": usage}
        if self._chat and answers[0].prompt is not None:
            reply["prompt_logprobs"] = answers[0].prompt
        return reply

    def chunk(self, piece: TextPiece, usage: Usage | None = None) -> dict[str, object]:
        """An event with a piece of an answer, and perhaps the usage so far: a ChatChunk or TextCompletion."""
        logprobs = self._scored(piece.scored) if piece.scored else None
        choice = {"index": piece.choice, "logprobs": logprobs, "finish_reason": self._finish(piece.finish) or None}
        choice |= {"delta": self._delta(piece)} if self._chat else {"text": piece.text}
        return self._event([choice], usage)

    def opening(self) -> list[dict[str, object]]:
        """The events before any text: for a chat, one with the role for each answer."""
        delta = {"role": "assistant", "content": ""}
        first = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [self._event([first | {"index": i}]) for i in range(len(self._work.jobs))] if self._chat else []

    def closing(self, usage: Usage) -> dict[str, object]:
        """The last event of a stream, with the usage."""
        return self._event([], usage)

    def _event(self, choices: Sequence[Mapping[str, object]], usage: Usage | None = None) -> dict[str, object]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        event: dict[str, object] = {**self._head, "object": kind, "choices": choices}
        return event | {"usage": usage} if self._usage else event

    def _choice(self, index: int, answer: FullResponse) -> dict[str, object]:
        logprobs = self._scored(answer.scored) if self._logprobs else None
        finish = self._finish(answer.finish)
        choice: dict[str, object] = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if not self._chat:
            reported = {} if answer.prompt is None else {"prompt_logprobs": answer.prompt}
            return {**choice, "text": answer.text, **reported}
        content = answer.text or ("" if not answer.calls else None)
        message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        message |= {"reasoning_content": answer.thought} if answer.thought else {}
        return {**choice, "message": message | self._calls(list(answer.calls.values()), indexed=False)}

    def _delta(self, piece: TextPiece) -> dict[str, object]:
        thought = {"reasoning_content": piece.thought} if piece.thought else {}
        calls = self._calls(piece.calls, indexed=True)
        content = {"content": piece.text} if piece.text or not (thought or calls) else {}
        return {**thought, **content, **calls}

    def _calls(self, calls: Sequence[CallPart], *, indexed: bool) -> dict[str, object]:
        """The calls of a message, or parts of a delta's, which have an index."""
        functions = [({"name": call.name} if call.id else {}) | {"arguments": call.arguments} for call in calls]
        if not functions or self._uses_old_names:
            return {"function_call": functions[0]} if functions else {}
        made = [
            ({"index": call.index} if indexed else {})
            | ({"id": call.id, "type": "function"} if call.id else {})
            | {"function": function}
            for call, function in zip(calls, functions, strict=True)
        ]
        return {"tool_calls": made}

    def _finish(self, finish: str) -> str:
        return "function_call" if finish == "tool_calls" and self._uses_old_names else finish

    def _scored(self, scored: Sequence[ScoredToken]) -> ChatLogprobs | TextLogprobs:
        return chat_logprobs(scored) if self._chat else _text_logprobs(scored)


def chat_logprobs(scored: Sequence[ScoredToken]) -> ChatLogprobs:
    """Scored tokens as a chat answer has them."""
    content: list[TokenLogprob] = [
        {
            **_top(one.token, LEAST if one.logprob is None else one.logprob),
            "top_logprobs": [_top(*other) for other in one.likeliest],
        }
        for one in scored
    ]
    return {"content": content, "refusal": None}


def _top(token: TokenText, logprob: float) -> TopLogprob:
    return {"token": token.escaped, "logprob": logprob, "bytes": list(token.data)}


def _text_logprobs(scored: Sequence[ScoredToken]) -> TextLogprobs:
    return {
        "tokens": [_text_key(one.token) for one in scored],
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [_by_text(one) for one in scored],
        "text_offset": [one.start for one in scored],
    }


def _by_text(one: ScoredToken) -> dict[str, float] | None:
    """Log-probabilities by text; of tokens with the same text, the less likely go by their id."""
    if one.logprob is None:
        return None
    chosen, found = _text_key(one.token), dict[str, float]()
    for token, logprob in one.likeliest:
        key = _text_key(token)
        taken = key in found or (key == chosen and token.id != one.token.id)
        found[f"token_id:{token.id}" if taken else key] = logprob
    return {**found, chosen: one.logprob}


def _text_key(token: TokenText) -> str:
    """A token in completions, where OpenAI's API marks parts of characters."""
    return token.text if token.whole else f"bytes:{token.escaped}"
