"""Answers as OpenAI's response objects, complete or in chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired  # pydantic reads them, and wants these before Python 3.12

from typing_extensions import TypedDict

from softprompt.server.service import PreparedRequest
from softprompt.server.streaming import ScoredToken, TextPiece


class Usage(TypedDict):
    """Token counts of texts and answers, without virtual tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


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
    """Log-probabilities of a completion or of a chunk of it."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(TypedDict):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Delta(TypedDict):
    """The new part of a message in a stream."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


Finish = Literal["stop", "length"]


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


class ChatChunk(_Head):
    """Event in a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextCompletion(_Head):
    """Response of /v1/completions, and event in its stream."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


@dataclass
class FullResponse:
    """An answer, collected from its pieces."""

    text: str = ""
    scored: list[ScoredToken] = field(default_factory=list)
    finish: str = ""

    def add(self, piece: TextPiece) -> None:
        self.text += piece.text
        self.scored += piece.scored
        self.finish = piece.finish


class ResponseBuilder:
    """Builds the response objects of one request.

    Args:
        chat: for /v1/chat/completions; else for /v1/completions.
        model: the model's name in the request.
        logprobs: whether to include log-probabilities.
    """

    def __init__(self, work: PreparedRequest, model: str, *, chat: bool, logprobs: bool) -> None:
        self._chat, self._logprobs = chat, logprobs
        self._work = work
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{work.id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": work.fingerprint,
        }

    def whole(self, answers: Sequence[FullResponse], tokens: int) -> dict[str, object]:
        """The complete response: a ChatCompletion or TextCompletion."""
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        kind = "chat.completion" if self._chat else "text_completion"
        return self._head | {"object": kind, "choices": choices, "usage": self.usage(tokens)}

    def chunk(self, piece: TextPiece) -> dict[str, object]:
        """An event with a piece of an answer: a ChatChunk or TextCompletion."""
        logprobs = self._scored(piece.scored) if piece.scored else None
        choice = {"index": piece.choice, "logprobs": logprobs, "finish_reason": piece.finish or None}
        return self._event([choice | ({"delta": {"content": piece.text}} if self._chat else {"text": piece.text})])

    def opening(self) -> list[dict[str, object]]:
        """The events before any text: for a chat, one with the role for each answer."""
        delta = {"role": "assistant", "content": ""}
        first = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [self._event([first | {"index": i}]) for i in range(len(self._work.jobs))] if self._chat else []

    def closing(self, tokens: int) -> dict[str, object]:
        """The last event of a stream, with the usage."""
        return self._event([]) | {"usage": self.usage(tokens)}

    def usage(self, tokens: int) -> Usage:
        """Token counts of the request; `tokens` is the count of all answers."""
        prompt_tokens = self._work.prompt_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        }

    def _event(self, choices: Sequence[Mapping[str, object]]) -> dict[str, object]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return self._head | {"object": kind, "choices": choices}

    def _choice(self, index: int, answer: FullResponse) -> dict[str, object]:
        logprobs = self._scored(answer.scored) if self._logprobs else None
        choice: dict[str, object] = {"index": index, "logprobs": logprobs, "finish_reason": answer.finish}
        if not self._chat:
            return {**choice, "text": answer.text}
        return {**choice, "message": {"role": "assistant", "content": answer.text, "refusal": None}}

    def _scored(self, scored: Sequence[ScoredToken]) -> ChatLogprobs | TextLogprobs:
        return _chat_logprobs(scored) if self._chat else _text_logprobs(scored)


def _chat_logprobs(scored: Sequence[ScoredToken]) -> ChatLogprobs:
    content: list[TokenLogprob] = [
        {**_top(token.text, token.logprob), "top_logprobs": [_top(*other) for other in token.likeliest]}
        for token in scored
    ]
    return {"content": content, "refusal": None}


def _top(text: str, logprob: float) -> TopLogprob:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text_logprobs(scored: Sequence[ScoredToken]) -> TextLogprobs:
    return {
        "tokens": [token.text for token in scored],
        "token_logprobs": [token.logprob for token in scored],
        "top_logprobs": [{**dict(token.likeliest), token.text: token.logprob} for token in scored],
        "text_offset": [token.start for token in scored],
    }
