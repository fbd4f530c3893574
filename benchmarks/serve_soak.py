"""A server under many clients, some of which leave or send nonsense, while soft prompts come and go.

python -m benchmarks.serve_soak --out benchmarks/results/serve_soak.json
python -m benchmarks.serve_soak --requests 200 --clients 20 --prompts 20      # a minute

The server is a process of its own, started as a user starts it. What must hold: every good request is answered, every
bad one refused, nothing runs or waits at the end, memory stays where it was after the warm-up, and it ends with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from softprompt.server.model_directory import served_name

USER, ADMIN = "user-key-of-the-soak", "admin-key-of-the-soak"
SAMPLES = 10  # of the memory, and one at the end
WARM = 2  # the sample that is behind the warm-up
GOOD = ("plain", "plain", "plain", "schema", "tools", "echo")  # echo: the text that was given is scored
KINDS = {"good": 0.72, "leave": 0.12, "bad": 0.12, "admin": 0.04}
SERVER = (sys.executable, "-m", "softprompt.cli.main")
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "maxProperties": 0}}}
BAD: tuple[tuple[int, Any], ...] = (
    (400, b"{"),
    (400, {"prompt": "A", "temperature": 9}),
    (400, {"prompt": "A", "nonsense": 1}),
    (400, {"prompt": "A " * 50_000}),
    (400, {"prompt": ""}),
    (404, {"model": "no-such-prompt", "prompt": "A"}),
    (413, b" " * 2_000_000),
)


def make_prompts(lm: FrozenLM, folder: Path, count: int) -> None:
    """Random soft prompts p0, p1, … of both forms, 4 to 16 virtual tokens, as training leaves them."""
    template = Template("text", "Review: {text}\nSentiment:")
    for i in range(count):
        draw = torch.Generator().manual_seed(i)
        prompt = random_prompt(lm, ("embedding", "kv")[i % 2], 4 + i % 13, draw)
        made: dict[str, Any] = {"name": f"p{i}", "form": prompt.form, "n_tokens": 1, "sha256": "0" * 64}
        made |= {"base": lm.geometry.to_dict(), "template": template.to_dict()}
        store.save(folder / f"p{i}", prompt, Card(**made, layout=layout_for(lm, template, prompt.form)))


def random_prompt(lm: FrozenLM, form: str, n_tokens: int, draw: torch.Generator) -> SoftPrompt:
    """A prompt of small numbers."""
    if form == "embedding":
        ids = torch.randint(lm.geometry.vocab, (n_tokens,), generator=draw)
        return EmbeddingPrompt(lm.embed(ids.to(lm.device)).float().cpu().clone())
    return KVPrompt(
        tuple(
            None
            if shape is None
            else (
                torch.randn(shape.kv_heads, n_tokens, shape.key_dim, generator=draw),
                torch.randn(shape.kv_heads, n_tokens, shape.value_dim, generator=draw),
            )
            for shape in lm.geometry.layers
        )
    )


@dataclass
class Tally:
    """What came of the requests."""

    done: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    memory: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How much of it; requests for soft prompts below `moving` are not good ones, for these come and go."""

    port: int
    pid: int
    prompts: int
    requests: int
    clients: int
    base: str

    @property
    def moving(self) -> int:
        return max(1, self.prompts // 20)


async def exchange(
    port: int, method: str, path: str, body: Any, key: str, leave: float | bytes | None
) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own; (0, …) when it is left, after some seconds or at
    these bytes of its answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(head.encode() + raw)
        if isinstance(leave, bytes):
            await reader.readuntil(leave)
            return 0, b""
        if leave is not None:
            await asyncio.sleep(leave)
            return 0, b""
        reply = await reader.read()
    finally:
        writer.close()
    top, _, content = reply.partition(b"\r\n\r\n")
    return int(top.split(b" ", 2)[1]), content


def asked_well(plan: Plan, draw: random.Random, kind: str) -> tuple[str, dict[str, Any], bytes]:
    """Path and body of a request that must be answered, and what its answer must hold."""
    words = "word " * draw.randint(1, 20)
    body: dict[str, Any] = {"model": f"p{draw.randrange(plan.moving, plan.prompts)}", "stream": draw.random() < 0.5}
    body |= {"temperature": draw.choice([0, 1]), "n": draw.choice([1, 1, 1, 3]), "max_tokens": draw.randint(1, 32)}
    body |= {"stream_options": {"include_usage": True}} if body["stream"] else {}
    if kind == "tools":
        body |= {"tools": [TOOL], "tool_choice": "required", "max_tokens": 48, "parallel_tool_calls": False}
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": words}]}, b'"tool_calls"'
    if kind == "schema":
        schema = {"enum": ["red", "green", f"blue {draw.randrange(50)}"]}  # more of them than are kept
        body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}
        return "/v1/completions", body | {"prompt": words, "max_tokens": 16}, b'\\"'
    if kind == "echo":
        body |= {"model": plan.base, "echo": True, "logprobs": 1, "max_tokens": draw.choice([0, 4])}
        return "/v1/completions", body | {"prompt": words}, b"token_logprobs"
    return "/v1/completions", body | {"prompt": words}, b""


