"""GenerationRequest: a checked request for one model, within the server's limits and independent of HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from softprompt.engine.base import Penalties
from softprompt.inference.sampling import Sampling
from softprompt.server.api_keys import Caller
from softprompt.server.chat_reading import ChatOptions, chat_options
from softprompt.server.error_responses import invalid
from softprompt.server.limits import Limits
from softprompt.server.prompt_reader import EncodedPrompt, PromptReader
from softprompt.server.schema import ChatRequest, CompletionRequest, GenerationFields, Turn
from softprompt.server.structured_output import RequestedGrammar, requested_grammar
from softprompt.server.tools import ToolUse, tool_use
from softprompt.server.turns import read_messages
from softprompt.server.turns import thoughts as turn_thoughts

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
        new_tokens: maximum tokens of an answer; None fills the context; 0: no answer.
        logprobs: number of likeliest tokens to report for each token; None reports none.
        prompt_logprobs: the same for each token of the texts, as vLLM reports them.
        echo: repeat each text before its answer.
        best_of: answers that are made for each text, of which the `n` likeliest are given; 0: `n`.
        caller: who sent it; None is the server itself.
        bias: (token, number to add to its logit).
        min_tokens: tokens of an answer before which it cannot end.
        ignore_eos: whether end tokens are tokens like others; within a grammar: whether only its end is the answer's.
        grammar: that answers are held to.
        is_chat: whether the texts are conversations.
        tools: functions that an answer may call.
        thinking: whether an answer begins with a thought; None: as the soft prompt was trained.
    """

    model: str
    texts: tuple[TextReader, ...]
    param: str
    n: int
    sampling: Sampling
    new_tokens: int | None
    penalties: Penalties
    logprobs: int | None
    prompt_logprobs: int | None = None
    echo: bool = False
    best_of: int = 0
    caller: Caller | None = None
    bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    grammar: RequestedGrammar | None = None
    is_chat: bool = False
    tools: ToolUse | None = None
    thinking: bool | None = None

    @property
    def made(self) -> int:
        """Answers that are made for each text."""
        return self.best_of or self.n

    @property
    def tenant(self) -> str:
        """The caller's id; an engine never shares cached texts between tenants."""
        return "" if self.caller is None else self.caller.id


