"""A verb of another package: a module with a function, and one entry in the table."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from softprompt.cli import verbs
from softprompt.cli.verbs import Verb, register_verb
from tests.extending.toy_verb import DISTANCE, distance_command
from tests.support.shell import done, softprompt


@pytest.fixture(autouse=True)
def toy_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package that is installed beside softprompt, and a table that forgets it afterwards."""
    module = ModuleType(DISTANCE.module)
    module.__dict__["distance_command"] = distance_command
    monkeypatch.setitem(sys.modules, DISTANCE.module, module)
    monkeypatch.setattr(verbs, "_VERBS", dict(verbs._VERBS))
    return module


def test_a_registered_verb_runs_and_is_listed_in_its_section() -> None:
    register_verb(DISTANCE)
    assert done("distance", 3, 5.5, "--squared").stdout == "6.25\n"
    assert "Print its square." in done("distance", "--help").stdout
    section = done("--help").stdout.partition("\nGeometry:\n")[2]
    assert " ".join(section.split("\n\n")[0].split()) == "distance Distance of two numbers."


def test_an_installed_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(name="distance", load=lambda: DISTANCE)
    monkeypatch.setattr(verbs, "entry_points", lambda group: [entry] if group == "softprompt.verbs" else [])
    assert done("distance", 3, 5.5).stdout == "2.5\n"
    assert "\nGeometry:\n" in done("--help").stdout


def test_a_package_that_cannot_be_loaded_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Verb:
        raise ImportError("no toy here")

    entry = SimpleNamespace(name="broken", load=load)
    monkeypatch.setattr(verbs, "entry_points", lambda group: [entry])
    with pytest.warns(UserWarning, match="broken.*no toy here"):
        assert "Learn:" in done("--help").stdout
    assert done("list").exit_code == 0


def test_no_verb_replaces_another() -> None:
    for name in ("train", "distil"):
        with pytest.raises(ValueError, match=f"a verb '{name}' already"):
            register_verb(Verb(name, "toy_package.distance", "distance_command", "Use", "Mine."))
    assert softprompt("distance", 1, 2).exit_code == 2, "not registered"
