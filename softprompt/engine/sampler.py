"""Samples the next token of one job from its logits, with the job's own random generator.

Penalties count the ids of text and answer, never virtual tokens.
"""

from __future__ import annotations

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
        plain: whether the answer is greedy without penalties and log-probabilities, so the argmax suffices.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._answer = job, Counter[int]()
        self._generator = torch.Generator().manual_seed(job.sampling.seed)
        self.length = 0
        penalties = job.penalties
        self._penalized = (penalties.repetition, penalties.presence, penalties.frequency) != (1, 0, 0)
        self.plain = job.sampling.temperature < GREEDY and not self._penalized and job.logprobs is None

    def next(self, logits_V: Tensor, best: int) -> Token:
        """The next token.

        Args:
            logits_V: float32, on the CPU unless the sampler is plain.
            best: the token with the largest of them.

        Raises:
            EngineError: the logits are not finite.
        """
        if not logits_V[best].isfinite():  # argmax returns a NaN if there is one
            raise EngineError("the model's logits are not finite", where=self._job.prompt or "base model")
        if self.plain:
            return Token(best, self._finish(best))
        logits_V = self._penalize(logits_V) if self._penalized else logits_V
        token = sample_token(logits_V, self._job.sampling, self._generator)
        finish = self._finish(token)
        self._answer[token] += 1
        if self._job.logprobs is None:
            return Token(token, finish)
        logprobs_V = logits_V.log_softmax(-1)
        likeliest = logprobs_V.topk(min(self._job.logprobs, len(logprobs_V)))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return Token(token, finish, logprobs_V[token].item(), tuple(pairs))

    def _finish(self, token: int) -> str:
        self.length += 1
        if token in self._job.end_ids:
            return "stop"
        return "length" if self.length >= self._job.sampling.max_new_tokens else ""

    def _penalize(self, logits_V: Tensor) -> Tensor:
        penalties, logits_V = self._job.penalties, logits_V.clone()
        seen = torch.tensor(sorted({*self._job.ids, *self._answer}))
        logits = logits_V[seen]
        logits_V[seen] = torch.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
        if self._answer:
            counts = torch.tensor(list(self._answer.values()))
            logits_V[torch.tensor(list(self._answer))] -= penalties.presence + penalties.frequency * counts
        return logits_V
