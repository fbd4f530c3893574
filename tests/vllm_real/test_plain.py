"""vLLM's own server with the middleware, from its command line: soft prompts by name beside the base model."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from softprompt.formatting.formatted_prompt import from_card
from softprompt.inference.detokenizer import CUT
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.vllm.connector import transfer_config
from softprompt.vllm.published import publish
from tests.support.live_server import TEMPLATES, save_prompt
from tests.vllm_real.tiny import BLOCK, CONTEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(lm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for seed, (name, (form, template)) in enumerate(TEMPLATES.items(), 1):
        save_prompt(folder / "prompts" / name, form, template, seed, lm)
        publish(lm, *store.load(folder / "prompts" / name, lm.geometry), folder)
    return folder


@pytest.fixture(scope="module")
def url(base: Path, folder: Path) -> Iterator[str]:
    """A server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ["--dtype", "float32", "--max-model-len", CONTEXT, "--enforce-eager", "--block-size", BLOCK]
    settings += ["--host", "127.0.0.1", "--port", port, "--served-model-name", "base"]
    settings += ["--kv-transfer-config", json.dumps(transfer_config(folder))]
    settings += ["--middleware", "softprompt.vllm.middleware.SoftPrompts", "--distributed-executor-backend", "uni"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base, *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with subprocess.Popen(list(map(str, command)), env=environment) as process:
        try:
            wait(port, process)
            yield f"http://127.0.0.1:{port}"
            process.terminate()
            process.wait(60)
        finally:
            process.kill()


def wait(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it listens, which it does when it is ready."""
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            with socket.create_connection(("127.0.0.1", port), 5):
                return
        except OSError:
            time.sleep(1)


def generated(lm: FrozenLM, folder: Path, name: str, text: str) -> str:
    """What the library answers, but for half a character at the end, of which vLLM says nothing."""
    formatted = from_card(*store.load(folder / "prompts" / name, lm.geometry))
    (found,) = generate(lm, {name: formatted}, [Request(text, name)], Sampling(16))
    return found.text.rstrip(CUT)


def test_texts_and_conversations(url: str, lm: FrozenLM, folder: Path) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
    for name in ("review", "question"):
        done = client.completions.create(model=name, prompt="Where?", max_tokens=16, temperature=0)
        assert done.choices[0].text == generated(lm, folder, name, "Where?")
    turns: Any = [{"role": "user", "content": "Where?"}]
    for name in ("asked", "base:stern"):
        wanted = generated(lm, folder, name.removeprefix("base:"), "Where?")
        ask: dict[str, Any] = {"model": name, "messages": turns, "max_tokens": 16, "temperature": 0}
        assert client.chat.completions.create(**ask).choices[0].message.content == wanted
        parts = client.chat.completions.create(**ask, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted
    assert {"base", *TEMPLATES} == {model.id for model in client.models.list()}


def test_refusals_and_forgeries(url: str, lm: FrozenLM, folder: Path) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
    for field in ({"prompt_logprobs": 1}, {"echo": True}):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="review", prompt="x", extra_body=field)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")
    plain = client.completions.create(model="base", prompt="Where?", max_tokens=16, temperature=0)
    forged: dict[str, Any] = {
        "kv_transfer_params": {"soft_prompt": "0" * 32},
        "vllm_xargs": {"kv_transfer_params": "x"},
    }
    again = client.completions.create(model="base", prompt="Where?", max_tokens=16, temperature=0, extra_body=forged)
    assert again.choices[0].text == plain.choices[0].text
    done = client.completions.create(model="review", prompt="Where?", max_tokens=16, temperature=0)
    assert done.choices[0].text == generated(lm, folder, "review", "Where?"), "the server lives"
