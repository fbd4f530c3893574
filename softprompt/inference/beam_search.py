"""Beam search: the likeliest answers by summed log-probability, as Transformers' `generate(num_beams=…)` finds them.

Its rules are kept, for the same answers. Of each step's continuations (1 + number of end tokens) · beams are looked at.
An answer's score is the mean log-probability of its tokens, end token included. A row ends when no running beam can
beat its worst finished answer. A row's answers do not depend on its batch mates.

Shapes: B rows, K beams, V vocabulary, C continuations that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softprompt.data.tokenizer import Tokenizer
from softprompt.inference.answer import Answer
from softprompt.inference.detokenizer import Detokenizer
from softprompt.inference.sampling import Sampling, discourage_repetition
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import AnySession

_NEVER = -1.0e9  # the score of a beam that is not there


@dataclass(frozen=True)
class BeamRow:
    """One row of a beam search.

    Attributes:
        seen: tokens of its text, which the repetition penalty counts.
        end_ids: tokens that end an answer; not part of it.
        stops: strings that end an answer.
    """

    seen: Sequence[int]
    end_ids: frozenset[int]
    stops: tuple[str, ...] = ()


@torch.no_grad()
def beam_search(lm: FrozenLM, session: AnySession, rows: Sequence[BeamRow], sampling: Sampling) -> list[list[Answer]]:
    """The `sampling.n` best answers of each row of the session, best first."""
    beams = sampling.num_beams
    searches = [_Search(row, sampling, lm.tokenizer) for row in rows]
    session.keep(torch.arange(len(rows), device=lm.device).repeat_interleave(beams))
    active = searches
    while active:
        logits_BKV = lm.logits(session.hidden).float().view(len(active), beams, -1)
        taken = [search.step(logits_KV) for search, logits_KV in zip(active, logits_BKV, strict=True)]
        going = [i for i, search in enumerate(active) if not search.done]
        kept = [i * beams + parent for i in going for parent in taken[i]]
        active = [active[i] for i in going]
        if active:
            session.keep(torch.tensor(kept, device=lm.device))
            session.step(torch.tensor([ids[-1] for search in active for ids in search.running], device=lm.device))
    return [search.answers() for search in searches]


@dataclass
class _Search:
    """The beams of one row.

    Attributes:
        running: tokens of each running beam.
        scores_K: their summed log-probabilities.
        finished: tokens of each of the K best finished answers, with their end token.
        finished_K: their mean log-probabilities.
        done: no running beam can become one of the best any more.
    """

    row: BeamRow
    sampling: Sampling
    tokenizer: Tokenizer
    running: list[list[int]] = field(default_factory=list)
    finished: list[list[int]] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        beams = self.sampling.num_beams
        self.scores_K, self.finished_K = torch.full((beams,), _NEVER), torch.full((beams,), _NEVER)
        self.scores_K[0] = 0.0  # all beams are the same at first: only one may be continued
        self.running, self.finished = [[] for _ in range(beams)], [[] for _ in range(beams)]

    def step(self, logits_KV: Tensor) -> list[int]:
        """Continue every beam by one token; returns for each new beam the number of the one that it continues."""
        beams, length = self.sampling.num_beams, len(self.running[0]) + 1
        sums_KV = self._logprobs(logits_KV) + self.scores_K[:, None]
        looked_at = max(2, 1 + len(self.row.end_ids)) * beams
        sums_C, places_C = sums_KV.flatten().topk(min(looked_at, sums_KV.numel()))
        parents = (places_C // sums_KV.shape[1]).tolist()
        continued = [
            [*self.running[parent], token]
            for parent, token in zip(parents, (places_C % sums_KV.shape[1]).tolist(), strict=True)
        ]
        ends_C = torch.tensor([self._ends(ids) for ids in continued])
        self._finish(continued, sums_C / length, ends_C)
        self.scores_K, chosen_K = (sums_C + _NEVER * ends_C).topk(beams)
        self.running = [continued[i] for i in chosen_K.tolist()]
        best_possible = self.scores_K[0] / length
        beatable = self.finished_K.min() if all(self.finished) else torch.tensor(_NEVER)
        self.done = bool(ends_C.all()) or not bool(best_possible > beatable)
        return [parents[i] for i in chosen_K.tolist()]

    def answers(self) -> list[Answer]:
        """The best finished answers."""
        return [self._answer(ids) for ids in self.finished[: self.sampling.n]]

    def _logprobs(self, logits_KV: Tensor) -> Tensor:
        """Penalized log-probabilities; on the CPU, where the beams are kept."""
        logprobs_KV = logits_KV.log_softmax(-1).cpu()
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logprobs_KV
        seen = [[*self.row.seen, *ids] for ids in self.running]
        rows = [discourage_repetition(row_V, ids, penalty) for row_V, ids in zip(logprobs_KV, seen, strict=True)]
        return torch.stack(rows)

    def _finish(self, continued: Sequence[list[int]], means_C: Tensor, ends_C: Tensor) -> None:
        """Merge the continuations that ended, of the K best alone, into the finished answers."""
        may_C = ends_C & (torch.arange(len(continued)) < self.sampling.num_beams)
        merged = torch.cat([self.finished_K, means_C + _NEVER * ~may_C])
        ids = [*self.finished, *(ids if may else [] for ids, may in zip(continued, may_C.tolist(), strict=True))]
        self.finished_K, best_K = merged.topk(self.sampling.num_beams)
        self.finished = [ids[i] for i in best_K.tolist()]

    def _ends(self, ids: list[int]) -> bool:
        if ids[-1] in self.row.end_ids or len(ids) >= self.sampling.max_new_tokens:
            return True
        return bool(self.row.stops) and self._written(ids).stopped

    def _written(self, ids: Sequence[int]) -> Detokenizer:
        detokenizer = Detokenizer(self.tokenizer, self.row.stops)
        for token in ids:
            if not detokenizer.stopped:
                detokenizer.append(token)
        return detokenizer

    def _answer(self, ids: list[int]) -> Answer:
        ended = ids[-1] in self.row.end_ids
        written = self._written(ids[:-1] if ended else ids)
        return Answer(written.text, written.ids, "stop" if ended or written.stopped else "length")
