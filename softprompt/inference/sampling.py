"""Sampling: how the next token is chosen from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import ConfigError

GREEDY = 1e-5  # below it logits / temperature may overflow


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop.

    Attributes:
        temperature: 0 is greedy.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that make up this probability.
        stop: strings that end a text; they are not part of it.
        seed: with it, row i draws from a generator of its own.
        repetition_penalty: divides the logits of tokens that the text or the answer has already, and multiplies
            negative ones (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); 1 is none. Virtual tokens are no such
            tokens.
        num_beams: beams of a beam search; 1 is none.
        n: answers to each text: drawn, or the best of the beams.
        min_p: only tokens at least this many times as likely as the likeliest (Nguyen et al. 2024,
            https://arxiv.org/abs/2407.01082), of those that top_k and top_p leave; 0 is all.

    Raises:
        ConfigError: a value out of range, several greedy answers, or beams with a temperature.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    n: int = 1
    min_p: float = 0.0

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1,
            "temperature": not 0 <= self.temperature < 100,
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "stop": any(not text for text in self.stop),
            "repetition_penalty": not 0 < self.repetition_penalty < math.inf,
            "num_beams": self.num_beams < 1,
            "n": self.n < 1,
            "min_p": not 0 <= self.min_p <= 1,
        }
        for name in (name for name, bad in wrong.items() if bad):
            raise ConfigError(f"{name} is out of range", where="sampling", got=getattr(self, name))
        greedy = self.temperature < GREEDY
        if self.num_beams > 1 and not greedy:
            hint = "temperature 0, or num_beams 1"
            raise ConfigError("beams are searched, not drawn", where="num_beams", got=self.temperature, hint=hint)
        if self.n > self.num_beams and greedy:
            got, hint = f"n {self.n}, num_beams {self.num_beams}", "a temperature, or num_beams of at least n"
            raise ConfigError("there is only one greedy answer", where="n", got=got, hint=hint)


def argmax_ids(logits: Tensor) -> list[int]:
    """The token of the largest logit, the first of equal ones or of NaN, for each row of [N, V]."""
    if logits.device.type == "cpu":  # NumPy takes a tenth of torch's time there
        return logits.numpy().argmax(-1).tolist()
    return logits.argmax(-1).tolist()


def discourage_repetition(scores_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Scores [V] (logits or log-probabilities) with those of the tokens in `seen` divided, negative ones multiplied."""
    ids = torch.tensor(sorted(set(seen)), dtype=torch.long, device=scores_V.device)
    scores = scores_V[ids]
    return scores_V.index_copy(0, ids, torch.where(scores > 0, scores / penalty, scores * penalty))


def sample_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from float32 logits [V]."""
    if sampling.temperature < GREEDY:
        return argmax_ids(logits_V[None])[0]
    probabilities_V = torch.softmax(logits_V.cpu() / sampling.temperature, dim=-1)
    kept, ids = _candidates(probabilities_V, sampling)
    sums = kept.cumsum(0, dtype=torch.float64)
    point = torch.rand((), dtype=torch.float64, generator=generator) * sums[-1]
    drawn = min(int(torch.searchsorted(sums, point, right=True)), len(sums) - 1)
    return drawn if ids is None else int(ids[drawn])


def _candidates(probabilities_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """What may be drawn, and its ids; None for ids where that is everything.

    To sort a vocabulary takes longer than all else, and few tokens make up most of the probability: a short list is
    tried first, then a longer one.
    """
    size = len(probabilities_V)
    most = min(sampling.top_k or size, size)
    if most == size and sampling.top_p == 1:
        if sampling.min_p == 0:
            return probabilities_V, None
        ids = (probabilities_V >= sampling.min_p * probabilities_V.max()).nonzero()[:, 0]
        return probabilities_V[ids], ids
    for short in (64, 1024, size):
        kept, ids = probabilities_V.topk(min(short, most))
        before = kept.cumsum(0) - kept
        if len(kept) == most or before[-1] >= sampling.top_p:
            break
    keep = (before < sampling.top_p) & (kept >= sampling.min_p * kept[0])
    keep[0] = True  # also where top_p is nothing in float32
    return kept[keep], ids[keep]
