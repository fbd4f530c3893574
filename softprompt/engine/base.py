"""What a server asks of an engine: token ids and the name of a soft prompt in, tokens out.

An engine batches whatever it is given, any mix of soft prompts of both forms and none; it knows nothing of HTTP, keys
or files. Virtual tokens have no id outside an engine: no job holds one, and no token, count or log-probability is one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix


@dataclass(frozen=True)
class Penalties:
    """What makes tokens of the text and of the answer less likely; virtual tokens count for nothing.

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
        ids: the text's token ids, behind the prefix of its soft prompt; at least one.
        sampling: its stop strings are the caller's business; `seed` makes the answer repeatable.
        end_ids: tokens that end the answer.
        logprobs: for each token how many of the likeliest to report besides it; None reports nothing.
        tenant: jobs of different tenants share no keys and values of texts, at most those of soft prompts: nobody can
            tell from the time of an answer what another has sent.
    """

    id: str
    prompt: str | None
    ids: tuple[int, ...]
    sampling: Sampling
    end_ids: frozenset[int]
    penalties: Penalties = field(default_factory=Penalties)
    logprobs: int | None = None
    tenant: str = ""


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        finish: "stop" with an end token, which is not part of the answer; "length" with the last that fits; or "".
        logprob: natural logarithm of its probability, before temperature, top-k and top-p, after penalties.
        likeliest: (token, log-probability), the likeliest first.
        queue_s: with the first token, the seconds that the job stood in front of the batch, if the engine tells; else
            None.
    """

    id: int
    finish: str = ""
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    queue_s: float | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine is busy with.

    Attributes:
        running, waiting: jobs in the batch, and in front of it.
        kv_usage: share of the blocks for keys and values in use, in [0, 1].
        cached_tokens: of all jobs so far, virtual and text, that were found in the prefix cache.
        computed_tokens: the other ones of their prefixes and texts.
    """

    running: int
    waiting: int
    kv_usage: float
    cached_tokens: int = 0
    computed_tokens: int = 0


class Engine(Protocol):
    """All methods are called from one event loop; none of them blocks it."""

    async def start(self) -> None:
        """Get ready to take jobs."""

    async def stop(self) -> None:
        """End, and with it every job that still runs."""

    @property
    def failure(self) -> str:
        """Why no job can be taken any more; "" while all is well."""
        ...

    @property
    def context(self) -> int:
        """Tokens that the prefix, the text and the answer of a job may have together, virtual ones too."""
        ...

    async def load(self, name: str, prefix: Prefix) -> None:
        """Make a soft prompt known. One of this name is replaced: jobs that run keep the old one.

        Raises EngineError if it does not fit (wrong geometry, no room).
        """

    async def unload(self, name: str) -> None:
        """Forget a soft prompt; jobs that run keep it until they end."""

    def loaded(self) -> tuple[str, ...]:
        """Names that jobs can give."""
        ...

    def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they come; the last has a finish. Closing the generator cancels the job and frees what it held.

        Raises EngineError for a name that is not loaded, for what does not fit in the context or in the cache, and for
        a job that failed; other jobs go on.
        """
        ...

    def stats(self) -> EngineStats:
        """What it is busy with now."""
        ...

    def check_integrity(self) -> None:
        """Raises AssertionError if blocks, virtual ids or reference counts do not add up."""
