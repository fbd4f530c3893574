"""vLLM as shipped, nothing of ours in it: soft prompts as LoRA adapters on the embedding, by name and side by side."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from softprompt.export.base import EngineRow, ExportSource
from softprompt.export.check import TEXTS, CheckReport, check_rows, our_answers
from softprompt.export.lora import prefix_ids
from softprompt.export.registry import find_target
from softprompt.export.reserved_ids import choose_reserved_ids
from softprompt.models.loading import load_model
from softprompt.models.sources import find_source
from tests.engines_real.conftest import keep_report, near_text
from tests.support.exported import source_of
from tests.vllm_real.test_plain import wait

PROMPTS, N_TOKENS = 8, 12


@pytest.fixture(scope="module")
def sources() -> dict[str, ExportSource]:
    """Eight soft prompts of other numbers and other lengths."""
    lm = load_model("smollm2-135m", dtype="float32", device="cpu")
    return {f"tone-{i}": source_of(lm, near_text(lm, "embedding", i).select(range(9 + i))) for i in range(PROMPTS)}


@pytest.fixture(scope="module")
def url(sources: dict[str, ExportSource], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server with the adapters, as the README starts it."""
    root = tmp_path_factory.mktemp("adapters")
    modules = [f"{name}={find_target('lora').write(root / name, source).folder}" for name, source in sources.items()]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "32"]
    settings += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base"]
    settings += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", str(PROMPTS), "--lora-modules", *modules]
    settings += ["--distributed-executor-backend", "uni"]
    base = find_source("smollm2-135m").path
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", base, *settings]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, env=environment, cwd=root) as process:
        try:
            wait(port, process)
            yield f"http://127.0.0.1:{port}"
            process.terminate()
            process.wait(60)
        finally:
            process.kill()


def asked(source: ExportSource | None, row: EngineRow, name: str) -> dict[str, Any]:
    """A request of token ids: the adapter's reserved ids, then the row's; of the base model the row's alone."""
    before = prefix_ids(source, choose_reserved_ids(source.lm, source.prompt.n_tokens)) if source else []
    body: dict[str, Any] = {"model": name, "prompt": [*before, *row.ids], "max_tokens": N_TOKENS, "temperature": 0}
    return body | {"logprobs": 5, "return_tokens_as_token_ids": True, "ignore_eos": True}


async def all_at_once(url: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
    async with httpx.AsyncClient(timeout=600) as client:
        replies = await asyncio.gather(*(client.post(f"{url}/v1/completions", json=body) for body in bodies))
    for reply in replies:
        assert reply.status_code == 200, reply.text
    return [reply.json()["choices"][0]["logprobs"] for reply in replies]


def number(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def test_eight_soft_prompts_in_one_batch(url: str, sources: dict[str, ExportSource]) -> None:
    """20 rows, each behind one of them, and 4 rows of the base model, all at once."""
    names = list(sources)
    cases = [(names[i % PROMPTS], text) for i, text in enumerate(TEXTS)]
    bodies, wanted = list[dict[str, Any]](), list[Any]()
    for name, text in cases:
        row = check_rows(sources[name], [text])[0]
        bodies.append(asked(sources[name], row, name))
        wanted += our_answers(sources[name], [row])
    for text in TEXTS[:4]:
        row = check_rows(sources[names[0]], [text])[1]
        bodies.append(asked(None, row, "base"))
        wanted += our_answers(sources[names[0]], [row])
    differences = list[float]()
    for said, ours in zip(asyncio.run(all_at_once(url, bodies)), wanted, strict=True):
        assert [number(token) for token in said["tokens"]] == list(ours.ids[:N_TOKENS])
        differences.append(0.0)
        for listed, top in zip(said["top_logprobs"], ours.logprobs, strict=False):
            pairs = [(value, top[number(token)]) for token, value in listed.items() if number(token) in top]
            differences[-1] = max([differences[-1], *(abs(one - other) for one, other in pairs)])
    report = CheckReport(len(cases), len(cases), max(differences[: len(cases)]), max(differences[len(cases) :]))
    keep_report("lora (vLLM)", "embedding", "float32", report)
    assert report.difference <= 1e-3
    assert len({tuple(ours.ids) for ours in wanted[:20]}) > 10, "they say different things"


def test_each_soft_prompt_is_one_model_of_the_server(url: str, sources: dict[str, ExportSource]) -> None:
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert {"base", *sources} == {model["id"] for model in listed}
