"""What a release needs agrees: versions, changelog, and the page for those who come from an older one."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import softprompt
from softprompt.distillation.config import STUDY_KEYS_0_1

ROOT = Path(__file__).parents[1]
faults: Callable[[str, Path], list[str]] = runpy.run_path(str(ROOT / "scripts" / "release-check"))["faults"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_version_is_released_when_all_files_name_it(release: Path) -> None:
    assert [fault.split(":")[0] for fault in faults("7.8.9", release)] == [
        "pyproject.toml",
        "CITATION.cff",
        "CHANGELOG.md",
    ]
    version = softprompt.__version__
    assert [fault.split(":")[0] for fault in faults(version, release)] == ["CHANGELOG.md"]
    replace(release / "CHANGELOG.md", "## [Unreleased]\n", f"## [Unreleased]\n\n- new\n\n## [{version}] - 2026-12-01\n")
    assert faults(version, release) == ["CHANGELOG.md: lines are left under Unreleased"]
    replace(release / "CHANGELOG.md", "- new\n", "")
    assert faults(version, release) == []


def test_old_names_are_in_the_page_for_those_who_come_from_them() -> None:
    page = (ROOT / "MIGRATION.md").read_text(encoding="utf-8")
    old = [*softprompt.__dict__["_RENAMED"], *STUDY_KEYS_0_1]
    assert [name for name in old if f"{name}`" not in page] == []


def test_actions_are_pinned_by_commit() -> None:
    """A tag can be moved by whoever owns the action; dependabot proposes newer commits."""
    workflows = [path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    used = [line.strip() for text in workflows for line in text.splitlines() if "uses:" in line]
    assert len(used) > 5
    assert [line for line in used if not re.fullmatch(r"- uses: [\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)] == []


def test_empty_environments_try_the_readme_and_every_extra() -> None:
    """scripts/test-extras itself takes minutes and gigabytes; what it would run is checked here."""
    script = runpy.run_path(str(ROOT / "scripts" / "test-extras"), run_name="test")
    commands: list[str] = script["quickstart"]()
    assert [command.split()[1] for command in commands][:3] == ["demo", "train", "eval"]
    assert not any("--minutes" in command for command in commands)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*script["CHECKS"], *script["RESOLVED_ONLY"]} == {*project["optional-dependencies"]}
