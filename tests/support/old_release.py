"""Artifacts of release 0.1: a copy to work in, and comparison with the results of that release."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.deprecation import RenamedWarning
from tests.support.shell import done

ARTIFACTS = Path(__file__).with_name("artifacts_0_1")
EXPECTED: dict[str, Any] = json.loads((ARTIFACTS / "expected.json").read_text(encoding="utf-8"))


def copy_artifacts(target: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything as the working directory, with `home` as the folder of soft prompts."""
    folder = shutil.copytree(ARTIFACTS, target, ignore=shutil.ignore_patterns("help", "*.py", "*.md", "resumed"))
    shutil.copytree(ARTIFACTS / "data", folder / "data", dirs_exist_ok=True)  # with its *.md
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SOFTPROMPT_HOME", home)
    torch.set_num_threads(1)
    return folder


def run_old(*command: str) -> tuple[str, list[str]]:
    """What a command of release 0.1 prints, and the warnings about its old spellings; no other warning may come."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", RenamedWarning)
        output = done(*command).stdout
    return output, [str(warning.message) for warning in caught]


def assert_like(actual: Any, expected: Any, tolerance: float, where: str = "") -> None:
    """Every key, text and whole number of `expected` is in `actual`; other numbers differ by no more than that."""
    if isinstance(expected, dict):
        assert expected.keys() <= actual.keys(), (where, expected.keys() - actual.keys())
        for key, value in expected.items():
            assert_like(actual[key], value, tolerance, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, (value, wanted) in enumerate(zip(actual, expected, strict=True)):
            assert_like(value, wanted, tolerance, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert actual == expected, where
