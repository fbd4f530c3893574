"""One way to merge settings: defaults < YAML < environment < flags, and nothing unknown in any of them."""

from __future__ import annotations

import itertools
import tempfile
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from softprompt.deprecation import RenamedWarning
from softprompt.errors import ConfigError
from softprompt.methods.registry import method_spec, method_specs
from softprompt.settings import known_keys, to_yaml
from softprompt.training.config import Config, TrainConfig, resolve

SOURCES = ("yaml", "environment", "flags")  # a later one wins


def fields(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every dotted setting with its type and default."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{name}.")
        else:
            found[prefix + name] = (field.annotation, field.default)
    return found


FIELDS = fields()
del FIELDS["objective.reward"]  # Python code, which flags alone may name: tests/cli/test_train_objectives.py


def values_of(name: str) -> list[Any]:
    """Some values that a setting may have, in the order of `SOURCES`; its default may be among them."""
    kind = FIELDS[name][0]
    if name == "method.name":
        return ["prompt-tuning", "smop", "decomposed"]
    if name in ("train.temperature", "objective.temperature"):
        return [1.5, 2.0, 3.0]
    if name == "pieces":
        return [16, 32, 64]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return list(itertools.islice(itertools.cycle(get_args(kind)), 3))
    if get_origin(kind) is tuple:
        return [("a",), ("b", "c"), ("d",)] if get_args(kind)[0] is str else [(1,), (2, 3), (4,)]
    return {int: [3, 4, 5], float: [0.125, 1e-5, 0.375], bool: [True, False, True], str: ["a b", "é", "1e3"]}[kind]


def look_up(made: Config, name: str) -> Any:
    value: Any = made
    for part in name.split("."):
        value = getattr(value, part)
    return value


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return tree


def variable(name: str) -> str:
    return "SOFTPROMPT__" + name.upper().replace(".", "__")


def shell(value: Any) -> str:
    """A value as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _lists(tree: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(tree, dict):
        return {name: _lists(value) for name, value in tree.items()}
    return list(tree) if isinstance(tree, tuple) else tree


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.sets(st.sampled_from(SOURCES), min_size=1)))
def test_the_last_source_that_says_something_wins(given_by: dict[str, set[str]]) -> None:
    expected = {name: default for name, (_, default) in FIELDS.items()}
    said: dict[str, dict[str, Any]] = {source: {} for source in SOURCES}
    for name, sources in given_by.items():
        for source, value in zip(SOURCES, values_of(name), strict=True):
            if source in sources:
                said[source][name] = expected[name] = value
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "a.yaml", yaml.safe_dump(_lists(nested(said["yaml"])), allow_unicode=True))
        typed = {name: shell(value) for name, value in said["flags"].items()}  # as a shell would give them
        environment = {variable(name): shell(value) for name, value in said["environment"].items()}
        made = resolve(typed | {"train.lr": typed.get("train.lr")}, path, {"PATH": "/bin", **environment})
    assert {name: look_up(made, name) for name in FIELDS} == expected


def test_with_nothing_said_the_defaults_hold() -> None:
    assert resolve({}) == Config() == resolve({"train.lr": None, "name": None}, None, {"SOFTPROMPT_HOME": "/x"})


def test_the_real_values_count_not_only_strings() -> None:
    made = resolve({"train.lr": 0.5, "train.steps": 7, "chat": False})
    assert (made.train.lr, made.train.steps, made.chat) == (0.5, 7, False)


def test_null_unsets_what_the_file_says(tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", "method: {init-text: 'null'}\ntrain: {patience: 2}\n")
    assert (resolve({}, path).train.patience, resolve({}, path).method.init_text) == (2, "null")
    assert resolve({"train.patience": "null"}, path).train.patience is None
    assert resolve({}, path, {"SOFTPROMPT__TRAIN__PATIENCE": "null"}).train.patience is None


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_settings_are_finite(value: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr"):
        resolve({"train.lr": value})


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "0.00001", "1.0e-5"])
def test_a_learning_rate_in_yaml_may_have_an_exponent(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads `1e-5` as a text."""
    path = written(tmp_path / "a.yaml", f"train:\n  lr: {text}\n")
    assert resolve({}, path).train.lr == 1e-5


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train: {}\nmethod:\n  # n_tokens: 3\n", "{}"])
def test_an_empty_file_or_section_says_nothing(tmp_path: Path, text: str) -> None:
    assert resolve({}, written(tmp_path / "a.yaml", text)) == Config()


