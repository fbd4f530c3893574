"""From logits to the next token of one job, with a random generator of its own.

It sees the text's ids and the answer's, never a virtual one.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from softprompt.engine.base import Job, Token
from softprompt.errors import EngineError
from softprompt.inference.sampling import GREEDY, sample_token


class Sampler:
    """Chooses the tokens of one job's answer, as `softprompt.decode.generate` does for a row of the same seed.

    Attributes:
        length: tokens chosen so far.
        plain: the likeliest token of the model's own logits will do: no need to look at the others.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._answer = job, Counter[int]()
        self._generator = torch.Generator().manual_seed(job.sampling.seed)
        self.length = 0
        penalties = job.penalties
        self._penalised = (penalties.repetition, penalties.presence, penalties.frequency) != (1, 0, 0)
        self.plain = job.sampling.temperature < GREEDY and not self._penalised and job.logprobs is None

    def next(self, logits_V: Tensor, best: int) -> Token:
        """The next token.

        Args:
            logits_V: float32, on the CPU unless the sampler is plain.
            best: the token with the largest of them.

        Raises:
            EngineError: they are no numbers.
        """
        if not logits_V[best].isfinite():  # a NaN is the largest
            raise EngineError("the model's logits are not finite", where=self._job.prompt or "base model")
        if self.plain:
            return Token(best, self._finish(best))
        logits_V = self._less_seen(logits_V) if self._penalised else logits_V
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

    def _less_seen(self, logits_V: Tensor) -> Tensor:
        penalties, logits_V = self._job.penalties, logits_V.clone()
        seen = torch.tensor(sorted({*self._job.ids, *self._answer}))
        found = logits_V[seen]
        logits_V[seen] = torch.where(found > 0, found / penalties.repetition, found * penalties.repetition)
        if self._answer:
            counts = torch.tensor(list(self._answer.values()))
            logits_V[torch.tensor(list(self._answer))] -= penalties.presence + penalties.frequency * counts
        return logits_V
