"""A new serving engine: a class with the methods of `Engine`, its options, and one `register_engine`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softprompt.engine import registry
from softprompt.engine.registry import EngineSpec
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.server import logs
from softprompt.server.uvicorn_server import listen
from tests.extending.toy_engine import TOY, ToyOptions, create_toy
from tests.support.shell import done, refused
from tests.support.tiny import DEVICE, tiny_model, tiny_tokenizer


@pytest.fixture
def toy() -> Iterator[None]:
    registry.register_engine(TOY)
    yield
    registry.unregister_engine("toy")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model in a folder, and a shell without settings."""
    for name in [name for name in os.environ if name.startswith("SOFTPROMPT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "")
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def served(body: dict[str, Any], *arguments: object) -> Any:
    """The reply to one completion request, from a server that the command line starts and SIGTERM ends."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    replies = list[Any]()

    def client() -> None:
        url, headers = f"http://127.0.0.1:{port}/v1/completions", {"content-type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        for _ in range(200):
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    replies.append(json.load(reply))
                break
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionError):
                    raise
                time.sleep(0.05)
        if replies:  # the server answers, so it also takes signals
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        done("serve", *arguments, "--port", port)
    finally:
        thread.join()
    return replies[0]


@pytest.mark.usefixtures("toy")
def test_an_engine_is_served_with_its_own_option(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda kind: None)  # it would replace the tests' own handlers
    body = {"model": "base", "prompt": "ab!"}
    model = ("--model", base, "--dtype", "float32", "--device", DEVICE)
    reply = served(body, *model, "--engine", "toy", "--own-option", "3", "--shout")
    assert reply["choices"][0]["text"] == "!!!"
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.usefixtures("toy")
def test_help_lists_the_options_of_every_engine() -> None:
    output = done("serve", "--help").stdout
    assert "--engine toy" in output and "Echoes." in output
    options = output.partition("Options of --engine toy:")[2]
    assert "--own-option" in options and "How often the text is echoed." in options and "[default: 2]" in options
    assert "--shout/--whisper" in options
    assert "--engine-option" in output.partition("Options of --engine vllm:")[2]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "toy", "--own-option", "none"), "integer"),
        (("--engine", "toy", "--own-option", "0"), "greater than or equal to 1"),
        (("--engine", "toy", "--own-option"), "needs a value"),
        (("--engine", "toy", "--shout=yes"), "no such option"),
        (("--engine", "toy", "--own-optoin", "3"), "did you mean --own-option?"),
        (("--own-option", "3"), "an option of another engine: toy"),
        (("--engine", "toy", "--engine-option", "seed=1"), "an option of another engine: vllm"),
        (("--engine", "sglang"), "no such engine"),
    ],
)
def test_an_option_that_is_refused(arguments: tuple[str, ...], message: str) -> None:
    error = refused("serve", "--model", "none", *arguments)
    assert isinstance(error, ConfigError) and message in str(error)


def test_an_engine_whose_package_is_missing() -> None:
    spec = EngineSpec("toy", "", ToyOptions, create_toy, packages=("no_such_package",), install_hint="pip install it")
    registry.register_engine(spec)
    try:
        error = refused("serve", "--model", "none", "--engine", "toy")
    finally:
        registry.unregister_engine("toy")
    assert isinstance(error, MissingExtraError)
    assert (error.what, error.hint) == ("no_such_package is not installed here", "pip install it")


@pytest.mark.usefixtures("toy")
def test_a_name_that_is_taken() -> None:
    registry.register_engine(TOY)  # the same one again is no mistake
    with pytest.raises(ConfigError, match="registered already"):
        registry.register_engine(EngineSpec("toy", "", ToyOptions, create_toy))


class _EntryPoint:
    """An entry point of another distribution."""

    name, value = "plugin", "other.spec:SPEC"

    def __init__(self, found: object) -> None:
        self._found = found

    def load(self) -> object:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (EngineSpec("plugin", "Of a plug-in.", ToyOptions, create_toy), ""),
        (EngineSpec("other", "", ToyOptions, create_toy), "not an engine"),
        (ImportError("no module named sglang"), "cannot be loaded"),
    ],
)
def test_an_engine_of_another_distribution(found: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str, name: str = "plugin") -> list[_EntryPoint]:
        return [_EntryPoint(found)] if (group, name) == ("softprompt.engines", "plugin") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    if not message:
        assert registry.find_engine("plugin") is found
        assert "Of a plug-in." in done("serve", "--help").stdout
        return
    with pytest.raises(ConfigError, match=message):
        registry.find_engine("plugin")
    assert "--engine transformers" in done("serve", "--help").stdout
