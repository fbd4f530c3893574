"""Decoding: rows with different soft prompts in one batch; greedy, drawn or by beams; stop strings and streaming.

A row's text does not depend on its batch mates: each has its own random generator, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softprompt.inference.answer import Answer
from softprompt.inference.beam_search import BeamRow, beam_search
from softprompt.inference.detokenizer import Detokenizer
from softprompt.inference.sampling import Sampling, discourage_repetition, sample_token
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import PrefixKV
from softprompt.prefix.prepare import AnySession, copies_prefix, start_decoding

BATCH_ROWS = 32  # decoded at once, where each has a copy of its prefix
_MOST_ROWS = 128  # where all rows share one prefix


def decode_batch(
    lm: FrozenLM,
    prefix_kv: PrefixKV,
    rows: Sequence[Sequence[int]],
    prefix_ids: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[Sequence[int]],
    stops: Sequence[Sequence[str]] | None = None,
    before: Sequence[Sequence[int]] | None = None,
    seeds: Sequence[int] | None = None,
    on_text: Callable[[int, str], None] = lambda row, text: None,
    on_logits: Callable[[Sequence[int], Tensor], None] = lambda rows, logits: None,
) -> list[Answer]:
    """Generate `sampling.n` answers to every row after its prefix; rows of similar length share a batch.

    The answers to row i begin at i · n.

    Args:
        rows: token ids, at least one each.
        prefix_ids: for each row the number of its prefix in `prefix_kv`.
        end_ids: for each row the tokens that end its answer; not part of it.
        stops: for each row strings that end its answer, besides those of `sampling`.
        before: for each row the token ids of its prefix's text, which the repetition penalty counts too.
        seeds: of each answer the seed that its tokens are drawn by; with `sampling.seed` s, s + i of answer i if None.
        on_text: called with the answer's number and its new text, token by token; with the whole text of a beam search.
        on_logits: called at every step with the numbers of the unfinished rows and the float32 logits [rows, V] of
            their next tokens.

    Raises:
        DataError: a row is empty or does not fit in the context with its new tokens.
    """
    copies = 1 if sampling.num_beams > 1 else sampling.n
    order_of = [i for i in range(len(rows)) for _ in range(copies)]
    jobs = [
        _Job(
            rows[i],
            prefix_ids[i],
            frozenset(end_ids[i]),
            (*sampling.stop, *(stops[i] if stops else ())),
            lm.start_ids if lm.is_encoder_decoder else (*(before[i] if before else ()), *rows[i]),
            sampling.seed + number if seeds is None else seeds[number],
        )
        for number, i in enumerate(order_of)
    ]
    return _Batches(lm, prefix_kv, sampling, on_text, on_logits).answers(jobs)


@dataclass(frozen=True)
class _Job:
    """One row to decode.

    Attributes:
        seen: tokens that the repetition penalty counts: the text's, or of an encoder–decoder the answer's start.
        seed: that the answer's tokens are drawn by.
    """

    ids: Sequence[int]
    prefix_id: int
    end_ids: frozenset[int]
    stops: tuple[str, ...]
    seen: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class _Batches:
    """Decodes jobs, as many together as memory allows."""

    lm: FrozenLM
    prefix_kv: PrefixKV
    sampling: Sampling
    on_text: Callable[[int, str], None]
    on_logits: Callable[[Sequence[int], Tensor], None]

    def answers(self, jobs: Sequence[_Job]) -> list[Answer]:
        """The answers in the order of the jobs, those of one job together."""
        sampling, lengths = self.sampling, self.prefix_kv.lengths
        writers = [_Writer(self.lm, replace(sampling, stop=job.stops, seed=job.seed), job) for job in jobs]
        found: dict[int, list[Answer]] = {}
        # Longest first: a row that does not fit is refused before time is spent on others.
        order = sorted(range(len(jobs)), key=lambda i: -(lengths[jobs[i].prefix_id] + len(jobs[i].ids)))
        longest = max((len(job.ids) for job in jobs), default=1)
        together = _together(self.lm, self.prefix_kv, longest + sampling.max_new_tokens)
        together = max(1, together // sampling.num_beams)
        for start in range(0, len(order), together):
            part = order[start : start + together]
            session = start_decoding(
                self.lm,
                self.prefix_kv,
                [jobs[i].ids for i in part],
                [jobs[i].prefix_id for i in part],
                sampling.max_new_tokens,
            )
            if sampling.num_beams > 1:
                found |= zip(part, self._search(session, [jobs[i] for i in part]), strict=True)
            else:
                _decode(self.lm, session, {i: writers[i] for i in part}, self.on_text, self.on_logits)
                found |= {i: [writers[i].answer] for i in part}
        answers = [answer for i in range(len(jobs)) for answer in found[i]]
        for i, answer in enumerate(answers if sampling.num_beams > 1 else ()):
            self.on_text(i, answer.text)
        return answers

    def _search(self, session: AnySession, jobs: Sequence[_Job]) -> list[list[Answer]]:
        rows = [BeamRow(job.seen, job.end_ids, job.stops) for job in jobs]
        return beam_search(self.lm, session, rows, self.sampling)


def _together(lm: FrozenLM, prefix_kv: PrefixKV, row_tokens: int) -> int:
    """Rows decoded at once: after one shared prefix as many as take no more memory than `BATCH_ROWS` with a copy each.

    Args:
        row_tokens: tokens of a row with its answer.
    """
    if copies_prefix(lm, prefix_kv):
        return BATCH_ROWS
    return min(_MOST_ROWS, BATCH_ROWS * (max(prefix_kv.lengths) + row_tokens) // row_tokens)


def _decode(
    lm: FrozenLM,
    session: AnySession,
    writers: dict[int, _Writer],
    on_text: Callable[[int, str], None],
    on_logits: Callable[[Sequence[int], Tensor], None],
) -> None:
    """Step until every row of the session is finished; `writers` by row number, in the session's order."""
    active = list(writers)
    while active:
        logits = lm.logits(session.hidden).float()
        on_logits(active, logits)
        tokens = [writers[row].choose(logits[i]) for i, row in enumerate(active)]
        for row, token in zip(active, tokens, strict=True):
            new = writers[row].append(token)
            if new:
                on_text(row, new)
        going = _moved_up([i for i, row in enumerate(active) if not writers[row].answer.finish])
        if len(going) < len(active):
            session.keep(torch.tensor(going, dtype=torch.long, device=lm.device))
        active = [active[i] for i in going]
        if active:
            session.step(torch.tensor([tokens[i] for i in going], device=lm.device))


