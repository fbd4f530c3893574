"""Every settings file that comes with the repository works: it resolves, and its data fits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.config import Config, resolve, to_yaml
from softprompt.data.load import load_splits
from softprompt.data.template import Template, fill

ROOT = Path(__file__).parent.parent
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
