"""Answers that repeat the text they continue (`echo`), or report the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from anyio.to_thread import run_sync

from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.engine.base import Engine, Job, PromptToken, Token
from softprompt.errors import EngineError
from softprompt.inference.detokenizer import CUT, Detokenizer
from softprompt.inference.sampling import Sampling
from softprompt.server.error_responses import ApiError, invalid
from softprompt.server.prompt_reader import EncodedPrompt
from softprompt.server.request import GenerationRequest
from softprompt.server.streaming import LEAST, PromptLogprob, ScoredToken, TextPiece, scored_token, stream_text
from softprompt.server.token_text import TokenTexts


@dataclass(frozen=True)
class GivenText:
    """What is reported of the text that one answer continues.

    Attributes:
        echo: repeated before the answer; "" for nothing.
        logprobs: number of likeliest tokens to report with each repeated token; None reports none.
        skipped: words of the prefix before the repeated tokens, in the order of `Token.prompt`.
        held: repeated tokens before these, which the virtual tokens hold already, such as BOS.
        prompt_logprobs: number of likeliest tokens to report with every token of prefix and text; None reports none.
        answered: whether there is an answer beside it.
    """

    echo: str = ""
    logprobs: int | None = None
    skipped: int = 0
    held: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    answered: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is reported of the text, beside an answer."""
        return self.answered and not self.echo and self.scores is None

    @property
    def scores(self) -> int | None:
        """Number of likeliest tokens that the engine reports; None if it scores nothing."""
        wanted = [count for count in (self.logprobs, self.prompt_logprobs) if count is not None]
        return max(wanted, default=None)


NOTHING_GIVEN = GivenText()


def given_text(request: GenerationRequest, encoded: EncodedPrompt) -> GivenText:
    """What a request reports of one of its texts. Raises ApiError where its tokens cannot be told apart."""
    logprobs = request.logprobs if request.echo else None
    if logprobs is not None and encoded.skipped is None:
        what = "The soft prompt's template writes around a text, so that its own tokens cannot be told apart."
        hint = "Send the token ids of the whole text, template included, or use prompt_logprobs."
        raise invalid(f"{what} {hint}", "echo")
    return GivenText(
        encoded.sent if request.echo else "",
        logprobs,
        encoded.skipped or 0,
        encoded.held,
        request.prompt_logprobs,
        request.new_tokens != 0,
    )


async def stream_answer(
    engine: Engine,
    job: Job,
    choice: int,
    tokenizer: Tokenizer,
    stops: Sequence[str],
    on_token: Callable[[Token], None],
    given: GivenText = NOTHING_GIVEN,
    *,
    keeps_special: bool = False,
) -> AsyncGenerator[TextPiece, None]:
    """`stream_text`, after a piece with what is reported of the given text.

    Raises ApiError if the engine scores no given text.
    """
    prompt, begun = list[PromptToken](), given.is_empty

    def watch(token: Token) -> None:
        prompt.extend(token.prompt)
        on_token(token)

    async with aclosing(
        stream_text(engine, job, choice, tokenizer, stops, watch, keeps_special=keeps_special)
    ) as pieces:
        async for piece in pieces:
            if not begun:
                begun = True
                if given.scores is not None and not prompt:
                    what = "This engine does not report log-probabilities of given text."
                    raise ApiError(400, what, "unsupported_parameter", param="prompt_logprobs")
                after = await _after_held(engine, job, given) if len(prompt) == len(job.ids) else None
                yield await run_sync(_report, choice, given, prompt, after, tokenizer)
            if not given.answered:
                yield TextPiece(choice, "", (), 0, "length", piece.cached)
                return
            yield _shifted(piece, len(given.echo))


async def _after_held(engine: Engine, job: Job, given: GivenText) -> PromptToken | None:
    """The first token after the held ones, which only they predict: keys and values do not. So they are run once more.

    None if none are held, or no log-probabilities wanted.
    """
    if not given.held or given.logprobs is None:
        return None
    ids, sampling = (*given.held, job.ids[0]), Sampling(1)
    again = replace(job, id=f"{job.id}-held", ids=ids, sampling=sampling, logprobs=None)
    async with aclosing(engine.stream(again)) as tokens:
        async for token in tokens:
            return token.prompt[-1]
    raise EngineError("the job gave no token", where=job.id)


def _report(
    choice: int, given: GivenText, prompt: Sequence[PromptToken], after: PromptToken | None, tokenizer: Tokenizer
) -> TextPiece:
    """The piece with the repeated text and its tokens."""
    scored = list[ScoredToken]()
    if given.logprobs is not None:
        repeated = [*map(PromptToken, given.held), *prompt[given.skipped :]]
        if after is not None:
            repeated[len(given.held)] = after
        text, texts = Detokenizer(tokenizer, skip_special_tokens=False), TokenTexts(tokenizer)
        for token in repeated:
            before = text.ids[-1] if text.ids else None
            start = min(len(text.text.rstrip(CUT)), len(given.echo))
            text.append(token.id)
            likeliest = token.likeliest[: given.logprobs]
            scored.append(scored_token(token.id, start, token.logprob, likeliest, texts, before))
    reported = None
    if given.prompt_logprobs is not None:
        reported = tuple(_prompt_logprobs(token, given.prompt_logprobs, tokenizer) for token in prompt)
    return TextPiece(choice, given.echo, tuple(scored), 0, "", prompt=reported)


def _prompt_logprobs(token: PromptToken, count: int, tokenizer: Tokenizer) -> dict[str, PromptLogprob] | None:
    """The token and its likeliest alternatives by id."""
    if token.logprob is None:
        return None
    found = {token.id: (token.logprob, token.rank)}
    for rank, (other, logprob) in enumerate(token.likeliest[:count], 1):
        found.setdefault(other, (logprob, rank))
    return {
        str(other): {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": decode([other], tokenizer)}
        for other, (logprob, rank) in found.items()
    }


def _shifted(piece: TextPiece, chars: int) -> TextPiece:
    """The piece in a text with so many characters before it."""
    if not chars:
        return piece
    return replace(piece, scored=tuple(replace(token, start=token.start + chars) for token in piece.scored))
