"""Jobs of a request for the engine, and the time that each of them takes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from softprompt.engine.base import Engine, Job, Token
from softprompt.engine.constraint import Constraint
from softprompt.server.answer_parts import AnswerFormat
from softprompt.server.error_responses import ApiError, invalid
from softprompt.server.given_text import GivenText, given_text
from softprompt.server.limits import Limits
from softprompt.server.metrics import ServerMetrics
from softprompt.server.prompt_reader import EncodedPrompt
from softprompt.server.request import GenerationRequest


@dataclass(frozen=True)
class PreparedRequest:
    """A request as jobs that are ready to run.

    Attributes:
        id: unique id of the request.
        jobs: `n` for each text, in the order of the texts.
        given: what is reported of each job's text.
        stops: stop strings.
        prompt_tokens: tokens of all texts, without virtual tokens.
        n: jobs for each text.
        ignored: fields of the request that change nothing for its model.
        turn: jobs that run or wait at a time.
        virtual: where virtual tokens begin and end in each job's prefix.
        fingerprint: identifies the weights of base model and soft prompt, as OpenAI's `system_fingerprint`.
        answer: how words, thoughts and calls of answers are told apart; None: they are text.
    """

    id: str
    jobs: tuple[Job, ...]
    given: tuple[GivenText, ...]
    stops: tuple[str, ...]
    prompt_tokens: int
    fingerprint: str
    n: int
    ignored: tuple[str, ...]
    turn: int
    virtual: tuple[int, int]
    answer: AnswerFormat | None = None

    def text_tokens_among(self, count: int) -> int:
        """How many of a job's first tokens are not virtual."""
        start, stop = self.virtual
        return min(count, start) + max(0, count - stop)


class JobMaker:
    """Turns the texts of requests into jobs, whose lengths are those of the limits and of the engine's context.

    Args:
        vocab: number of tokens of the base model.
    """

    def __init__(self, engine: Engine, limits: Limits, vocab: int) -> None:
        self._engine, self._limits = engine, limits
        self._vocab = vocab

    def prepare(
        self,
        request: GenerationRequest,
        texts: Sequence[EncodedPrompt],
        prompt: str | None,
        fingerprint: str,
        turn: int,
        constraint: Constraint | None,
        answer: AnswerFormat | None,
    ) -> PreparedRequest:
        """The request's jobs, `n` for each text. Raises ApiError for a text that is too long, or a bias of no token.

        Args:
            prompt: the soft prompt's name in the engine; None is the base model alone.
            fingerprint, turn: as in PreparedRequest.
            constraint: that all answers are held to.
            answer: how words, thoughts and calls of answers are told apart; None: they are text.
        """
        if strange := [token for token, _ in request.bias if token >= self._vocab]:
            raise invalid(f"logit_bias: {strange[0]} is no token: they are 0 to {self._vocab - 1}.", "logit_bias")
        name = uuid.uuid4().hex
        answered = [ids for ids in texts for _ in range(request.made)]
        jobs = tuple(
            replace(self._job(request, ids, prompt, name, number), constraint=constraint)
            for number, ids in enumerate(answered)
        )
        return PreparedRequest(
            id=name,
            jobs=jobs,
            given=tuple(given_text(request, ids) for ids in answered),
            stops=request.sampling.stop,
            prompt_tokens=sum(ids.text_tokens for ids in texts),
            fingerprint=fingerprint,
            n=request.made,
            ignored=tuple(dict.fromkeys(name for ids in texts for name in ids.ignored)),
            turn=turn,
            virtual=texts[0].virtual,
            answer=answer,
        )

    def _job(self, request: GenerationRequest, ids: EncodedPrompt, prompt: str | None, name: str, number: int) -> Job:
        room = self._room(request, ids)
        length = min(room if request.new_tokens is None else max(1, request.new_tokens), self._limits.new_tokens)
        ignores = request.ignore_eos
        seed = (request.sampling.seed + number) % 2**63
        sampling = replace(request.sampling, max_new_tokens=length, seed=seed, stop=())
        return Job(
            f"{name}-{number}",
            prompt,
            ids.ids,
            sampling,
            frozenset() if ignores and request.grammar is None else ids.end_ids,
            request.penalties,
            0 if request.logprobs is None and request.made > request.n else request.logprobs,
            request.tenant,
            request.bias,
            length if ignores and request.grammar is not None else min(request.min_tokens, length),
            given_text(request, ids).scores,
        )

    def _room(self, request: GenerationRequest, ids: EncodedPrompt) -> int:
        """Tokens that the context has left for an answer. Raises ApiError, in OpenAI's words, if they are too few."""
        context, new = self._engine.context, request.new_tokens or 1
        most = self._limits.prompt_tokens or context
        virtual = ids.taken - ids.text_tokens
        held = f"{ids.taken} in the {request.param}" + (f", {virtual} of them of the soft prompt" if virtual else "")
        if self._limits.prompt_tokens and ids.taken > most:
            length = f"This model's maximum context length is {context} tokens, and of these {most} for the prompt"
            raise self._too_long(f"{length} (serve --limit prompt_tokens={most}). However, there are {held}.", request)
        if context - ids.taken < new:
            length = f"This model's maximum context length is {context} tokens. However, you requested"
            wanted = f"{ids.taken + new} tokens ({held}, {new} in the completion)"
            raise self._too_long(f"{length} {wanted}.", request)
        return context - ids.taken

    def _too_long(self, message: str, request: GenerationRequest) -> ApiError:
        # The code stands in the message too: of openai-python 3 LangChain sees no more than that.
        advice = f"Please reduce the length of the {request.param} or of the completion (context_length_exceeded)."
        return invalid(f"{message} {advice}", request.param, "context_length_exceeded")


class TokenTimer:
    """Measures an answer's time in the queue, to its first token and between its tokens."""

    def __init__(self, metrics: ServerMetrics, opened: float) -> None:
        self._metrics, self._last = metrics, opened
        self._first = True

    def tick(self, token: Token) -> None:
        now = time.monotonic()
        if token.queue_s is not None:
            self._metrics.queue.observe(token.queue_s)
        histogram = self._metrics.first_token if self._first else self._metrics.between_tokens
        histogram.observe(now - self._last)
        self._last, self._first = now, False
