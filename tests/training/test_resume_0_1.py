"""Settings of 0.1 mean the same, and runs that it left unfinished go on.

Digests in checkpoints cover the settings under their old names and with their old defaults.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from softprompt.distillation.config import OWN, DistillConfig
from softprompt.methods.legacy import legacy_dump
from softprompt.settings import resolve_settings, to_yaml
from softprompt.training.config import Config
from tests.support.shell import done

FILES = Path(__file__).parents[1] / "support" / "artifacts_0_1"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
RUNS: dict[str, Any] = EXPECTED["unfinished"]

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.deprecation.RenamedWarning")


@pytest.mark.parametrize("name", EXPECTED["configs"])
def test_settings_mean_what_they_meant(name: str, tmp_path: Path) -> None:
    """Also after they were written anew; a training setting of another method too."""
    expected = EXPECTED["configs"][name]
    distills = expected["kind"] == "DistilConfig"
    path = FILES / "configs" / name
    for _ in range(2):
        settings: Any = resolve_settings(DistillConfig if distills else Config, {}, path)
        old = settings.model_dump(mode="json")
        old["method"] = legacy_dump(settings.method, **(OWN["method"] if distills else {}))
        old["train"] = json.loads(json.dumps(settings.train.legacy_dump(exclude=set())))
        assert old == expected["settings"]
        path = tmp_path / "again.yaml"
        path.write_text(to_yaml(settings), encoding="utf-8")


@pytest.mark.parametrize("way", ["command", "by_config"])
@pytest.mark.parametrize("name", ["blend", "tasks", "methods"])
def test_an_unfinished_run_goes_on(name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that was typed, and with the config.yaml of the run alone."""
    for part in ("model", "data", "prompts", "unfinished"):
        shutil.copytree(FILES / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_HOME", "unfinished")
    again = [] if "--resume" in RUNS[name][way] else ["--resume"]
    done(*RUNS[name][way], *again)
    for prompt, expected in RUNS[name]["prompts"].items():
        card = json.loads((tmp_path / "unfinished" / prompt / "card.json").read_text(encoding="utf-8"))
        assert card["form"] == expected["form"]
        assert card["metrics"]["steps"] == expected["metrics"]["steps"]
        assert card["metrics"]["validation_loss"] == pytest.approx(expected["metrics"]["validation_loss"], abs=1e-3)
