"""Samples the next token of one job from its logits, with the job's own random generator.

Logits pass, in this order: bias, penalties, what may not be said now (`min_tokens`, a grammar), temperature, top-k,
top-p, min-p.
Penalties count the ids of text and answer, never virtual tokens.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from softprompt.engine.base import Job, Token
from softprompt.errors import EngineError
from softprompt.inference.sampling import GREEDY, sample_token


class Sampler:
    """Samples one job's answer, token for token as `inference.decoding.decode_batch` does with the same seed.

    Attributes:
        length: tokens chosen so far.
        plain: whether the answer is greedy and the argmax of the model's own logits suffices.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._answer = job, Counter[int]()
        self._generator = torch.Generator().manual_seed(job.sampling.seed)
        self.length = 0
        penalties = job.penalties
        self._penalized = (penalties.repetition, penalties.presence, penalties.frequency) != (1, 0, 0)
        self._changed = self._penalized or bool(job.bias)
        self._state = None if job.constraint is None else job.constraint.begin()
        self._ends = job.end_ids or (frozenset() if job.constraint is None else job.constraint.ends)
        is_free = not self._changed and job.min_tokens == 0 and job.constraint is None
        self.plain = job.sampling.temperature < GREEDY and is_free and job.logprobs is None

    def next(self, logits_V: Tensor, best: int) -> Token:
        """The next token.

        Args:
            logits_V: float32, on the CPU unless the sampler is plain.
            best: the token with the largest of them.

        Raises:
            EngineError: the logits are not finite, or the grammar has become too complex.
        """
        if not logits_V[best].isfinite():  # argmax returns a NaN if there is one
            raise EngineError("the model's logits are not finite", where=self._job.prompt or "base model")
        if self.plain:
            return Token(best, self._finish(best))
        logits_V = self._changed_logits(logits_V) if self._changed else logits_V
        token = sample_token(self._allowed(logits_V), self._job.sampling, self._generator)
        finish = self._finish(token)
        self._answer[token] += 1
        if self._state is not None and not finish:
            self._state.accept(token)
        if self._job.logprobs is None:
            return Token(token, finish)
        logprobs_V = logits_V.log_softmax(-1)
        likeliest = logprobs_V.topk(min(self._job.logprobs, len(logprobs_V)))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return Token(token, finish, logprobs_V[token].item(), tuple(pairs))

    def _finish(self, token: int) -> str:
        self.length += 1
        if token in self._ends:
            return "stop"
        return "length" if self.length >= self._job.sampling.max_new_tokens else ""

    def _changed_logits(self, logits_V: Tensor) -> Tensor:
        """With bias and penalties."""
        logits_V = logits_V.clone()
        if self._job.bias:
            ids, values = zip(*self._job.bias, strict=True)
            logits_V.index_add_(0, torch.tensor(ids), torch.tensor(values, dtype=logits_V.dtype))
        return self._penalize(logits_V) if self._penalized else logits_V

    def _allowed(self, logits_V: Tensor) -> Tensor:
        """Without the tokens that may not be said now."""
        may_end = self.length >= self._job.min_tokens
        if self._state is not None:
            allowed_V = self._state.allowed(len(logits_V), self._ends, may_end=may_end)
            return logits_V.masked_fill(~allowed_V, -math.inf)
        ends = [] if may_end else sorted(self._ends)
        return logits_V.index_fill(0, torch.tensor(ends), -math.inf) if ends else logits_V

    def _penalize(self, logits_V: Tensor) -> Tensor:
        penalties = self._job.penalties
        seen = torch.tensor(sorted({*self._job.ids, *self._answer}))
        logits = logits_V[seen]
        logits_V[seen] = torch.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
        if self._answer:
            counts = torch.tensor(list(self._answer.values()))
            logits_V[torch.tensor(list(self._answer))] -= penalties.presence + penalties.frequency * counts
        return logits_V