def _moved_up(going: list[int]) -> list[int]:
    """These rows, ascending, so that each keeps its place but the last ones, which take the empty places."""
    inside = {i for i in going if i < len(going)}
    outside = [i for i in going if i >= len(going)]
    return [i if i in inside else outside.pop() for i in range(len(going))]


class _Writer:
    """One row's answer in the making."""

    def __init__(self, lm: FrozenLM, sampling: Sampling, job: _Job) -> None:
        self.sampling, self.job = sampling, job
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.detokenizer = Detokenizer(lm.tokenizer, sampling.stop)
        self.answer = Answer(ids=self.detokenizer.ids)

    def choose(self, logits_V: Tensor) -> int:
        penalty = self.sampling.repetition_penalty
        if penalty != 1:
            logits_V = discourage_repetition(logits_V, [*self.job.seen, *self.answer.ids], penalty)
        return sample_token(logits_V, self.sampling, self.generator)

    def append(self, token: int) -> str:
        """Take a token; returns the text that can be shown now."""
        answer, detokenizer = self.answer, self.detokenizer
        if token in self.job.end_ids:
            answer.finish, answer.end = "stop", token
        else:
            detokenizer.append(token)
            answer.text = detokenizer.text
            if detokenizer.stopped:
                answer.finish = "stop"
            elif len(answer.ids) >= self.sampling.max_new_tokens:
                answer.finish = "length"
        return detokenizer.take(end=bool(answer.finish))
