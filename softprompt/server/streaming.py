"""The tokens of answers as pieces of text, and several answers as one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.engine.base import Engine, Job, Token
from softprompt.inference.detokenizer import Detokenizer

MAX_WAITING_PIECES = 32  # pieces that may wait for a slow reader before its answers pause


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer with its log-probability.

    Attributes:
        start: characters of the answer in front of it.
        likeliest: (token, log-probability), the likeliest first.
    """

    text: str
    start: int
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextPiece:
    """What is new of an answer.

    Attributes:
        choice: the answer's number.
        text: may be empty.
        scored: the tokens whose text begins in what was given out so far, if they were asked for.
        tokens: how many of the answer came since the last piece.
        finish: "stop" or "length" with the last piece, else "".
    """

    choice: int
    text: str
    scored: tuple[ScoredToken, ...]
    tokens: int
    finish: str


async def stream_text(
    engine: Engine, job: Job, choice: int, tokenizer: Tokenizer, stops: Sequence[str], on_token: Callable[[Token], None]
) -> AsyncGenerator[TextPiece, None]:
    """One answer as it comes; leaving the iterator ends its job.

    Args:
        stops: strings that end it; they are not part of it.
        on_token: is told of every token of the engine.
    """
    transcript, waiting, told = Detokenizer(tokenizer, stops), deque[ScoredToken](), 0
    async with aclosing(engine.stream(job)) as tokens:
        async for token in tokens:
            on_token(token)
            ended = token.finish == "stop"
            if not ended:
                start = len(transcript.text)
                transcript.append(token.id)
                if token.logprob is not None:
                    waiting.append(_scored(token, start, token.logprob, tokenizer))
            finish = "stop" if ended or transcript.stopped else token.finish
            text = transcript.take(end=bool(finish))
            scored = _due(waiting, transcript, finish)
            if text or finish:
                told, new = len(transcript.ids), len(transcript.ids) - told
                yield TextPiece(choice, text, scored, new, finish)
            if finish:
                return


def _due(waiting: deque[ScoredToken], transcript: Detokenizer, finish: str) -> tuple[ScoredToken, ...]:
    """Tokens whose text begins in front of what is still held back, or of the stop string that cut it."""
    due = []
    whole = bool(finish) and not transcript.stopped
    while waiting and (whole or waiting[0].start < transcript.shown):
        due.append(waiting.popleft())
    return tuple(due)


def _scored(token: Token, start: int, logprob: float, tokenizer: Tokenizer) -> ScoredToken:
    likeliest = tuple((decode([other], tokenizer), value) for other, value in token.likeliest)
    return ScoredToken(decode([token.id], tokenizer), start, logprob, likeliest)


async def merge_streams(streams: Sequence[AsyncGenerator[TextPiece, None]]) -> AsyncGenerator[TextPiece, None]:
    """The pieces of all streams as they come. The first error ends all; so does leaving the iterator."""
    queue: asyncio.Queue[TextPiece | BaseException | None] = asyncio.Queue(MAX_WAITING_PIECES)
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
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
