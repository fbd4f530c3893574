"""`softprompt serve`: its options, `--check`, and the whole way from the command line to an answer and back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from softprompt.cli import serve as verb
from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.engine import registry
from softprompt.errors import ConfigError, MissingExtraError, StoreError
from softprompt.models.loading import load_model
from softprompt.server import logs
from softprompt.server import uvicorn_server as listen_module
from softprompt.vllm.spec import VllmOptions
from tests.support.live_server import TEMPLATES, save_prompt
from tests.support.server_oracle import ORACLE
from tests.support.shell import refused, softprompt
from tests.support.tiny import DEVICE

PLAIN = TEMPLATES["review"][1]
PROGRAM = """
import sys
from softprompt.cli.main import run
from softprompt.engine import registry
from tests.support.server_oracle import ORACLE
registry.register_engine(ORACLE)
sys.argv[0] = "softprompt"
run()
"""


@pytest.fixture
def shelf(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two soft prompts for the tests' base model, and the tests' engine."""
    monkeypatch.setattr(logs, "configure", lambda kind: None)  # it would replace the tests' own handlers
    registry.register_engine(ORACLE)
    lm = load_model(str(base), dtype="float32", device=DEVICE)
    for seed, name in enumerate(("one", "two"), 1):
        save_prompt(tmp_path / "shelf" / name, "kv", PLAIN, seed, lm)
    yield tmp_path / "shelf"
    registry.unregister_engine(ORACLE.name)


def options(base: Path, shelf: Path) -> tuple[object, ...]:
    model = ("--model", base, "--dtype", "float32", "--device", DEVICE)
    return (*model, "--prompts-dir", shelf, "--engine", ORACLE.name)


def test_check(base: Path, shelf: Path) -> None:
    result = softprompt("serve", *options(base, shelf), "--check")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [["ok", "base"], ["ok", "one"], ["ok", "two"]]


def test_check_of_what_is_torn(base: Path, shelf: Path) -> None:
    (shelf / "two" / "prompt.safetensors").write_bytes(b"torn")
    result = softprompt("serve", *options(base, shelf), "--check", "--served-name", "mine")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "mine"], ["ok", "one"], ["failed", "two"]]
    assert "safetensors" in lines[2]


def test_the_cards_name_the_base_model(shelf: Path) -> None:
    model = ("--dtype", "float32", "--device", DEVICE, "--engine", ORACLE.name)
    result = softprompt("serve", "--prompts-dir", shelf, *model, "--check")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--host", "0.0.0.0"), "without an API key"),
        (("--limit", "n=3"), "unknown limit"),
        (("--rate", "often"), "not a rate"),
        (("--prompt", "UP=x"), "not a soft prompt's name"),
        (("--prompt", "one=SHELF/one", "--prompt", "one=SHELF/two"), "given twice"),
        (("--prompt", "one=SHELF/one", "--max-loaded", "1"), "no place for the soft prompts"),
        (("--prompts-dir", "none"), "no such folder"),
        (("--api-keys", "none"), "cannot be read"),
        (("--port", "70000"), "port"),
        (("--log", "yaml"), "log"),
        (("--allow-origin", "localhost:3000"), "not an origin"),
        (("--system", "maybe"), "system"),
        (("--workers", "2"), "add --jobs"),
        (("--share-prompts",), "--share-prompts: this is for fine-tuning jobs"),
    ],
)
def test_what_cannot_be_served(given: tuple[str, ...], message: str, base: Path, shelf: Path) -> None:
    given = tuple(text.replace("SHELF", str(shelf)) for text in given)
    error = refused("serve", *options(base, shelf), "--port", "0", *given)
    assert isinstance(error, ConfigError) and message in str(error)


def test_a_pinned_prompt_that_is_not_there(base: Path, shelf: Path) -> None:
    assert isinstance(refused("serve", *options(base, shelf), "--prompt", "x=./none"), StoreError)