async def good(plan: Plan, draw: random.Random, tally: Tally) -> None:
    """A request that must be answered."""
    kind = draw.choice(GOOD)
    path, body, held = asked_well(plan, draw, kind)
    tally.kinds[kind] += 1
    opened = time.perf_counter()
    status, content = await exchange(plan.port, "POST", path, body, USER, None)
    tally.seconds.append(time.perf_counter() - opened)
    if status != 200 or (body["stream"] and b"data: [DONE]" not in content) or held not in content:
        tally.failures.append(f"{status} {content[:200]!r} to {json.dumps(body)[:200]}")
        return
    last = content.rsplit(b'"completion_tokens":', 1)
    tally.tokens += int(last[1].partition(b",")[0]) if len(last) == 2 else 0


async def leave(plan: Plan, draw: random.Random, tally: Tally) -> None:
    """A client that goes away, while it waits or in the middle of its answer."""
    kind = draw.choice(GOOD)
    path, body, _ = asked_well(plan, draw, kind)
    if draw.random() < 0.5:
        await exchange(plan.port, "POST", path, body, USER, draw.random())
    else:
        streamed = body | {"stream": True, "max_tokens": 100}
        await exchange(plan.port, "POST", path, streamed, USER, b"data: {")
    tally.kinds[f"{kind}, left"] += 1


async def bad(plan: Plan, draw: random.Random, tally: Tally) -> None:
    """A request that must be refused, in the shape of an error."""
    wanted, body = draw.choice(BAD)
    if isinstance(body, dict):  # a soft prompt that stays: one that is unloaded just now would be a 404
        body = {"model": f"p{plan.prompts - 1}"} | body
    try:
        status, content = await exchange(plan.port, "POST", "/v1/completions", body, USER, None)
    except ConnectionError:  # refused in the middle of a body that is too large
        return
    if status != wanted or b'"error"' not in content:
        tally.failures.append(f"{status} instead of {wanted}: {content[:200]!r}")


async def admin(plan: Plan, draw: random.Random, tally: Tally) -> None:
    """A soft prompt is loaded anew, or unloaded and put back."""
    path = f"/v1/soft_prompts/p{draw.randrange(plan.moving)}"
    for method in draw.choice([["PUT"], ["DELETE", "PUT"]]):
        status, content = await exchange(plan.port, method, path, None, ADMIN, None)
        if status != 200:
            tally.failures.append(f"{method} {path}: {status} {content[:200]!r}")


ACTIONS = {"good": good, "leave": leave, "bad": bad, "admin": admin}


