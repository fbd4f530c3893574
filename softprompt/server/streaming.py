"""Turns an engine's tokens into pieces of text, and merges several answers into one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.engine.base import Engine, Job, Token
from softprompt.inference.detokenizer import Detokenizer

MAX_WAITING_PIECES = 32  # pieces buffered for a slow client before its answers pause


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer with its log-probability.

    Attributes:
        start: number of characters of the answer before it.
        likeliest: (token, log-probability), the likeliest first.
    """

    text: str
    start: int
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextPiece:
    """The new part of an answer.

    Attributes:
        choice: number of the answer.
        text: new text, possibly empty.
        scored: tokens whose text begins in the text so far, if log-probabilities are reported.
        tokens: number of tokens since the last piece.
        finish: "stop" or "length" for the last piece, else "".
    """

    choice: int
    text: str
    scored: tuple[ScoredToken, ...]
    tokens: int
    finish: str


async def stream_text(
    engine: Engine, job: Job, choice: int, tokenizer: Tokenizer, stops: Sequence[str], on_token: Callable[[Token], None]
) -> AsyncGenerator[TextPiece, None]:
    """One answer as it is generated; closing the generator cancels its job.

    Args:
        stops: strings that end the answer, without being part of it.
        on_token: called with every token of the engine.
    """
    detokenizer, waiting = Detokenizer(tokenizer, stops), deque[ScoredToken]()
    reported = 0
    async with aclosing(engine.stream(job)) as tokens:
        async for token in tokens:
            on_token(token)
            ended = token.finish == "stop"
            if not ended:
                start = len(detokenizer.text)
                detokenizer.append(token.id)
                if token.logprob is not None:
                    waiting.append(_scored(token, start, token.logprob, tokenizer))
            finish = "stop" if ended or detokenizer.stopped else token.finish
            text = detokenizer.take(end=bool(finish))
            scored = _due(waiting, detokenizer, finish)
            if text or finish:
                reported, new = len(detokenizer.ids), len(detokenizer.ids) - reported
                yield TextPiece(choice, text, scored, new, finish)
            if finish:
                return


def _due(waiting: deque[ScoredToken], detokenizer: Detokenizer, finish: str) -> tuple[ScoredToken, ...]:
    """Tokens whose text begins before the text still held back, or before the stop string that ended it."""
    due = []
    whole = bool(finish) and not detokenizer.stopped
    while waiting and (whole or waiting[0].start < detokenizer.shown):
        due.append(waiting.popleft())
    return tuple(due)


def _scored(token: Token, start: int, logprob: float, tokenizer: Tokenizer) -> ScoredToken:
    likeliest = tuple((decode([other], tokenizer), value) for other, value in token.likeliest)
    return ScoredToken(decode([token.id], tokenizer), start, logprob, likeliest)


async def merge_streams(streams: Sequence[AsyncGenerator[TextPiece, None]]) -> AsyncGenerator[TextPiece, None]:
    """Pieces of all streams as they come. The first error ends all of them, and so does closing the generator."""
    queue: asyncio.Queue[TextPiece | BaseException | None] = asyncio.Queue(MAX_WAITING_PIECES)
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
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
    stream: AsyncGenerator[TextPiece, None], queue: asyncio.Queue[TextPiece | BaseException | None]
) -> None:
    try:
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                await queue.put(piece)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
