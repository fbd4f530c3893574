"""Decoding: rows with different soft prompts in one batch, greedy or sampled, with stop strings and streaming.

A row's text does not depend on its batch mates: each has its own random generator, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softprompt.inference.detokenizer import Detokenizer
from softprompt.inference.sampling import Sampling, sample_token
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import PrefixKV
from softprompt.prefix.prepare import AnySession, copies_prefix, start_decoding

BATCH_ROWS = 32  # decoded at once, where each has a copy of its prefix
_MOST_ROWS = 128  # where all rows share one prefix


@dataclass
class Answer:
    """The generated text of one row.

    Attributes:
        text: up to the end token or stop string.
        ids: its token ids.
        finish: reason of the end, "stop" or "length".
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""


def decode_batch(
    lm: FrozenLM,
    prefix_kv: PrefixKV,
    rows: Sequence[Sequence[int]],
    prefix_ids: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[Sequence[int]],
    stops: Sequence[Sequence[str]] | None = None,
    on_text: Callable[[int, str], None] = lambda row, text: None,
    on_logits: Callable[[Sequence[int], Tensor], None] = lambda rows, logits: None,
) -> list[Answer]:
    """Generate an answer to every row after its prefix; rows of similar length share a batch.

    Args:
        rows: token ids, at least one each.
        prefix_ids: for each row the number of its prefix in `prefix_kv`.
        end_ids: for each row the tokens that end its answer; not part of it.
        stops: for each row strings that end its answer, besides those of `sampling`.
        on_text: called with the row's number and its new text, token by token.
        on_logits: called at every step with the numbers of the unfinished rows and the float32 logits [rows, V] of
            their next tokens.

    Raises:
        DataError: a row is empty or does not fit in the context with its new tokens.
    """
    extra = stops or [()] * len(rows)
    writers = [
        _Writer(lm, replace(sampling, stop=(*sampling.stop, *extra[i]), seed=sampling.seed + i), set(end_ids[i]))
        for i in range(len(rows))
    ]
    # Longest first: a row that does not fit is refused before time is spent on others.
    order = sorted(range(len(rows)), key=lambda i: -(prefix_kv.lengths[prefix_ids[i]] + len(rows[i])))
    together = _together(lm, prefix_kv, max(map(len, rows), default=1) + sampling.max_new_tokens)
    for start in range(0, len(order), together):
        part = order[start : start + together]
        session = start_decoding(
            lm, prefix_kv, [rows[i] for i in part], [prefix_ids[i] for i in part], sampling.max_new_tokens
        )
        _decode(lm, session, {i: writers[i] for i in part}, on_text, on_logits)
    return [writer.answer for writer in writers]


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

    def __init__(self, lm: FrozenLM, sampling: Sampling, end_ids: set[int]) -> None:
        self.sampling, self.end_ids = sampling, end_ids
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.detokenizer = Detokenizer(lm.tokenizer, sampling.stop)
        self.answer = Answer(ids=self.detokenizer.ids)

    def choose(self, logits_V: Tensor) -> int:
        return sample_token(logits_V, self.sampling, self.generator)

    def append(self, token: int) -> str:
        """Take a token; returns the text that can be shown now."""
        answer, detokenizer = self.answer, self.detokenizer
        if token in self.end_ids:
            answer.finish = "stop"
        else:
            detokenizer.append(token)
            answer.text = detokenizer.text
            if detokenizer.stopped:
                answer.finish = "stop"
            elif len(answer.ids) >= self.sampling.max_new_tokens:
                answer.finish = "length"
        return detokenizer.take(end=bool(answer.finish))
