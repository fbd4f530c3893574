"""Settings of release 0.1, of training and of distillation, mean the same, also after they were written anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompt.distillation.config import OWN, DistillConfig, study_0_1
from softprompt.methods.legacy import legacy_dump
from softprompt.settings import resolve_settings, to_yaml
from softprompt.training.config import Config, resolve
from tests.support.old_release import ARTIFACTS, EXPECTED


@pytest.mark.filterwarnings("ignore::softprompt.deprecation.RenamedWarning")
@pytest.mark.parametrize("name", [name for name, one in EXPECTED["configs"].items() if one["kind"] == "Config"])
def test_they_mean_what_they_meant(name: str, tmp_path: Path) -> None:
    """Checkpoints of that release have digests of settings under their old names and with their old defaults.

    Settings that came later have their defaults.
    """
    expected = EXPECTED["configs"][name]
    path = ARTIFACTS / "configs" / name
    for _ in range(2):
        settings = resolve({}, path)
        dump = settings.model_dump(mode="json")
        dump["method"] = legacy_dump(settings.method)
        dump["train"] = json.loads(json.dumps(settings.train.legacy_dump(exclude=set())))
        later = {name: dump.pop(name) for name in dump.keys() - expected["settings"].keys()}
        assert dump == expected["settings"]
        defaults = Config().model_dump(mode="json")
        assert later == {name: defaults[name] for name in later}
        path = tmp_path / "again.yaml"
        path.write_text(to_yaml(settings), encoding="utf-8")


@pytest.mark.filterwarnings("ignore::softprompt.deprecation.RenamedWarning")
@pytest.mark.parametrize("name", [name for name, one in EXPECTED["configs"].items() if one["kind"] == "DistilConfig"])
def test_distillations_mean_what_they_meant(name: str, tmp_path: Path) -> None:
    """Study caches of that release have digests of the study's and the method's settings under their old names."""
    expected = EXPECTED["configs"][name]
    path = ARTIFACTS / "configs" / name
    for _ in range(2):
        settings = resolve_settings(DistillConfig, {}, path)
        dump = settings.model_dump(mode="json")
        dump["study"] = study_0_1(dump["study"])
        dump["method"] = legacy_dump(settings.method, **OWN["method"])
        dump["train"] = json.loads(json.dumps(settings.train.legacy_dump(exclude=set())))
        later = {name: dump.pop(name) for name in dump.keys() - expected["settings"].keys()}
        assert dump == expected["settings"]
        defaults = DistillConfig().model_dump(mode="json")
        assert later == {name: defaults[name] for name in later}
        path = tmp_path / "again.yaml"
        path.write_text(to_yaml(settings), encoding="utf-8")
