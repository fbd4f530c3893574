"""Decoding: rows with different soft prompts in one batch, greedy or sampled, with stop strings and streaming.

A row's text does not depend on its batch mates: each has its own random generator, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softprompt.attach import AnsweringSession, Bank, Session, session
from softprompt.errors import ConfigError
from softprompt.model import FrozenLM

ROWS = 32  # decoded at once
GREEDY = 1e-5  # below it logits / temperature may overflow
CUT = "\N{REPLACEMENT CHARACTER}"  # what a token that ends inside a character decodes to


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop.

    Attributes:
        temperature: 0 is greedy.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that make up this probability.
        stop: strings that end a text; they are not part of it.
        seed: with it, row i draws from a generator of its own.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1,
            "temperature": not 0 <= self.temperature < 100,
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "stop": any(not text for text in self.stop),
        }
        for name in (name for name, bad in wrong.items() if bad):
            raise ConfigError(f"{name} is out of range", where="sampling", got=getattr(self, name))


@dataclass
class Answer:
    """What one row got: the text, its token ids, and why it ended ("stop", "length")."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""


def generate(
    lm: FrozenLM,
    bank: Bank,
    rows: Sequence[Sequence[int]],
    owners: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[Sequence[int]],
    stops: Sequence[Sequence[str]] | None = None,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[Answer]:
    """Continue every row behind its own prefix; any number of rows, those of like length together.

    Args:
        rows: token ids, at least one each.
        owners: the prefix of each row by its number in the bank.
        end_ids: for each row the tokens that end its answer; not part of it.
        stops: for each row strings that end its answer, besides those of `sampling`.
        on_text: is told of new text as it comes, with the row's number.

    Raises:
        DataError: a row is empty or does not fit in the context with its new tokens.
    """
    extra = stops or [()] * len(rows)
    writers = [
        _Writer(lm, replace(sampling, stop=(*sampling.stop, *extra[i]), seed=sampling.seed + i), set(end_ids[i]))
        for i in range(len(rows))
    ]
    # Longest first: a row that does not fit is refused before time is spent on others.
    order = sorted(range(len(rows)), key=lambda i: -(bank.lengths[owners[i]] + len(rows[i])))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        growing = session(lm, bank, [rows[i] for i in part], [owners[i] for i in part], sampling.max_new_tokens)
        _decode(lm, growing, {i: writers[i] for i in part}, on_text)
    return [writer.answer for writer in writers]


def _decode(
    lm: FrozenLM,
    growing: Session | AnsweringSession,
    writers: dict[int, _Writer],
    on_text: Callable[[int, str], None],
) -> None:
    """Step until every row of the session is finished; `writers` by row number, in the session's order."""
    active = list(writers)
    while active:
        logits = lm.logits(growing.hidden).float()
        tokens = [writers[row].choose(logits[i]) for i, row in enumerate(active)]
        for row, token in zip(active, tokens, strict=True):
            new = writers[row].append(token)
            if new:
                on_text(row, new)
        going = [i for i, row in enumerate(active) if not writers[row].answer.finish]
        if len(going) < len(active):
            growing.keep(torch.tensor(going, dtype=torch.long, device=lm.device))
        active = [active[i] for i in going]
        if active:
            growing.step(torch.tensor([tokens[i] for i in going], device=lm.device))


def likeliest(logits: Tensor) -> list[int]:
    """The token of the largest logit, the first of equal ones or of NaN, for each row of [N, V]."""
    if logits.device.type == "cpu":  # NumPy takes a tenth of torch's time there
        return logits.numpy().argmax(-1).tolist()
    return logits.argmax(-1).tolist()


def pick(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from float32 logits [V]."""
    if sampling.temperature < GREEDY:
        return likeliest(logits_V[None])[0]
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
        return probabilities_V, None
    for short in (64, 1024, size):
        kept, ids = probabilities_V.topk(min(short, most))
        before = kept.cumsum(0) - kept
        if len(kept) == most or before[-1] >= sampling.top_p:
            break
    keep = before < sampling.top_p  # the first token is always kept
    return kept[keep], ids[keep]


class _Writer:
    """One row's answer in the making: chooses, collects, holds back what may become a stop string."""

    def __init__(self, lm: FrozenLM, sampling: Sampling, end_ids: set[int]) -> None:
        self.lm, self.sampling, self.end_ids = lm, sampling, end_ids
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.answer, self.shown = Answer(), 0
        self.longest_stop = max(map(len, sampling.stop), default=0)

    def choose(self, logits_V: Tensor) -> int:
        return pick(logits_V, self.sampling, self.generator)

    def append(self, token: int) -> str:
        """Take a token; returns the text that can be shown now."""
        answer = self.answer
        if token in self.end_ids:
            answer.finish = "stop"
        else:
            answer.ids.append(token)
            text = self.lm.tokenizer.decode(answer.ids, skip_special_tokens=True)
            assert isinstance(text, str)
            answer.text = text
            cuts = [found for stop in self.sampling.stop if (found := text.find(stop)) >= 0]
            if cuts:
                answer.text, answer.finish = text[: min(cuts)], "stop"
            elif len(answer.ids) >= self.sampling.max_new_tokens:
                answer.finish = "length"
        return self._release()

    def _release(self) -> str:
        text = self.answer.text
        end = len(text)
        if not self.answer.finish:
            whole = len(text.rstrip(CUT))  # behind it a character may be cut in half
            end = max(self.shown, whole - max(0, self.longest_stop - 1))
        new, self.shown = text[self.shown : end], max(self.shown, end)
        return new
