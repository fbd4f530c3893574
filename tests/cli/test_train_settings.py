"""`softprompt train`: settings from YAML, environment and flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from softprompt.cli.options import setting_options
from softprompt.cli.overrides import parse_overrides
from softprompt.errors import ConfigError
from softprompt.settings import known_keys
from softprompt.training.config import Config, MethodConfig
from tests.support.shell import done, refused

EXAMPLES: dict[str, Any] = {
    "model": "owner/name",
    "base_adapter": "adapters/tone",
    "data": "rows.jsonl",
    "name": "tone",
    "template": r"Review: {text}\nSentiment:",
    "chat": True,
    "recipe": "fixed",
    "method": "prompt-tuning",
    "n_tokens": 7,
    "init": "vocab",
    "init_text": "Be kind.",
    "init_from": "tone",
    "steps": 11,
    "minutes": 2.5,
    "batch_size": 3,
    "lr": 0.125,
    "seed": 5,
    "max_length": 99,
    "columns": "prompt=q,completion=a",
    "frame": "Please {prompt}.",
    "pieces": 512,
    "learn_end": True,
    "epochs": 2.5,
    "drop_long": True,
    "dtype": "float16",
    "load_in": "4bit",
    "device": "cuda",
    "device_map": "auto",
    "fsdp": True,
    "objective": "dpo",
    "beta": 0.25,
    "reward": "rules.py:score",
    "group_size": 4,
    "max_new_tokens": 9,
}
NAMED = {"method": "method.name", "objective": "objective.name"}  # flags that are called otherwise than their settings


def settings(*args: object, **environment: str) -> dict[str, Any]:
    """What --print-config says, flat."""
    shown = yaml.safe_load(done("train", *args, "--print-config", **environment).stdout)
    flat = dict[str, Any]()
    for name, value in shown.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_print_config_round_trips(tmp_path: Path) -> None:
    first = done("train", "--name", "tone", "--template", r"{text}\n: é", "--minutes", 3, "--print-config").stdout
    path = tmp_path / "config.yaml"
    path.write_text(first, encoding="utf-8")
    assert done("train", path, "--print-config").stdout == first
    shown = Config.model_validate(yaml.safe_load(first))
    assert (shown.name, shown.template, shown.train.minutes) == ("tone", r"{text}\n: é", 3.0)
    assert Config.model_validate(yaml.safe_load(done("train", "--print-config").stdout)) == Config()


def test_every_flag_sets_what_it_stands_for() -> None:
    """And nothing else."""
    known = known_keys(Config)
    flags = {option.parameter: option.setting for option in setting_options(Config)}
    assert EXAMPLES.keys() == flags.keys()
    assert set(flags.values()) <= known.keys()
    before = settings()
    assert before.keys() <= known.keys()
    assert all(key.startswith("method.") for key in known.keys() - before.keys()), "settings of other methods"
    for flag, value in EXAMPLES.items():
        setting = NAMED.get(flag) or next(key for key in known if key.split(".")[-1] == flag)
        typed = () if value is True else (value,)
        assert before[setting] != value
        more = {"method.init": "prompt"} if flag == "init_from" else {}
        after, wanted = settings(f"--{flag.replace('_', '-')}", *typed), before | {setting: value} | more
        assert after == {key: value for key, value in wanted.items() if key in after}
        assert after.keys() == wanted.keys() or flag == "method", "another method has other settings"
    assert settings("--no-chat")["chat"] is False


def test_help_lists_what_can_be_set() -> None:
    """Every flag, and the choices of those that have some."""
    text = " ".join(done("train", "--help", COLUMNS="80").stdout.split())
    for flag in EXAMPLES:
        assert re.search(rf" --{flag.replace('_', '-')}[ ,]", text)
    shown = done("train", "--print-config").stdout
    for name in ("name", "init"):
        for choice in get_args(MethodConfig.model_fields[name].annotation):
            assert choice in shown
    for choice in ("prefix-tuning", "prompt-tuning", "demonstrations"):
        assert choice in text


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["--train.learning_rate", "1e-3"], "train.lr"),
        (["--train.num_train_epochs", "3"], "train.epochs"),
        (["--train.per_device_train_batch_size", "3"], "train.batch_size"),
        (["--num-virtual-tokens", "3"], "method.n_tokens"),
        (["--model-name-or-path", "x"], "model"),
        (["--train.epoch", "3"], "train.epochs"),
        (["--train.lrr", "3"], "train.lr"),
        (["--warmup-ratio", "0.1"], "train.warmup"),
        (["--steps-per-run", "3"], None),
    ],
)
def test_names_of_other_libraries_are_understood_or_answered(typed: list[str], wanted: str | None) -> None:
    error = refused("train", *typed, "--print-config")
    assert "unknown setting" in error.what
    if wanted is not None:
        assert str(error.hint).startswith(f"did you mean {wanted}?")


def test_epochs_and_learning_rate_are_flags() -> None:
    found = settings("--epochs", 3, "--learning-rate", "1e-3")
    assert (found["train.epochs"], found["train.lr"], found["train.steps"]) == (3.0, 1e-3, None)


def test_yaml_then_environment_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: from-yaml\nmodel: from/yaml\ntrain:\n  lr: 0.5\n  steps: 7\n  seed: 1\n")
    environment = {"SOFTPROMPT__TRAIN__LR": "0.25", "SOFTPROMPT__TRAIN__STEPS": "8"}
    assert settings(path)["train.lr"] == 0.5
    found = settings(path, "--steps", 9, **environment)
    assert (found["train.steps"], found["train.lr"], found["train.seed"]) == (9, 0.25, 1)
    assert settings(path, "--name", "from-flag")["name"] == "from-flag"
    assert settings(path, "--name", "from-flag")["model"] == "from/yaml"


def test_dotted_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  warmup: 0.3\n  lr: 0.5\n")
    for typed in (["--train.warmup", "0.1"], ["--train.warmup=0.1"]):
        found = settings(path, *typed, "--train.save-every", "9", "--seed", 4)
        assert (found["train.warmup"], found["train.save_every"], found["train.lr"]) == (0.1, 9, 0.5)
        assert found["train.seed"] == 4


def test_what_dotted_flags_may_look_like() -> None:
    typed = ["--train.warmup", "0.1", "--method.init-text=a=b", "--train.clip", "-1", "--data", "--odd"]
    wanted = {"train.warmup": "0.1", "method.init_text": "a=b", "train.clip": "-1", "data": "--odd"}
    assert parse_overrides(typed) == (wanted, None)
    assert parse_overrides(["--train.lr=1", "a.yaml"]) == ({"train.lr": "1"}, Path("a.yaml"))
    assert parse_overrides([]) == ({}, None)
    with pytest.raises(ConfigError, match=r"--train\.warmup needs a value"):
        parse_overrides(["--train.lr", "1", "--train.warmup"])
    with pytest.raises(ConfigError, match=r"unexpected argument 'stray'"):
        parse_overrides(["a.yaml", "--train.lr=1", "stray"])


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (["--train.wramup", "0.1"], ["unknown setting 'train.wramup'", "flags", "did you mean train.warmup?"]),
        (["--warmup=0.1"], ["unknown setting 'warmup'", "did you mean train.warmup?"]),
        (["--train.warmup", "2"], ["train.warmup (flags)", "less than 1", "2"]),
        (["--steps", "-1"], ["train.steps (flags)", "greater than or equal to 0"]),
        (["--method", "magic"], ["method.name (flags)", "prompt-tuning", "magic"]),
        (["--train.warmup"], ["--train.warmup needs a value"]),
    ],
)
def test_settings_that_are_wrong(typed: list[str], parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  lr: 0.5\n")
    error = refused("train", path, *typed, "--print-config")
    assert isinstance(error, ConfigError)
    assert [part for part in parts if part not in str(error)] == []


def test_a_wrong_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert "no such config file" in refused("train", path).what
    path.write_text("train:\n  wramup: 0.1\n")
    error = refused("train", path)
    assert error.where == str(path) and "did you mean train.warmup?" in str(error.hint)


def test_dotted_flags_need_no_file() -> None:
    for typed in (["--train.warmup", "0.1"], ["--train.warmup=0.1"]):
        for args in (typed, [*typed, "--name", "tone"], ["--name", "tone", *typed]):
            assert settings(*args)["train.warmup"] == 0.1
    assert "did you mean train.warmup?" in str(refused("train", "--train.wramup", "0.1").hint)
