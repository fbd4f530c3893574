"""`softprompt compose`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from softprompt.errors import ConfigError, PromptError, SoftpromptError, StoreError, WrongBaseError
from softprompt.prompts import store
from tests.support.shell import done, parsed, refused


@pytest.fixture
def own(library: Path, tmp_path: Path) -> Path:
    """Copies of the trained prompts, beside which new ones may be written."""
    return Path(shutil.copytree(library / "prompts", tmp_path / "prompts"))


@pytest.mark.usefixtures("no_model")
def test_arithmetic_loads_no_model(own: Path) -> None:
    output = done("compose", "0.75*ok + 0.25*no", "--name", "mix").stdout
    assert "saved" in output and "kv, 6 virtual tokens" in output and "softprompt eval mix" in output
    ok, no, mix = (store.load(name)[0].tensors() for name in ("ok", "no", "mix"))
    for name, tensor in mix.items():
        torch.testing.assert_close(tensor, 0.75 * ok[name].float() + 0.25 * no[name].float())
    assert parsed("show", "mix", "--json")["method"] == {"name": "compose", "expression": "0.75*ok + 0.25*no"}
    assert "compose" in (own / "mix" / "README.md").read_text()


def test_joined_prompts_answer(own: Path) -> None:
    """The base model is found by the cards; the result is a soft prompt like any other."""
    done("compose", "ok | no", "--name", "both", "--dtype", "float32")
    assert parsed("show", "both", "--json")["n_tokens"] == 12
    done("compose", "resize(both, 6)", "--name", "both", "--overwrite", "--dtype", "float32")
    assert parsed("show", "both", "--json")["n_tokens"] == 6
    assert done("generate", "both", "question 3", "--max-new-tokens", 4, "--dtype", "float32").stdout


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("expression", "options", "kind", "part"),
    [
        ("ok -no", (), ConfigError, "spaces around"),
        ("ok + nothing", (), StoreError, "no such soft prompt"),
        ("ok + Nothing", (), StoreError, "not a usable name"),
        ("ok + no", ("--name", "ok"), StoreError, "--overwrite"),
        ("ok + no", ("--name", "N!"), StoreError, "not a usable name"),
        ("ok + parity", (), ConfigError, "--template-of ok"),
        ("ok + no", ("--template-of", "parity"), ConfigError, "not part of the expression"),
        ("ok + short", ("--template-of", "ok"), PromptError, "resize"),
    ],
)
def test_mistakes(expression: str, options: tuple[str, ...], kind: type[SoftpromptError], part: str, own: Path) -> None:
    if "short" in expression:
        shutil.copytree(own / "parity", own / "short")
    error = refused("compose", expression, *(() if "--name" in options else ("--name", "new")), *options)
    assert isinstance(error, kind) and part in str(error)
    assert not (own / "new").exists()


def test_a_wrong_base_model(own: Path, strangers: dict[str, Path]) -> None:
    error = refused("compose", "ok | no", "--name", "new", "--model", strangers["weights"], "--dtype", "float32")
    assert isinstance(error, WrongBaseError)
    assert not (own / "new").exists()
