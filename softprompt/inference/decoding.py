"""Decoding: rows with different soft prompts in one batch, greedy or sampled, with stop strings and streaming.

A row's text does not depend on its batch mates: each has its own random generator, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softprompt.data.tokenizer import Tokenizer
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.decoding import Session
from softprompt.prefix.kv import Bank
from softprompt.prefix.prepare import copies_prefix, session
from softprompt.prefix.seq2seq_decoding import AnsweringSession

ROWS = 32  # decoded at once, where each has a copy of its prefix
MOST_ROWS = 128  # where one prefix is there once for all
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
    on_logits: Callable[[Sequence[int], Tensor], None] = lambda rows, logits: None,
) -> list[Answer]:
    """Continue every row behind its own prefix; any number of rows, those of like length together.

    Args:
        rows: token ids, at least one each.
        owners: the prefix of each row by its number in the bank.
        end_ids: for each row the tokens that end its answer; not part of it.
        stops: for each row strings that end its answer, besides those of `sampling`.
        on_text: is told of new text as it comes, with the row's number.
        on_logits: is told at every step of the rows that go on, and of the float32 logits [rows, V] that their next
            tokens are chosen from.

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
    together = _together(lm, bank, max(map(len, rows), default=1) + sampling.max_new_tokens)
    for start in range(0, len(order), together):
        part = order[start : start + together]
        growing = session(lm, bank, [rows[i] for i in part], [owners[i] for i in part], sampling.max_new_tokens)
        _decode(lm, growing, {i: writers[i] for i in part}, on_text, on_logits)
    return [writer.answer for writer in writers]


def _together(lm: FrozenLM, bank: Bank, own: int) -> int:
    """Rows decoded at once: behind one prefix as many as take no more memory than `ROWS` with a copy each.

    Args:
        own: tokens of a row in the end.
    """
    if copies_prefix(lm, bank):
        return ROWS
    return min(MOST_ROWS, ROWS * (max(bank.lengths) + own) // own)


def _decode(
    lm: FrozenLM,
    growing: Session | AnsweringSession,
    writers: dict[int, _Writer],
    on_text: Callable[[int, str], None],
    on_logits: Callable[[Sequence[int], Tensor], None],
) -> None:
    """Step until every row of the session is finished; `writers` by row number, in the session's order."""
    active = list(writers)
    while active:
        logits = lm.logits(growing.hidden).float()
        on_logits(active, logits)
        tokens = [writers[row].choose(logits[i]) for i, row in enumerate(active)]
        for row, token in zip(active, tokens, strict=True):
            new = writers[row].append(token)
            if new:
                on_text(row, new)
        going = _moved_up([i for i, row in enumerate(active) if not writers[row].answer.finish])
        if len(going) < len(active):
            growing.keep(torch.tensor(going, dtype=torch.long, device=lm.device))
        active = [active[i] for i in going]
        if active:
            growing.step(torch.tensor([tokens[i] for i in going], device=lm.device))


def _moved_up(going: list[int]) -> list[int]:
    """These rows, ascending, so that each keeps its place but the last ones, which take the empty places."""
    inside = {i for i in going if i < len(going)}
    behind = [i for i in going if i >= len(going)]
    return [i if i in inside else behind.pop() for i in range(len(going))]


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
    keep = before < sampling.top_p
    keep[0] = True  # also where top_p is nothing in float32
    return kept[keep], ids[keep]


class Transcript:
    """An answer's text in the making: tokens in, text out; half a character, or what may become a stop string, waits.

    Only the last tokens are decoded again with each new one, as much as a character or a word may need.

    Attributes:
        ids: the tokens so far.
        text: their text, up to the first stop string.
        stopped: a stop string was found.
        shown: how much of the text `take` gave out.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.ids: list[int] = []
        self.text, self.stopped, self.shown = "", False, 0
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._held = max(0, max(map(len, self._stop), default=0) - 1)
        self._sure = ""  # text of the tokens before `_next`, which no later token changes
        self._start, self._next = 0, 0  # tokens between the two are decoded again, as context of those behind

    def append(self, token: int) -> None:
        """Take the next token."""
        self.ids.append(token)
        before, now = self._decoded(self._start, self._next), self._decoded(self._start, len(self.ids))
        if not now.startswith(before):  # a tokenizer that tidies spaces up
            self._sure, self._start, self._next = "", 0, 0
            before, now = "", self._decoded(0, len(self.ids))
        searched = len(self._sure)
        self.text = self._sure + now[len(before) :]
        if len(now) > len(before) and not now.endswith(CUT):
            self._sure, self._start, self._next = self.text, self._next, len(self.ids)
        cuts = [at for stop in self._stop if (at := self.text.find(stop, max(0, searched - len(stop) + 1))) >= 0]
        if cuts:
            self.text, self.stopped = self.text[: min(cuts)], True

    def take(self, *, end: bool) -> str:
        """Text that was not given out yet and can be now; with `end` all that is left."""
        stop = len(self.text)
        if not end:
            whole = len(self.text.rstrip(CUT))  # behind it a character may be cut in half
            stop = max(self.shown, whole - self._held)
        new, self.shown = self.text[self.shown : stop], max(self.shown, stop)
        return new

    def _decoded(self, start: int, stop: int) -> str:
        text = self._tokenizer.decode(self.ids[start:stop], skip_special_tokens=True)
        assert isinstance(text, str), "one sequence decodes to one text"
        return text


class _Writer:
    """One row's answer in the making."""

    def __init__(self, lm: FrozenLM, sampling: Sampling, end_ids: set[int]) -> None:
        self.sampling, self.end_ids = sampling, end_ids
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.transcript = Transcript(lm.tokenizer, sampling.stop)
        self.answer = Answer(ids=self.transcript.ids)

    def choose(self, logits_V: Tensor) -> int:
        return pick(logits_V, self.sampling, self.generator)

    def append(self, token: int) -> str:
        """Take a token; returns the text that can be shown now."""
        answer, transcript = self.answer, self.transcript
        if token in self.end_ids:
            answer.finish = "stop"
        else:
            transcript.append(token)
            answer.text = transcript.text
            if transcript.stopped:
                answer.finish = "stop"
            elif len(answer.ids) >= self.sampling.max_new_tokens:
                answer.finish = "length"
        return transcript.take(end=bool(answer.finish))