def chat_request(request: ChatRequest, limits: Limits) -> GenerationRequest:
    """The checked request of a body. Raises ApiError for values over the limits."""
    tools, options = tool_use(request), chat_options(request)
    text = conversation(request.messages, options, tools, limits)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs goes with logprobs: true.", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise invalid("Give max_completion_tokens or max_tokens, not both.", "max_tokens")
    check_most(request.top_logprobs or 0, limits, "logprobs", "top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    new_tokens = request.max_completion_tokens or request.max_tokens
    made = _generation_request(request, limits, (text,), "messages", new_tokens, logprobs, request.prompt_logprobs)
    return replace(made, is_chat=True, tools=tools, thinking=options.thinking)


def conversation(turns: Sequence[Turn], options: ChatOptions, tools: ToolUse | None, limits: Limits) -> TextReader:
    """Reads turns in which functions may be called. Raises ApiError for values over the limits, and for odd turns."""
    check_most(len(turns), limits, "messages", "messages")
    messages, thoughts = read_messages(turns), turn_thoughts(turns)
    said = sum(len(m.content) + len(m.calls) + len(thought) for m, thought in zip(messages, thoughts, strict=True))
    check_most(said, limits, "chars", "messages", " characters")
    if tools is not None:
        check_most(len(tools.definitions), limits, "grammar_chars", tools.param, " characters")
    return lambda reader: reader.chat(messages, options, tools, thoughts)


def completion_request(request: CompletionRequest, limits: Limits) -> GenerationRequest:
    """The checked request of a body. Raises ApiError for values over the limits."""
    prompts = _prompt_list(request.prompt)
    if not prompts or not all(prompts):
        raise invalid("There is nothing to complete.", "prompt")
    check_most(sum(map(len, prompts)), limits, "chars", "prompt", " characters")
    check_most(request.logprobs or 0, limits, "logprobs", "logprobs")
    is_answered = request.max_tokens != 0 and not request.echo
    texts = tuple(partial(_read, prompt, f"prompt[{i}]", is_answered) for i, prompt in enumerate(prompts))
    new_tokens = _default(request.max_tokens, DEFAULT_TOKENS)
    generation = _generation_request(
        request, limits, texts, "prompt", new_tokens, request.logprobs, request.prompt_logprobs, bool(request.echo)
    )
    best_of = _default(request.best_of, generation.n)
    for limit in ("choices", "jobs"):
        check_most(best_of, limits, limit, "best_of", " answers")
    check_most(best_of * len(texts), limits, "prompts", "best_of", " answers to all texts")
    return replace(generation, best_of=best_of)


def encoding_request(model: str, text: TextReader, param: str, caller: Caller | None = None) -> GenerationRequest:
    """The request for a text's token ids alone."""
    return GenerationRequest(model, (text,), param, 1, Sampling(1), 0, Penalties(), None, caller=caller)


def _prompt_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The texts of a completion request, whose field may hold one text or a list of them."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [part for part in prompt if isinstance(part, int)]
    return [tokens] if tokens else [part for part in prompt if not isinstance(part, int)]


def _read(prompt: str | list[int], where: str, is_answered: bool, reader: PromptReader) -> EncodedPrompt:
    return reader.text(prompt, where) if isinstance(prompt, str) else reader.tokens(prompt, is_answered=is_answered)


def _generation_request(
    request: GenerationFields,
    limits: Limits,
    texts: tuple[TextReader, ...],
    param: str,
    new_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    echo: bool = False,
) -> GenerationRequest:
    n, stops = _default(request.n, 1), request.stops
    top_k = max(0, _default(request.top_k, 0))  # -1 is unlimited, as in vLLM
    check_most(len(texts), limits, "prompts", param, " texts")
    for limit in ("choices", "jobs"):
        check_most(n, limits, limit, "n", " answers")
    check_most(len(texts) * n, limits, "prompts", "n", " answers to all texts")
    check_most(len(stops), limits, "stops", "stop", " strings")
    check_most(max(map(len, stops), default=0), limits, "stop_chars", "stop", " characters")
    check_most(top_k, limits, "top_k", "top_k")
    check_most(prompt_logprobs or 0, limits, "logprobs", "prompt_logprobs")
    check_most(_default(new_tokens, 1), limits, "new_tokens", "max_tokens")
    if not all(stops):
        raise invalid("A stop string is not empty.", "stop")
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    check_most(len(bias), limits, "biases", "logit_bias", " tokens")
    least = _default(request.min_tokens, 0)
    if least > _default(new_tokens, limits.new_tokens):
        raise invalid("min_tokens is more than the longest answer.", "min_tokens")
    sampling = _sampling(request, limits, top_k)
    repetition, presence = _default(request.repetition_penalty, 1.0), _default(request.presence_penalty, 0.0)
    penalties = Penalties(repetition, presence, _default(request.frequency_penalty, 0.0))
    return GenerationRequest(
        request.model,
        texts,
        param,
        n,
        sampling,
        new_tokens,
        penalties,
        logprobs,
        prompt_logprobs,
        echo,
        bias=tuple(bias.items()),
        min_tokens=least,
        ignore_eos=bool(request.ignore_eos),
        grammar=requested_grammar(request, limits),
    )


def _sampling(request: GenerationFields, limits: Limits, top_k: int) -> Sampling:
    return Sampling(
        limits.new_tokens,
        _default(request.temperature, 1.0),
        top_k,
        _default(request.top_p, 1.0),
        request.stops,
        _default(request.seed, secrets.randbits(62)),
        min_p=_default(request.min_p, 0.0),
    )


def _default(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def check_most(value: int, limits: Limits, limit: str, param: str, unit: str = "") -> None:
    """Raise ApiError for a number over the limit of this name."""
    most: int = getattr(limits, limit)
    if value > most:
        message = f"{param} is over the limit of this server: at most {most}{unit} (serve --limit {limit}={most})."
        raise invalid(message, param, "over_limit")