def test_an_address_that_is_taken(base: Path, shelf: Path) -> None:
    with listen_module.listen("127.0.0.1", 0) as taken:
        error = refused("serve", *options(base, shelf), "--port", taken.getsockname()[1])
    assert "cannot listen there" in str(error)


def test_without_the_servers_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; help does not need them."""
    monkeypatch.setattr(verb, "SERVER_PACKAGES", ("fastapi", "no_such_package"))
    error = refused("serve", "--model", "smollm2-135m")
    assert isinstance(error, ConfigError)
    assert (error.got, error.hint) == ("no no_such_package", "pip install 'softprompt[serve]'")
    assert "--prompts-dir" in softprompt("serve", "--help").stdout


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded before the error."""
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None if name == "vllm" else name)
    error = refused("serve", "--model", "none", "--engine", "vllm", "--engine-option", "tensor_parallel_size=2")
    assert isinstance(error, MissingExtraError) and error.what == "vllm is not installed here"
    assert error.hint is not None and "pip install 'softprompt[vllm]'" in error.hint


def test_options_of_vllm() -> None:
    texts = ("tensor_parallel_size=2", "quantization=fp8", "enforce_eager=true", 'hf_overrides={"a": 1}', "revision=")
    arguments = [argument for text in texts for argument in ("--engine-option", text)]
    options = parse_engine_options(engine_named("vllm"), [*arguments, "--engine-option=seed=1"])
    assert isinstance(options, VllmOptions)
    expected = {"tensor_parallel_size": 2, "quantization": "fp8", "enforce_eager": True, "hf_overrides": {"a": 1}}
    assert options.engine_arguments == expected | {"revision": "", "seed": 1}
    assert parse_engine_options(engine_named("vllm"), []) == VllmOptions()


@pytest.mark.parametrize("texts", [("seed",), ("--seed=1",), ("=1",), ("seed=1", "seed=2")])
def test_what_is_no_option_of_vllm(texts: tuple[str, ...]) -> None:
    arguments = [argument for text in texts for argument in ("--engine-option", text)]
    with pytest.raises(ConfigError, match="not an option"):
        parse_engine_options(engine_named("vllm"), arguments)


def test_only_vllm_takes_its_options() -> None:
    error = refused("serve", "--model", "none", "--engine-option", "rows=2")
    assert isinstance(error, ConfigError) and error.what == "this is an option of another engine: vllm"
    assert error.hint == "--engine vllm"


def test_help_imports_none_of_them() -> None:
    heavy = "fastapi, uvicorn, structlog, torch"
    code = f"import softprompt.cli.main, sys; print(sorted(set('{heavy}'.split(', ')) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_from_the_command_line_to_an_answer_and_back(base: Path, shelf: Path) -> None:
    """A process of its own: it says where it listens, answers, and ends with 0 when it is told to."""
    key = "k" * 32
    environment = {**os.environ, "SOFTPROMPT_API_KEYS": key, "PYTHONPATH": str(Path(__file__).parents[2])}
    page = "http://localhost:3000"
    chosen = ("--allow-origin", page, "--allow-origin", "https://a.example", "--system", "ignore")
    arguments = [str(option) for option in (*options(base, shelf), "--port", 0, "--log", "json", *chosen)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        port = _port(process.stderr)
        body = json.dumps({"model": "one", "prompt": "A", "temperature": 0, "max_tokens": 4}).encode()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "origin": page}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 4
            assert reply.headers["access-control-allow-origin"] == page
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A"}]
        body = json.dumps({"model": "one", "messages": turns, "max_tokens": 1}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            assert reply.status == 200, "the system turn is ignored"
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    events = [json.loads(line)["event"] for line in rest.splitlines()]
    assert events == ["request", "request", "draining", "stopped"]
    assert key not in rest


def _port(stderr: IO[str]) -> int:
    """Of the line that says where the server listens."""
    said = list[str]()
    for line in stderr:
        said.append(line)
        if line.startswith("{") and json.loads(line)["event"] == "listening":
            return int(json.loads(line)["port"])
    raise AssertionError("".join(said))
