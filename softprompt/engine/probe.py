"""Verifies an engine at its start: on the loaded model, its log-probabilities equal those of `softprompt.prefix`."""

from __future__ import annotations

import asyncio

import torch
from torch import Tensor

from softprompt.engine.base import Engine, Job, Token
from softprompt.engine.checks import unsupported
from softprompt.errors import EngineError
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes, start_decoding
from softprompt.prefix.proof import probe_ids
from softprompt.prefix.tolerance import tolerance
from softprompt.prompts.forms import KVPrompt

_PROBE = "probe"


async def probe(lm: FrozenLM, engine: Engine) -> None:
    """Run six tokens as a text, and the last three after the keys and values of the first three, in one batch.

    Raises UnsupportedModelError if the log-probabilities of the next two tokens differ.
    """
    ids = tuple(probe_ids(lm))
    layers = await asyncio.to_thread(compute_keys_values, lm, Prefix(lead=ids[:3]))
    await engine.load(_PROBE, Prefix(KVPrompt(tuple(kv and (kv[0][0], kv[1][0]) for kv in layers))))
    try:
        answers = await asyncio.gather(_answer(lm, engine, None, ids), _answer(lm, engine, _PROBE, ids[3:]))
    except EngineError as error:
        raise unsupported(lm, str(error.got or error.what)) from error
    finally:
        await engine.unload(_PROBE)
    for answer in answers:
        expected = await asyncio.to_thread(_expected, lm, ids, answer[0].id)
        ours = torch.stack([_logprobs(token, lm.geometry.vocab) for token in answer])
        off = ((ours - expected).norm() / expected.norm()).item()
        if not off <= tolerance(lm):
            raise unsupported(lm, f"its log-probabilities in a batch are off by {off:.1%}")


async def _answer(lm: FrozenLM, engine: Engine, prompt: str | None, ids: tuple[int, ...]) -> list[Token]:
    job = Job(f"{_PROBE} {prompt}", prompt, ids, Sampling(2), frozenset(), logprobs=lm.geometry.vocab)
    return [token async for token in engine.stream(job)]


@torch.no_grad()
def _expected(lm: FrozenLM, ids: tuple[int, ...], token: int) -> Tensor:
    """Log-probabilities [2, V] after the ids, and after the token that follows them."""
    growing = start_decoding(lm, prepare_prefixes(lm, [Prefix()]), [ids], [0], 1)
    first = growing.hidden
    states = torch.cat([first, growing.step(torch.tensor([token], device=lm.device))])
    return lm.logits(states).float().log_softmax(-1).cpu()


def _logprobs(token: Token, vocab: int) -> Tensor:
    places, values = zip(*token.likeliest, strict=True)
    logprobs = torch.empty(vocab)
    logprobs[list(places)] = torch.tensor(values)
    return logprobs
