"""Every settings file that comes with the repository works: it resolves, and its data fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.data.splits import load_splits
from softprompt.data.template import Template, fill
from softprompt.methods.registry import method_specs
from softprompt.prompts import store
from softprompt.settings import to_yaml
from softprompt.training.config import Config, resolve
from softprompt.training.run import fit, prepare
from tests.support.saved import save_tiny
from tests.support.tiny import DEVICE, tiny_lm

METHODS = tuple(method_specs())

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.y*ml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_are_some() -> None:
    assert Path("configs/helpdesk.yaml") in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_resolves_and_says_something(path: Path) -> None:
    settings = resolve({}, path)
    assert settings != Config()
    assert settings.data is not None
    assert resolve({"name": "mine"}, path).name == "mine"


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_can_be_printed_and_read_again(path: Path, tmp_path: Path) -> None:
    settings = resolve({}, path)
    (tmp_path / "again.yaml").write_text(to_yaml(settings), encoding="utf-8")
    assert resolve({}, tmp_path / "again.yaml") == settings


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_its_data_exists_and_fits_its_template(path: Path) -> None:
    settings = resolve({}, path)
    places = settings.data if isinstance(settings.data, dict) else {"": settings.data}
    for task, place in places.items():
        splits = load_splits(str(place), seed=settings.train.seed)
        text = settings.template.get(task) if isinstance(settings.template, dict) else settings.template
        if text is not None:
            template = Template("chat" if settings.chat else "text", text)
            for record in [*splits.train, *splits.validation, *splits.test]:
                assert fill(template, record).strip() != ""


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """Two steps with a tiny model; what it saves can be loaded."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    asked = resolve({}, path)
    room = 120 if asked.method.init in ("demonstrations", "best") else 6
    flags: dict[str, Any] = {
        "model": str(base),
        "name": "mine",
        "dtype": "float32",
        "device": DEVICE,
        "max_length": 125,
    }
    flags |= {"drop_long": True, "method.n_tokens": room, "train.minutes": "null", "train.steps": 2}
    if "hidden" in type(asked.method).model_fields:
        flags["method.hidden"] = 8
    if asked.method.init_text:
        flags["method.init_text"] = "Sort the message."  # the tiny model's context is short
    for source in dict.fromkeys(asked.method.prompt_names()):  # prompts that are to be there
        changes = {"name": source, "method.name": "prompt-tuning", "method.init": "vocab", "train.seed": len(source)}
        plain = {"method.init_from": "null", "method.sources": ""}
        fit(prepare(resolve(flags | changes | plain, path)), tiny_lm())
    outcome = fit(prepare(resolve(flags, path)), tiny_lm())
    assert outcome.result.step == 2
    for folder, card in outcome.saved:
        prompt, again = store.load(folder, tiny_lm().geometry)
        assert (again, prompt.n_tokens) == (card, card.n_tokens)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_one(name: str) -> None:
    assert name in {resolve({}, path).method.name for path in CONFIGS}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")