async def soak(plan: Plan) -> Tally:
    """All requests, by clients that each wait for one to end."""
    tally, numbers = Tally(), iter(range(plan.requests))

    async def client() -> None:
        for number in numbers:
            draw = random.Random(number)  # noqa: S311
            (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
            try:
                await ACTIONS[kind](plan, draw, tally)
            except asyncio.IncompleteReadError as error:
                tally.failures.append(f"{kind}: ended before it could be left: {error.partial[-300:]!r}")
            except (OSError, ValueError, IndexError) as error:
                tally.failures.append(f"{kind}: {type(error).__name__} {error}")
            tally.done[kind] += 1
            if number % (plan.requests // SAMPLES) == 0:
                tally.memory.append(memory(plan.pid))

    await asyncio.gather(*(client() for _ in range(plan.clients)))
    return tally


async def rest(port: int) -> dict[str, float]:
    """The server's own numbers, once nothing runs any more (or after half a minute)."""
    found: dict[str, float] = {}
    for _ in range(60):
        _, content = await exchange(port, "GET", "/metrics", None, USER, None)
        pairs = [line.rsplit(" ", 1) for line in content.decode().splitlines() if line.startswith("softprompt_")]
        found = {name.removeprefix("softprompt_"): float(value) for name, value in pairs if "{" not in name}
        if not found["num_requests_running"] and not found["num_requests_waiting"]:
            break
        await asyncio.sleep(0.5)
    kept = ("num_requests", "kv_cache", "prompts_loaded", "prompt_cache", "generation_tokens_total")
    return {name: value for name, value in found.items() if name.startswith(kept) and "created" not in name}


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def started(
    command: Sequence[str], model: str, folder: Path, places: int, more: Sequence[str] = ()
) -> tuple[subprocess.Popen[bytes], int]:
    """The server's process and port.

    Args:
        more: options of `softprompt serve`.
    """
    environment = {**os.environ, "SOFTPROMPT_API_KEYS": USER, "SOFTPROMPT_ADMIN_KEYS": ADMIN}
    options = [
        "--model",
        model,
        "--prompts-dir",
        str(folder),
        "--max-loaded",
        str(places),
        "--port",
        "0",
        "--log",
        "json",
        *more,
    ]
    with (folder.parent / "log.jsonl").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([*command, "serve", *options], stderr=log, env=environment)  # noqa: S603
    while process.poll() is None:
        time.sleep(0.2)
        for line in Path(log.name).read_text(encoding="utf-8").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n") and (event := json.loads(line))["event"] == "listening":
                return process, int(event["port"])
    raise SystemExit(f"the server did not start:\n{Path(log.name).read_text(encoding='utf-8')}")


def run(options: argparse.Namespace, folder: Path, command: Sequence[str] = SERVER) -> dict[str, Any]:
    """Prompts, server, clients; the numbers."""
    lm = load_model(options.model, dtype=options.dtype)
    make_prompts(lm, folder / "prompts", options.prompts)
    process, port = started(command, options.model, folder / "prompts", options.places, ["--dtype", options.dtype])
    try:
        opened = time.perf_counter()
        plan = Plan(port, process.pid, options.prompts, options.requests, options.clients, served_name(lm.name))
        tally = asyncio.run(soak(plan))
        seconds = time.perf_counter() - opened
        server = asyncio.run(rest(port))
        megabytes = [n // 2**20 for n in (*tally.memory, memory(process.pid))]
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    waits = sorted(tally.seconds)
    faults = (folder / "log.jsonl").read_text(encoding="utf-8").count('"event": "fault"')
    return {
        "requests": dict(tally.done),
        "kinds": dict(sorted(tally.kinds.items())),
        "failures": len(tally.failures),
        "first_failures": tally.failures[:10],
        "faults_in_the_log": faults,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "latency_s": {str(share): round(waits[int(share * (len(waits) - 1))], 3) for share in (0.5, 0.9, 0.99)},
        "memory_mb": {"warm": megabytes[WARM], "end": megabytes[-1], "samples": megabytes},
        "server": server,
        "exit_code": code,
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="bfloat16 on a CPU keeps kernels of every shape, up to a limit")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--places", type=int, default=64, help="soft prompts in the server's memory")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(given)


def main() -> None:
    """Run it; exit with 1 if something failed."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    asked = {name: getattr(options, name) for name in ("requests", "clients", "prompts", "places", "dtype")}
    asked |= {"model": Path(options.model).name}
    text = json.dumps({"machine": facts(), "asked": asked, **result}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    server = result["server"]
    stuck = server["num_requests_running"] + server["num_requests_waiting"]
    raise SystemExit(int(bool(result["failures"] or result["faults_in_the_log"] or stuck or result["exit_code"])))


if __name__ == "__main__":
    main()
