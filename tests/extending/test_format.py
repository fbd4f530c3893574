"""A foreign format, read and written, without a change to the package: a text file of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from softprompt.errors import StoreError
from softprompt.interchange.registry import Format, detect_format, formats, register_format, unregister_format, writable
from softprompt.prompts import store
from softprompt.prompts.forms import EmbeddingPrompt
from tests.extending.toy_format import HEAD, matches, read, write
from tests.support.saved import save_tiny
from tests.support.shell import done, parsed, refused

TABLE = torch.arange(64.0).view(2, 32) / 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    register_format(Format("numbers", matches, read, write))
    yield
    unregister_format("numbers")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.npy"  # the name does not count
    path.write_bytes(HEAD + "\n".join(" ".join(map(str, row)) for row in TABLE.tolist()).encode())
    return path


def test_it_is_detected_by_its_content(numbers: Path, tmp_path: Path) -> None:
    assert detect_format(numbers) == "numbers"
    assert set(writable()) == {"numbers", "peft"}
    (tmp_path / "other").write_bytes(b"no numbers\n")
    with pytest.raises(StoreError, match="unknown format") as caught:
        detect_format(tmp_path / "other")
    assert str(caught.value.expected).endswith(", numbers")
    with pytest.raises(ValueError, match="registered already"):
        register_format(Format("numbers", matches, read))


def test_there_and_back_on_the_command_line(numbers: Path, base: Path, tmp_path: Path) -> None:
    row = parsed("import", numbers, "-m", base, "-n", "tone", "--dtype", "float32", "--json")
    assert (row["format"], row["form"], row["n_tokens"]) == ("numbers", "embedding", 2)
    prompt, card = store.load("tone")
    assert isinstance(prompt, EmbeddingPrompt) and torch.equal(prompt.embeddings, TABLE)
    assert card.method == {"name": "numbers", "imported_from": "numbers"}
    assert "numbers" in done("export", "tone", "--to", "numbers", "--out", tmp_path / "out").stdout
    assert (tmp_path / "out").read_bytes() == numbers.read_bytes()


def test_a_format_that_is_gone_is_unknown(numbers: Path, base: Path, tmp_path: Path) -> None:
    known = formats()["numbers"]
    unregister_format("numbers")
    try:
        assert refused("import", numbers, "-m", base, "-n", "tone").what == "unknown format"
        assert refused("export", "tone", "--to", "numbers", "--out", tmp_path / "out").what == "no such target"
    finally:
        register_format(known)
