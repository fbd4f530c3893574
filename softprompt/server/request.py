"""GenerationRequest: a checked request for one model, within the server's limits and independent of HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from softprompt.engine.base import Penalties
from softprompt.inference.sampling import Sampling
from softprompt.server.error_responses import invalid
from softprompt.server.limits import Limits
from softprompt.server.prompt_reader import EncodedPrompt, PromptReader
from softprompt.server.schema import ChatRequest, CompletionRequest, GenerationFields

DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API; a conversation's answer may fill the context

# One text or conversation: given the model's reader, its token ids. Raises DataError.
TextReader = Callable[[PromptReader], EncodedPrompt]
_T = TypeVar("_T")


@dataclass(frozen=True)
class GenerationRequest:
    """One request.

    Attributes:
        model: the model's name in the request.
        texts: each is answered `n` times.
        param: the field of the texts, for error messages.
        sampling: sampling of each text's first answer; further answers increment the seed. `max_new_tokens` is the
            server's limit.
        new_tokens: maximum tokens of an answer; None fills the context.
        logprobs: number of likeliest tokens to report for each token; None reports none.
        tenant: the caller; an engine never shares cached texts between tenants.
    """

    model: str
    texts: tuple[TextReader, ...]
    param: str
    n: int
    sampling: Sampling
    new_tokens: int | None
    penalties: Penalties
    logprobs: int | None
    tenant: str = ""


def chat_request(request: ChatRequest, limits: Limits) -> GenerationRequest:
    """The checked request of a body. Raises ApiError for values over the limits."""
    _check_most(len(request.messages), limits.messages, "messages")
    messages = [turn.message for turn in request.messages]
    _check_most(sum(len(message.content) for message in messages), limits.chars, "messages", " characters")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs goes with logprobs: true.", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise invalid("Give max_completion_tokens or max_tokens, not both.", "max_tokens")
    _check_most(request.top_logprobs or 0, limits.logprobs, "top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    new_tokens = request.max_completion_tokens or request.max_tokens
    return _generation_request(
        request, limits, (lambda reader: reader.chat(messages),), "messages", new_tokens, logprobs
    )


def completion_request(request: CompletionRequest, limits: Limits) -> GenerationRequest:
    """The checked request of a body. Raises ApiError for values over the limits."""
    prompts = _prompt_list(request.prompt)
    if not prompts or not all(prompts):
        raise invalid("There is nothing to complete.", "prompt")
    _check_most(sum(map(len, prompts)), limits.chars, "prompt", " characters")
    _check_most(request.logprobs or 0, limits.logprobs, "logprobs")
    texts = tuple(partial(_read, prompt, f"prompt[{i}]") for i, prompt in enumerate(prompts))
    return _generation_request(request, limits, texts, "prompt", request.max_tokens or DEFAULT_TOKENS, request.logprobs)


def _prompt_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The texts of a completion request, whose field may hold one text or a list of them."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [part for part in prompt if isinstance(part, int)]
    return [tokens] if tokens else [part for part in prompt if not isinstance(part, int)]


def _read(prompt: str | list[int], where: str, reader: PromptReader) -> EncodedPrompt:
    return reader.text(prompt, where) if isinstance(prompt, str) else reader.tokens(prompt)


def _generation_request(
    request: GenerationFields,
    limits: Limits,
    texts: tuple[TextReader, ...],
    param: str,
    new_tokens: int | None,
    logprobs: int | None,
) -> GenerationRequest:
    n, stops = _default(request.n, 1), request.stops
    top_k = max(0, _default(request.top_k, 0))  # -1 is unlimited, as in vLLM
    _check_most(len(texts) * n, limits.choices, "n", " answers")
    _check_most(len(stops), limits.stops, "stop", " strings")
    _check_most(max(map(len, stops), default=0), limits.stop_chars, "stop", " characters")
    _check_most(top_k, limits.top_k, "top_k")
    _check_most(_default(new_tokens, 1), limits.new_tokens, "max_tokens")
    if not all(stops):
        raise invalid("A stop string is not empty.", "stop")
    seed = _default(request.seed, secrets.randbits(62))
    sampling = Sampling(
        limits.new_tokens, _default(request.temperature, 1.0), top_k, _default(request.top_p, 1.0), stops, seed
    )
    repetition, presence = _default(request.repetition_penalty, 1.0), _default(request.presence_penalty, 0.0)
    penalties = Penalties(repetition, presence, _default(request.frequency_penalty, 0.0))
    return GenerationRequest(request.model, texts, param, n, sampling, new_tokens, penalties, logprobs)


def _default(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _check_most(value: int, most: int, param: str, unit: str = "") -> None:
    if value > most:
        raise invalid(f"{param} is over the limit of this server: at most {most}{unit}.", param, "over_limit")
