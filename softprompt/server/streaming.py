"""Turns an engine's tokens into pieces of text, and merges several answers into one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from typing_extensions import TypedDict

from softprompt.data.tokenizer import Tokenizer
from softprompt.engine.base import Engine, Job, Token
from softprompt.inference.detokenizer import Detokenizer
from softprompt.server.answer_parts import AnswerFormat, AnswerParts, AnswerReader
from softprompt.server.call_text import CallPart
from softprompt.server.token_text import TokenText, TokenTexts

LEAST = -9999.0  # reported for a token that the model gives no probability, since JSON has no infinity; as in vLLM
MAX_WAITING_PIECES = 32  # pieces buffered for a slow client before its answers pause


class PromptLogprob(TypedDict):
    """A token of a request's own text, or one that is likely in its place, as vLLM reports it."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer, or of the text that it repeats, with its log-probability.

    Attributes:
        start: number of characters of the answer before it.
        logprob: None for a repeated token that nothing predicts.
        likeliest: (token, log-probability), the likeliest first.
    """

    token: TokenText
    start: int
    logprob: float | None
    likeliest: tuple[tuple[TokenText, float], ...]


@dataclass(frozen=True)
class TextPiece:
    """The new part of an answer.

    Attributes:
        choice: number of the answer.
        text: new text, possibly empty.
        scored: tokens whose text begins in the text so far, if log-probabilities are reported.
        tokens: number of tokens since the last piece.
        finish: "stop", "length" or "tool_calls" for the last piece, else "".
        thought: new text of the thought before the answer, for a model whose chat template has thoughts.
        calls: parts of the functions that the answer calls; of one call at most one.
        prompt: for each token of the request's text the token and its likeliest alternatives by id, None for a token
            that nothing predicts; with the first piece, if they are reported.
        cached: with an answer's first piece, tokens of its prefix and text that the engine found in its cache.
    """

    choice: int
    text: str
    scored: tuple[ScoredToken, ...]
    tokens: int
    finish: str
    cached: int = 0
    prompt: tuple[dict[str, PromptLogprob] | None, ...] | None = None
    thought: str = ""
    calls: tuple[CallPart, ...] = ()


async def stream_text(
    engine: Engine,
    job: Job,
    choice: int,
    tokenizer: Tokenizer,
    stops: Sequence[str],
    on_token: Callable[[Token], None],
    *,
    keeps_special: bool = False,
) -> AsyncGenerator[TextPiece, None]:
    """One answer as it is generated; closing the generator cancels its job.

    Args:
        stops: strings that end the answer, without being part of it.
        on_token: called with every token of the engine.
        keeps_special: whether control tokens are part of the text.
    """
    detokenizer, waiting = Detokenizer(tokenizer, stops, skip_special_tokens=not keeps_special), deque[ScoredToken]()
    texts, reported = TokenTexts(tokenizer), 0
    cached = 0
    async with aclosing(engine.stream(job)) as tokens:
        async for token in tokens:
            on_token(token)
            ended, cached = token.finish == "stop", cached + token.cached
            if not ended:
                start, before = len(detokenizer.text), detokenizer.ids[-1] if detokenizer.ids else None
                detokenizer.append(token.id)
                if token.logprob is not None:
                    waiting.append(scored_token(token.id, start, token.logprob, token.likeliest, texts, before))
            finish = "stop" if ended or detokenizer.stopped else token.finish
            text = detokenizer.take(end=bool(finish))
            scored = _due(waiting, detokenizer, finish)
            if text or finish:
                reported, new = len(detokenizer.ids), len(detokenizer.ids) - reported
                yield TextPiece(choice, text, scored, new, finish, cached)
                cached = 0
            if finish:
                return


async def told_apart(
    pieces: AsyncGenerator[TextPiece, None], answer: AnswerFormat | None
) -> AsyncGenerator[TextPiece, None]:
    """The pieces with words, thoughts and calls in their own fields; as they are without a format."""
    reader = None if answer is None else AnswerReader(answer)
    scored, tokens = tuple[ScoredToken, ...](), 0
    async with aclosing(pieces):
        async for piece in pieces:
            if reader is None:
                yield piece
                continue
            parts = reader.read(piece.text, end=bool(piece.finish))
            finish = "tool_calls" if piece.finish == "stop" and reader.called else piece.finish
            scored, tokens = (*scored, *piece.scored), tokens + piece.tokens
            if parts != AnswerParts() or finish or piece.prompt is not None:
                first = replace(piece, text=parts.text, thought=parts.thought, scored=scored, tokens=tokens, finish="")
                made = [replace(first, calls=parts.calls[:1])]
                made += [TextPiece(piece.choice, "", (), 0, "", calls=(part,)) for part in parts.calls[1:]]
                for one in made[:-1]:
                    yield one
                yield replace(made[-1], finish=finish)
                scored, tokens = (), 0


def _due(waiting: deque[ScoredToken], detokenizer: Detokenizer, finish: str) -> tuple[ScoredToken, ...]:
    """Tokens whose text begins before the text still held back, or before the stop string that ended it."""
    due = []
    whole = bool(finish) and not detokenizer.stopped
    while waiting and (whole or waiting[0].start < detokenizer.shown):
        due.append(waiting.popleft())
    return tuple(due)


def scored_token(
    token: int,
    start: int,
    logprob: float | None,
    likeliest: Sequence[tuple[int, float]],
    texts: TokenTexts,
    before: int | None,
) -> ScoredToken:
    """The token and its likeliest alternatives as texts; `before` is the token before it, if there is one."""
    others = tuple((texts.of(other, before), max(value, LEAST)) for other, value in likeliest)
    return ScoredToken(texts.of(token, before), start, None if logprob is None else max(logprob, LEAST), others)


async def merge_streams(
    streams: Iterator[AsyncGenerator[TextPiece, None]], at_once: int
) -> AsyncGenerator[TextPiece, None]:
    """Pieces of all streams as they come. The first error ends all of them, and so does closing the generator.

    Args:
        at_once: streams that are read at a time; the next one is begun when one has ended.
    """
    queue: asyncio.Queue[TextPiece | BaseException | None] = asyncio.Queue(MAX_WAITING_PIECES)
    tasks = [asyncio.create_task(_pump(streams, queue)) for _ in range(at_once)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    streams: Iterator[AsyncGenerator[TextPiece, None]], queue: asyncio.Queue[TextPiece | BaseException | None]
) -> None:
    try:
        for stream in streams:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
