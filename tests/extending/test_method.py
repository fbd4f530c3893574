"""A new method: a settings class, a module that is trained, and one `register_method`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.testing import assert_close

from softprompt.errors import ConfigError
from softprompt.methods import registry
from softprompt.methods.base import Start
from softprompt.methods.registry import MethodSpec, build_method, method_settings, method_spec
from softprompt.prompts import store
from tests.extending.toy_method import TOY, Toy, ToyConfig
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import TEMPLATE, save_tiny
from tests.support.shell import SHORT, done, refused
from tests.support.tiny import tiny_lm


@pytest.fixture
def toy() -> Iterator[None]:
    registry.register_method(TOY)
    yield
    registry.unregister_method("toy")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The beginning of a command line that trains a tiny model in a few steps."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    data = write_jsonl(tmp_path / "rows.jsonl", *labelled(24))
    return ("train", "--model", save_tiny(tmp_path / "base"), "--data", data, "--template", TEMPLATE, *SHORT)


@pytest.mark.usefixtures("toy")
def test_it_is_trained_by_the_command_line(train: tuple[object, ...]) -> None:
    method = ("--method", "toy", "--method.scale", 3)
    done(*train, *method, "--name", "tone", "--recipe", "fixed", "--init", "vocab")
    prompt, card = store.load("tone")
    assert (card.form, card.n_tokens) == ("embedding", 4)
    assert card.method["name"] == "toy" and card.method["scale"] == 3
    start = build_method("toy", tiny_lm(), Start(4, "vocab")).freeze()[0].matrix()
    change = prompt.matrix() - start
    assert change.abs().max() > 0
    assert_close(change, change[:1].expand_as(change), rtol=0, atol=1e-5)  # one direction, for every token
    answers = done("generate", "tone", "hello", "--dtype", "float32", "--max-new-tokens", 3)
    assert answers.exit_code == 0


@pytest.mark.usefixtures("toy")
def test_its_settings_are_listed_checked_and_its_own(train: tuple[object, ...]) -> None:
    shown = done(*train, "--method", "toy", "--print-config").stdout
    assert "# factor of what is learned (of toy)\n  scale: 1.0\n" in shown
    assert "scale" not in done(*train, "--print-config").stdout
    error = refused(*train, "--name", "tone", "--method", "toy", "--method.scale", -1)
    assert isinstance(error, ConfigError) and error.where == "method.scale (flags)"
    error = refused(*train, "--name", "tone", "--method", "prompt-tuning", "--method.scale", 3)
    assert isinstance(error, ConfigError) and error.where == "method.scale (flags)"
    assert "prompt-tuning has no such setting" in str(error) and "n_tokens" in str(error)


@pytest.mark.usefixtures("toy")
def test_a_method_of_the_taken_name_is_refused() -> None:
    registry.register_method(TOY)  # the same one again is no mistake
    with pytest.raises(ConfigError, match="registered already"):
        registry.register_method(MethodSpec("toy", ToyConfig, build=Toy, form="embedding"))


def test_without_it_the_name_is_unknown(train: tuple[object, ...]) -> None:
    error = refused(*train, "--name", "tone", "--method", "toy")
    assert "prompt-tuning" in str(error)


class _EntryPoint:
    """An entry point of another distribution."""

    name, value = "toy", "other.spec:SPEC"

    def __init__(self, loaded: object) -> None:
        self._loaded = loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (TOY, ""),
        (MethodSpec("other", ToyConfig, build=Toy, form="embedding"), "is not a MethodSpec"),
        (ImportError("no module named other"), "cannot be loaded: ImportError"),
    ],
)
def test_a_method_of_another_distribution(loaded: object, message: str) -> None:
    def entry_points(group: str) -> list[_EntryPoint]:
        return [_EntryPoint(loaded)] if group == "softprompt.methods" else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", entry_points)
        registry.load_method_plugins()
    try:
        if not message:
            assert method_spec("toy") is TOY
            assert isinstance(method_settings({"name": "toy"}), ToyConfig)
            return
        with pytest.raises(ConfigError, match=message):
            method_spec("toy")
        with pytest.raises(ValueError, match=message):
            method_settings({"name": "toy"})
        assert method_spec("prompt-tuning").form == "embedding"
    finally:
        registry.load_method_plugins()
        if not message:
            registry.unregister_method("toy")
