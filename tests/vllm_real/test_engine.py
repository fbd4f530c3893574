"""The server's engine over vLLM, beside the tests' plain one: the same jobs, the same tokens; and the server on top."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from softprompt.engine.base import Engine, Job, Penalties, Token
from softprompt.engine.constraint import GrammarCompiler, json_rule, regex_rule, text_rule
from softprompt.errors import ConfigError, EngineError
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.server.api_keys import ApiKeys
from softprompt.server.app import create_app
from softprompt.server.catalogue import Catalogue
from softprompt.server.service import Service
from softprompt.vllm.engine import VllmEngine
from tests.laws.oracle import given_logprobs
from tests.support.cases import text_ids
from tests.support.live_server import TEMPLATES, save_prompt
from tests.support.server_oracle import OracleEngine
from tests.vllm_real.tiny import BLOCK, CONTEXT, generated, prefixes

OPTIONS = {"enforce_eager": True, "block_size": BLOCK, "max_num_seqs": 16, "max_num_batched_tokens": 64}
OPTIONS |= {"distributed_executor_backend": "uni"}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(lm: FrozenLM, runner: asyncio.Runner) -> Iterator[VllmEngine]:
    """With the eight prefixes as "0" to "7"; in the end nothing is left."""
    engine = VllmEngine(lm, OPTIONS)

    async def begin() -> None:
        await engine.start()
        for i, prefix in enumerate(prefixes(lm)):
            await engine.load(str(i), prefix)

    runner.run(begin())
    yield engine
    engine.check_integrity()
    runner.run(engine.stop())
    assert engine.failure == "the engine was stopped"
    assert not engine._folder.exists()


def job(
    name: str,
    prompt: str | None,
    ids: list[int],
    sampling: Sampling,
    *,
    ends: tuple[int, ...] = (),
    penalties: Penalties | None = None,
    logprobs: int | None = None,
    tenant: str = "",
) -> Job:
    return Job(name, prompt, tuple(ids), sampling, frozenset(ends), penalties or Penalties(), logprobs, tenant)


async def said(engine: Engine, one: Job) -> list[Token]:
    async with aclosing(engine.stream(one)) as tokens:
        return [token async for token in tokens]


def test_given_text(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    """Log-probabilities of the words of every prefix and of the text after it, with the answers as without."""
    row = text_ids(9, 3)

    async def run() -> list[list[Token]]:
        jobs = [job(f"given {i}", str(i), row, Sampling(3)) for i in range(8)] + [job("given", None, row, Sampling(3))]
        scored = [replace(one, prompt_logprobs=2) for one in jobs]
        return await asyncio.gather(*(said(engine, one) for one in scored))

    for tokens, prefix in zip(runner.run(run()), [*prefixes(lm), Prefix()], strict=True):
        assert [token.id for token in tokens] == generated(lm, prefix, row, 3)
        wanted = given_logprobs(lm, prefix, row)
        assert [token.id for token in tokens[0].prompt] == [token for token, _ in wanted]
        for token, (_, before) in zip(tokens[0].prompt, wanted, strict=True):
            assert token.logprob == (None if before is None else pytest.approx(float(before[token.id]), abs=1e-4))
        assert not tokens[1].prompt


def test_grammars_beside_free_rows(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    """As the plainest engine answers each; an answer ends where its grammar does."""
    compiler, end = GrammarCompiler(lm), lm.tokenizer.eos_token_id
    assert isinstance(end, int)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    rules = (None, json_rule(schema), regex_rule("[a-c]{2,4}"), text_rule(["yes", "no"]), f'"a" <[{end - 1}]> "b"')
    jobs = [
        replace(
            job(f"grammar {i}", str(i) if i < 8 else None, text_ids(5 + i, i), Sampling(60), ends=(end,)),
            constraint=None if rule is None else compiler.compile(f"start: {rule}"),
            bias=((end, 2.0),),
        )
        for i, rule in enumerate(rules * 2)
    ]

    async def run() -> None:
        oracle = OracleEngine(lm)
        for i, prefix in enumerate(prefixes(lm)):
            await oracle.load(str(i), prefix)
        answers = await asyncio.gather(*(said(engine, one) for one in jobs))
        for one, answer in zip(jobs, answers, strict=True):
            with torch.no_grad():
                wanted = await said(oracle, one)
            assert [(token.id, token.finish) for token in answer] == [(token.id, token.finish) for token in wanted]

    runner.run(run())


def test_a_mixed_batch(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    rows = [text_ids(2 + 9 * i, i) for i in range(8)]

    async def run() -> list[list[Token]]:
        jobs = [job(str(i), str(i), row, Sampling(20)) for i, row in enumerate(rows)]
        jobs.append(job("base", None, rows[0], Sampling(20)))
        return await asyncio.gather(*(said(engine, one) for one in jobs))

    answers = [[token.id for token in answer] for answer in runner.run(run())]
    kinds = prefixes(lm)
    wanted = [generated(lm, prefix, row, 20) for prefix, row in zip(kinds, rows, strict=True)]
    assert answers == [*wanted, generated(lm, kinds[2], rows[0], 20)]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0)
    assert stats.computed_tokens > sum(map(len, rows))


@pytest.mark.parametrize(
    "penalties", [Penalties(), Penalties(1.3), Penalties(1.0, 0.7, 0.4), Penalties(1.2, 1.5, -0.3)]
)
def test_penalties_and_ends(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner, penalties: Penalties) -> None:
    """Penalties see the text and the answer, no placeholder; an end token is told and ends."""
    ids, plain = text_ids(12, 5), OracleEngine(lm)
    free = generated(lm, prefixes(lm)[0], ids, 12)

    async def run(engine: Engine) -> list[tuple[int, str]]:
        found = []
        for prompt in ("0", "7", None):
            ends = (free[5],)
            one = job(f"{prompt}", prompt, ids, Sampling(12), penalties=penalties, ends=ends)
            found += [(token.id, token.finish) for token in await said(engine, one)]
        return found

    for i, prefix in enumerate(prefixes(lm)):
        runner.run(plain.load(str(i), prefix))
    assert runner.run(run(engine)) == runner.run(run(plain))


def test_logprobs(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    ids, plain = text_ids(6, 3), OracleEngine(lm)
    runner.run(plain.load("1", prefixes(lm)[1]))
    one = job("a", "1", ids, Sampling(5), logprobs=3)
    ours, wanted = runner.run(said(engine, one)), runner.run(said(plain, one))
    for token, other in zip(ours, wanted, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [i for i, _ in token.likeliest] == [i for i, _ in other.likeliest]
        assert [p for _, p in token.likeliest] == pytest.approx([p for _, p in other.likeliest], abs=1e-3)


def test_a_seed_repeats(engine: VllmEngine, runner: asyncio.Runner) -> None:
    def answer(seed: int) -> list[int]:
        one = job("a", "3", text_ids(5, 1), Sampling(16, 1.5, top_k=50, top_p=0.95, seed=seed))
        return [token.id for token in runner.run(said(engine, one))]

    assert answer(1) == answer(1) != answer(2)


@pytest.mark.parametrize("prompt", [None, "5"])
def test_a_tenant_meets_only_its_own_texts_in_the_prefix_cache(
    engine: VllmEngine, runner: asyncio.Runner, prompt: str | None
) -> None:
    ids = text_ids(4 * BLOCK, 77)

    def cached(tenant: str) -> int:
        before = engine.stats().cached_tokens
        runner.run(said(engine, job("a", prompt, ids, Sampling(1), tenant=tenant)))
        return engine.stats().cached_tokens - before

    assert [cached("one"), cached("two")] == [0, 0]
    assert min(cached("one"), cached("two")) >= 3 * BLOCK


def test_what_cannot_run(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    cases = [
        (job("a", "none", [5], Sampling(2)), "no such soft prompt"),
        (job("a", None, [], Sampling(2)), "no tokens"),
        (job("a", None, [300], Sampling(2)), "no token of the model"),
        (job("a", "5", text_ids(200, 1), Sampling(CONTEXT)), "does not fit in the context"),
    ]
    for one, message in cases:
        with pytest.raises(EngineError, match=message):
            runner.run(said(engine, one))
    with pytest.raises(ConfigError, match="no such engine argument"):
        VllmEngine(lm, {"tensor_paralel_size": 2})
    with pytest.raises(ConfigError, match="sets this itself"):
        VllmEngine(lm, {"kv_transfer_config": {}})
    engine.check_integrity()


def test_replaced_and_unloaded_in_use(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner) -> None:
    """The job that runs keeps its prefix, new ones get the new one, and files go with their last user."""
    one, two, ids = prefixes(lm)[1], prefixes(lm)[4], text_ids(4, 4)
    wanted = [generated(lm, prefix, ids, 200) for prefix in (one, two)]

    async def run() -> None:
        await engine.load("x", one)
        jobs = [job(str(i), "x", ids, Sampling(200)) for i in range(2)]
        async with aclosing(engine.stream(jobs[0])) as tokens:
            first = [(await anext(tokens)).id]
            await engine.load("x", two)
            again = [token.id for token in await said(engine, jobs[1])]
            await engine.unload("x")
            engine.check_integrity()
            first += [token.id async for token in tokens]
        assert [first, again] == wanted
        engine.check_integrity()

    runner.run(run())


def test_a_job_that_is_left(engine: VllmEngine, runner: asyncio.Runner) -> None:
    async def run() -> None:
        async with aclosing(engine.stream(job("left", "3", [5, 6], Sampling(400)))) as tokens:
            await anext(tokens)
        engine.check_integrity()
        assert engine.stats().running == 0
        assert len(await said(engine, job("left", "3", [5, 6], Sampling(3)))) == 3

    runner.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_the_server(engine: VllmEngine, lm: FrozenLM, runner: asyncio.Runner, tmp_path: Path, stream: bool) -> None:
    """Chats and completions of every kind of soft prompt and of none, as the tests' own engine answers them."""
    for seed, (name, (form, template)) in enumerate(TEMPLATES.items(), 1):
        save_prompt(tmp_path / name, form, template, seed, lm)
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    asks = [("chat/completions", name, {"messages": messages}) for name in ("talk", "kind", "asked", "stern", "base")]
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"enum": ["red", "green"]}}}
    asks += [("completions", name, {"prompt": "Where?", "response_format": form}) for name in ("review", "base")]
    asks += [("completions", name, {"prompt": "Where?"}) for name in ("review", "question", "base")]

    async def replies(engine: Engine) -> list[str]:
        service = Service(lm, engine, Catalogue(lm.geometry, tmp_path, {}), name="base", places=8)
        transport = httpx.ASGITransport(create_app(service, ApiKeys()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = [{"model": name, "max_tokens": 16, "temperature": 0, "stream": stream} | b for _, name, b in asks]
            sent = [client.post(f"/v1/{path}", json=body) for (path, _, _), body in zip(asks, bodies, strict=True)]
            found = [reply.raise_for_status().text for reply in await asyncio.gather(*sent)]
            refused = await client.post("/v1/completions", json=bodies[-1] | {"suffix": "!"})
            assert refused.status_code == 400
        await service.prompt_cache.settle()
        return found

    ours, wanted = runner.run(replies(engine)), runner.run(replies(OracleEngine(lm)))
    assert [words(text, stream) for text in ours] == [words(text, stream) for text in wanted]
    said_by = [(ask[2], words(text, stream)) for ask, text in zip(asks, ours, strict=True)]
    held = [text for body, text in said_by if "response_format" in body]
    assert len(held) == 2 and set(held) <= {'"red"', '"green"'}


def words(reply: str, stream: bool) -> str:
    """The text of an answer."""
    parts = [json.loads(line[6:]) for line in reply.split("\n\n") if line.startswith("data: {")] if stream else []
    texts = [part["choices"][0] for part in parts or [json.loads(reply)] if part["choices"]]
    return "".join((c.get("delta") or c.get("message") or {}).get("content") or c.get("text", "") for c in texts)
