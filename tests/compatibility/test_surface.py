"""Everything that a user of 0.1 could type or import still works, renamed things with a warning (surface.json)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import softprompt
from softprompt import errors
from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.cli.main import app
from softprompt.cli.options import old_flags
from softprompt.cli.overrides import parse_overrides
from softprompt.deprecation import RenamedWarning
from softprompt.distillation.config import DistillConfig
from softprompt.models.sources import cache_home
from softprompt.prompts import store
from softprompt.server.api_keys import ADMIN_ENV, USER_ENV
from softprompt.settings import resolve_settings
from softprompt.training.config import Config
from tests.support.shell import softprompt as shell

SURFACE: dict[str, Any] = json.loads(
    Path(__file__).parents[1].joinpath("support/artifacts_0_1/surface.json").read_text()
)
COMMANDS: Any = typer.main.get_command(app)
KINDS: dict[str, Any] = {"train": Config, "sweep": Config, "distil": DistillConfig}
KEYS = [(verb, key) for verb in ("train", "distil") for key in SURFACE["config"][verb]]
TYPED = {"bool": "true", "int": "9", "float": "0.5"}  # other settings: a text


def warned(recorded: list[warnings.WarningMessage]) -> list[str]:
    """Messages of the renamed names."""
    return [str(item.message) for item in recorded if item.category is RenamedWarning]


def command_of(verb: str) -> Any:
    """The command of an old verb, such as "data check"."""
    command = COMMANDS
    for word in verb.split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedWarning)
            command = command.get_command(None, word)
        assert command is not None, f"no verb {verb!r}"
    return command


@pytest.mark.parametrize("verb", [verb for verb in SURFACE["cli"] if verb != "softprompt"])
def test_every_verb_and_flag_is_there(verb: str) -> None:
    command = command_of(verb)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for parameter in SURFACE["cli"][verb]["parameters"]:
        if parameter["kind"] == "argument":
            assert len([own for own in command.params if own.param_type_name == "argument"]) >= 1
            continue
        for flag in (*parameter["flags"], *parameter.get("off_flags", ())):
            if flag in known:
                continue
            if verb == "serve":
                parse_engine_options(engine_named("vllm"), [flag, "max_num_seqs=8"])
                continue
            renamed = old_flags(KINDS[verb])
            with pytest.warns(RenamedWarning, match=f"{flag} is now --"):
                values, _ = parse_overrides([flag, "9"], renamed)
            assert values == {renamed[flag.lstrip("-")].setting: "9"}


def test_an_old_verb_warns() -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        names = [verb for verb in SURFACE["cli"]["softprompt"]["verbs"] if COMMANDS.get_command(None, verb) is not None]
    assert names == SURFACE["cli"]["softprompt"]["verbs"]
    renamed = [verb for verb in names if verb not in COMMANDS.list_commands(None)]
    assert renamed == ["distil"] and len(warned(recorded)) == len(renamed)


@pytest.mark.parametrize(("verb", "key"), KEYS, ids=[" ".join(pair) for pair in KEYS])
def test_every_setting_takes_its_old_values(verb: str, key: str, tmp_path: Path) -> None:
    """As a flag, in YAML and from the environment; a value that is spelled otherwise now comes with a warning."""
    old = SURFACE["config"][verb][key]
    nested: Any = old["default"]
    for part in reversed(key.split(".")):
        nested = {part: nested}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(nested), encoding="utf-8")
    values = old["choices"] or ([] if old["default"] in (None, []) else [str(old["default"]).strip("[]")])
    for value in values or [TYPED.get(old["type"].split(" ")[0], "a")]:
        value = "9" if old["type"] == "tuple[int, ...]" else value
        spellings = ({key: value}, None, {}), ({}, None, {old["environment"]: value}), ({}, path, {})
        dumps: list[dict[str, Any]] = []
        for flags, yaml_path, environment in spellings:
            with warnings.catch_warnings(record=True) as recorded:
                warnings.simplefilter("always")
                settings = resolve_settings(KINDS[verb], flags, yaml_path, environment)
            dumps.append(settings.model_dump())
            known = dumps[-1]
            for part in key.split("."):
                known = known.get(part) if isinstance(known, dict) else None
            is_default = yaml_path is not None
            if not is_default and old["choices"] and known != value:
                assert warned(recorded), f"{key}={value} became {known!r} without a warning"
        assert dumps[0] == dumps[1]


def test_every_public_name_can_be_imported() -> None:
    for name in SURFACE["python"]:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            assert getattr(softprompt, name) is not None
        assert bool(warned(recorded)) == (name not in softprompt.__all__), name


def test_every_error_is_caught_as_before() -> None:
    for name, bases in SURFACE["errors"].items():
        now = [base.__name__ for base in getattr(errors, name).__mro__]
        assert set(bases) <= set(now)


def test_the_environment_still_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    assert (store.home(), cache_home()) == (tmp_path / "home", tmp_path / "cache")
    monkeypatch.delenv("SOFTPROMPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "softprompt"
    assert {USER_ENV, ADMIN_ENV} <= SURFACE["environment"].keys()
    assert shell("list").exit_code == 0