def test_dashes_and_dots_do_for_names_in_yaml(tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", "max-length: 7\ntrain.batch-size: 3\nmethod: {init-text: b}\n")
    made = resolve({}, path)
    assert (made.max_length, made.train.batch_size, made.method.init_text) == (7, 3, "b")


UNKNOWN = [
    ("modell", "model"),
    ("train.lrate", "train.lr"),
    ("train.batchsize", "train.batch_size"),
    ("method.token", "method.n_tokens"),
    ("lr", "train.lr"),
    ("n_tokens", "method.n_tokens"),
    ("optim.lr", "train.lr"),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("name", "meant"), UNKNOWN)
def test_an_unknown_name_is_refused_with_the_one_meant(source: str, name: str, meant: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", yaml.safe_dump(nested({name: 1}) if source == "yaml" else {}))
    flags = {name: "1"} if source == "flags" else {}
    environment = {variable(name): "1"} if source == "environment" else {}
    with pytest.raises(ConfigError) as caught:
        resolve(flags, path, environment)
    assert repr(name) in str(caught.value)
    assert caught.value.hint == f"did you mean {meant}?"
    assert caught.value.where == (str(path) if source == "yaml" else source)


def test_without_a_likeness_the_hint_is_the_list() -> None:
    with pytest.raises(ConfigError, match="--print-config"):
        resolve({"zzzzzzzz": "1"})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.lr", "fast"),
        ("train.lr", "0"),
        ("train.lr", "-1"),
        ("train.lr", "nan"),
        ("train.warmup", "1"),
        ("train.steps", "-1"),
        ("train.steps", "2.5"),
        ("train.minutes", "0"),
        ("train.seed", "-1"),
        ("train.schedule", "sine"),
        ("train.gradient_checkpointing", "perhaps"),
        ("method.name", "lora"),
        ("method.n_tokens", "0"),
        ("method.n_tokens", "8193"),
        ("method.frozen_tokens", "-1"),
        ("max_length", "1"),
    ],
)
def test_a_value_out_of_range_names_setting_and_source(source: str, name: str, value: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", yaml.safe_dump(nested({name: value}) if source == "yaml" else {}))
    flags = {name: value} if source == "flags" else {}
    environment = {variable(name): value} if source == "environment" else {}
    with pytest.raises(ConfigError) as caught:
        resolve(flags, path, environment)
    assert caught.value.where == f"{name} ({path if source == 'yaml' else source})"
    assert str(caught.value.got) == value


def test_a_file_named_like_a_source_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("flags", "environment"):
        assert resolve({}, written(Path(source), "max_length: 7")).max_length == 7


BROKEN = {
    "alias": ("a: &a 1\nb: *a\n", "aliases are not allowed"),
    "bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not allowed"),
    "merge": ("train: &t {lr: 1}\nmethod:\n  <<: *t\n", "aliases are not allowed"),
    "Python object": ("model: !!python/name:os.system\n", "not valid YAML"),
    "Python call": ("model: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    "not closed": ("train: {lr: 1", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "13th month": ("name: 2026-13-01\n", "not valid YAML"),
    "deep": ("a: " + "[" * 600 + "]" * 600, "not valid YAML"),
    "list": ("- model\n", "holds a mapping"),
    "text": ("model", "holds a mapping"),
    "section as text": ("method: prefix-tuning\n", "unknown setting 'method'"),
    "setting as section": ("model: {name: x}\n", "unknown setting 'model.name'"),
    "number as text": ("name: 12\n", "valid string"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused(tmp_path: Path, kind: str) -> None:
    text, message = BROKEN[kind]
    with pytest.raises(ConfigError, match=message):
        resolve({}, written(tmp_path / "a.yaml", text))


def test_a_file_that_is_not_there_or_not_text_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        resolve({}, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="no such config file"):
        resolve({}, tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        resolve({}, tmp_path / "b.yaml")
    path = written(tmp_path / "c.yaml", "name: tone\n")
    monkeypatch.setattr("softprompt.settings.MAX_YAML_BYTES", 11)
    assert resolve({}, path).name == "tone"
    monkeypatch.setattr("softprompt.settings.MAX_YAML_BYTES", 10)
    with pytest.raises(ConfigError, match="too large"):
        resolve({}, path)


ODD = ["null", "yes", "1e3", "~", "é", "a\x85b", "\u2028", "a\u2029\n", " \n x\n", "\r\n", "a: b # c", "\ufeff", "\0"]
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ODD)


@settings(deadline=None, max_examples=100)
@given(
    st.fixed_dictionaries(
        {"name": texts, "template": texts, "method.init_text": texts},
        optional={
            "chat": st.booleans(),
            "train.lr": st.floats(1e-12, 1e3),
            "train.minutes": st.floats(1e-3, 1e3),
            "train.steps": st.integers(1, 10**9),
            "train.track": st.sampled_from(["none", "wandb"]),
            "method.n_tokens": st.integers(1, 8192),
        },
    )
)
def test_what_to_yaml_writes_resolve_reads(flags: dict[str, Any]) -> None:
    made = resolve(flags)
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "a.yaml", to_yaml(made))
        assert resolve({}, path) == made


@pytest.mark.parametrize("text", ODD)
def test_to_yaml_keeps_what_yaml_would_fold(text: str, tmp_path: Path) -> None:
    made = resolve({"template": text, "name": f"{text}b"})
    assert resolve({}, written(tmp_path / "a.yaml", to_yaml(made))) == made


def test_to_yaml_is_readable() -> None:
    assert "name: é日本\n" in to_yaml(resolve({"name": "é日本"}))


def test_to_yaml_shows_every_setting() -> None:
    shown = yaml.safe_load(to_yaml(Config()))
    assert set(shown) == set(Config.model_fields)
    assert set(shown["train"]) == set(TrainConfig.model_fields)
    assert set(shown["method"]) == set(method_spec(Config().method.name).settings.model_fields)


@pytest.mark.parametrize("name", method_specs())
def test_to_yaml_shows_the_settings_of_the_method_only(name: str) -> None:
    shown = yaml.safe_load(to_yaml(resolve({"method.name": name})))
    assert set(shown["method"]) == set(method_spec(name).settings.model_fields)


def test_to_yaml_keeps_the_order_of_tasks(tmp_path: Path) -> None:
    """In which their teachers are listed."""
    made = resolve({"data.tone": "a", "data.mood": "b", "method.teachers": "x,y"})
    again = resolve({}, written(tmp_path / "a.yaml", to_yaml(made)))
    assert isinstance(again.data, dict)
    assert (list(again.data), again.method.teachers) == (["tone", "mood"], ("x", "y"))


def test_every_setting_is_known_and_described() -> None:
    known = known_keys(Config)
    of_methods = {f"method.{name}" for spec in method_specs().values() for name in spec.settings.model_fields}
    assert set(known) == FIELDS.keys() | of_methods | {"objective.reward"}
    assert all(len(text) > 4 and not text.endswith(".") for text in known.values())
    assert len(set(known.values())) == len(known), "two settings with one description"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", SOURCES)
def test_a_setting_of_another_method_is_ignored_with_a_warning(source: str, tmp_path: Path) -> None:
    """0.1 allowed it; at its default, as settings files of 0.1 list it, without a word."""

    def made(rank: int) -> Config:
        values = {"method.name": "prompt-tuning", "method.rank": rank}
        path = written(tmp_path / "a.yaml", yaml.safe_dump(nested(values) if source == "yaml" else {}))
        environment = {variable(name): shell(value) for name, value in values.items()}
        return resolve(values if source == "flags" else {}, path, environment if source == "environment" else {})

    assert made(10).method.ignored() == {}
    with pytest.warns(RenamedWarning, match=r"method\.rank is ignored by prompt-tuning \(a setting of decomposed\)"):
        assert made(3).method.ignored() == {"rank": 3}


def test_settings_cannot_be_changed_in_place() -> None:
    made: Any = Config()
    for section, name in ((made, "model"), (made.train, "lr"), (made.method, "init")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, "x")


def test_to_yaml_explains_every_setting() -> None:
    text = to_yaml(Config())
    shown = fields(method_spec(Config().method.name).settings, "method.").keys() | FIELDS.keys()
    for name in shown:
        meaning = known_keys(Config)[name]
        section, _, leaf = name.rpartition(".")
        assert f"{'  ' * bool(section)}# {meaning}\n{'  ' * bool(section)}{leaf}: " in text
    assert "# learning rate after warm-up: cosine, linear, constant" in text
