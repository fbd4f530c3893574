"""The interface of engines: token ids and the name of a soft prompt in, tokens out.

An engine batches any mix of jobs, with soft prompts of all forms and without. It knows nothing about HTTP, keys or
files. Virtual tokens have no id outside an engine, so they never appear in jobs, tokens, counts or log-probabilities.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from softprompt.engine.constraint import Constraint
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix


@dataclass(frozen=True)
class Penalties:
    """Penalties on tokens of the text and of the answer; virtual tokens have no effect.

    Attributes:
        repetition: divides the logits of seen tokens, multiplies negative ones (Keskar et al. 2019,
            https://arxiv.org/abs/1909.05858); over the text's and the answer's tokens.
        presence, frequency: subtracted once, and for every time a token is in the answer (OpenAI's API reference).
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0


@dataclass(frozen=True)
class Job:
    """One text to continue.

    Attributes:
        id: unique among the jobs that run.
        prompt: name of a loaded soft prompt; None is the base model alone.
        ids: the text's token ids, after the prefix of its soft prompt; at least one.
        sampling: stop strings are left to the caller; `seed` makes the answer repeatable.
        end_ids: tokens that end the answer.
        logprobs: number of likeliest tokens to report with each token; None reports none.
        bias: (token, number to add to its logit), before penalties.
        min_tokens: tokens of the answer before which it cannot end.
        tenant: jobs of different tenants never share cached texts, so timing reveals nothing about other tenants.
        prompt_logprobs: number of likeliest tokens to report with each token that the job was given (`Token.prompt`);
            None reports none.
        constraint: grammar that the answer is held to. It ends where the grammar may end, and always where it must.
    """

    id: str
    prompt: str | None
    ids: tuple[int, ...]
    sampling: Sampling
    end_ids: frozenset[int]
    penalties: Penalties = field(default_factory=Penalties)
    logprobs: int | None = None
    tenant: str = ""
    bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class PromptToken:
    """A token that a job was given, with its log-probability after all that stands before it.

    Attributes:
        logprob: natural logarithm of its probability, without temperature and penalties. None for the first token, and
            for the first after the keys and values of a KV prompt, which predict nothing themselves.
        rank: number of likelier tokens plus one; 0 without a log-probability.
        likeliest: (token, log-probability), the likeliest first.
    """

    id: int
    logprob: float | None = None
    rank: int = 0
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        finish: "stop" with an end token, which is not part of the answer; "length" with the last that fits; or "".
        logprob: natural logarithm of its probability: after bias and penalties, before temperature, top-k, top-p,
            min-p, `min_tokens` and constraint.
        likeliest: (token, log-probability), the likeliest first.
        cached: with its first token, tokens of the job's prefix and text, virtual ones too, that were in the cache.
        queue_s: seconds that the job waited for the batch, with its first token and if the engine measures it.
        prompt: with the first token of a job with `prompt_logprobs`, the words of its prefix and its text; no virtual
            token is among them.
    """

    id: int
    finish: str = ""
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    queue_s: float | None = None
    prompt: tuple[PromptToken, ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class EngineStats:
    """The load of an engine.

    Attributes:
        running, waiting: jobs in the batch, and jobs waiting for it.
        kv_usage: share of the cache blocks in use, in [0, 1].
        cached_tokens: tokens of all jobs' prefixes and texts so far that were found in the prefix cache.
        computed_tokens: tokens of all jobs' prefixes and texts so far that were computed.
    """

    running: int
    waiting: int
    kv_usage: float
    cached_tokens: int = 0
    computed_tokens: int = 0


class Engine(Protocol):
    """Runs jobs in one batch. All methods are called from one event loop, and none blocks it."""

    async def start(self) -> None:
        """Become ready for jobs."""

    async def stop(self) -> None:
        """Stop, and with it all running jobs."""

    @property
    def failure(self) -> str:
        """Why no job is accepted any more; "" while the engine works."""
        ...

    @property
    def context(self) -> int:
        """Maximum tokens of a job: prefix, text and answer, including virtual tokens."""
        ...

    async def load(self, name: str, prefix: Prefix) -> None:
        """Load a soft prompt under a name. Running jobs keep an older version of that name.

        Raises EngineError if it does not fit (wrong geometry, no room).
        """

    async def unload(self, name: str) -> None:
        """Unload a soft prompt; running jobs keep it until they end."""

    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded soft prompts."""
        ...

    def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they are generated; the last has a finish. Closing the generator cancels the job.

        Raises EngineError for a name that is not loaded, for what does not fit in the context or in the cache, and for
        a job that failed; other jobs go on.
        """
        ...

    def stats(self) -> EngineStats:
        """The current load."""
        ...

    def check_integrity(self) -> None:
        """Raises AssertionError if blocks, virtual ids or user counts are inconsistent."""
