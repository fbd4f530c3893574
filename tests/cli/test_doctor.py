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
    rows = parsed("doctor", "--json")
    for name in ("softprompt", "torch", "transformers", "accelerate", "safetensors"):
        assert rows[name] == version(name)
    assert rows["python"] == platform.python_version()
    assert rows["prompts"] == str(tmp_path / "prompts")
    assert rows["cache"] == str(tmp_path / "cache")
    assert rows["HF_HUB_OFFLINE"] == "1"
    assert "device" in rows["choice"] and "dtype" in rows["choice"]


def test_doctor_resolves_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTPROMPT_HOME")
    assert parsed("doctor", "--json")["prompts"] == str(tmp_path / "prompts")


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["rich>=1", "torch>=2; extra == 'speed'", "no-such-package>=1; extra == 'toys'", "torch; extra == 'toys'"]
    needs += ["softprompt[speed,toys]; extra == 'all'", "no-such-package>=1; extra == 'all'"]
    monkeypatch.setattr(doctor, "requires", lambda _: needs)
    monkeypatch.setattr(doctor, "BUILT_IN", {"small": ("no_such_module", "small.gguf", "some-wheel==1.0")})
    rows = parsed("doctor", "--json")
    assert "pip install no-such-package" in rows["no-such-package"]
    assert rows["extra speed"] == "installed"
    assert rows["extra toys"] == "missing no-such-package: pip install 'softprompt[toys]'"
    assert "extra all" not in rows
    assert rows["small"] == "missing: pip install --no-deps some-wheel==1.0"
    assert rows["torch"] == version("torch"), "what is installed is not missing"


def test_doctor_for_people_shows_the_same() -> None:
    output = done("doctor", COLUMNS="40").stdout
    for name, value in parsed("doctor", "--json").items():
        assert value.startswith("not installed (optional)") or f"{name:<16}{value}\n" in output
