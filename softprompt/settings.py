"""Settings of any run: defaults < YAML < environment < flags, with unknown keys refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from softprompt.deprecation import warn_renamed
from softprompt.errors import ConfigError

MAX_YAML_BYTES = 2**20

MAPPINGS = ("data", "template")  # one for all, or one for each task: data.TASK

# Names of the same settings in Transformers, PEFT and TRL.
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "num_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip",
    "grad_clip": "clip",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "eval_steps": "evals",
    "save_steps": "save_every",
    "report_to": "track",
    "early_stopping_patience": "patience",
    "num_virtual_tokens": "n_tokens",
    "prompt_length": "n_tokens",
    "prompt_tuning_init": "init",
    "prompt_tuning_init_text": "init_text",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "block_size": "pieces",
    "model_name_or_path": "model",
    "base_model": "model",
    "tokenizer_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "output_dir": "name",
    "torch_dtype": "dtype",
    "load_in_4bit": "load_in",
    "load_in_8bit": "load_in",
    "quantization": "load_in",
    "quantization_config": "load_in",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "reward_funcs": "reward",
}

Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """Settings, or one section of them: immutable, finite, and without unknown keys.

    Attributes:
        renamed_keys: old spellings of keys, to the new one; they work with a warning.
        renamed_values: the same of values, by key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _respelled(cls, values: object) -> object:
        return respell(cls, values) if isinstance(values, dict) else values

    @classmethod
    def variants(cls) -> Mapping[str, type[Section]]:
        """Subclasses by the `name` that tells them apart, each with settings of its own; usually none."""
        return {}

    def ignored(self) -> dict[str, object]:
        """Settings that were given and have no effect here; `to_yaml` writes them, so that digests stay the same."""
        return {}


def respell(section: type[Section], values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The values of a section with renamed keys and values replaced, each with a warning.

    Args:
        prefix: of the section, for the warning, e.g. "train.".
    """
    spelled = dict[str, object]()
    for old_key, value in values.items():
        key = section.renamed_keys.get(old_key, old_key)
        if key != old_key:
            warn_renamed(f"{prefix}{old_key}", f"{prefix}{key}")
        new_values = section.renamed_values.get(key, {})
        if isinstance(value, str) and value in new_values:
            warn_renamed(f"{prefix}{key}: {value}", f"{prefix}{key}: {new_values[value]}")
            value = new_values[value]
        spelled[key] = value
    return spelled


def split_names(value: object) -> object:
    """Names or numbers typed as one text: a,b,c."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def unescaped(text: str) -> str:
    r"""A text with `\n` and `\t` as line break and tab: shells make those hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def flag(*names: str, help: str = "", old: tuple[str, ...] = ()) -> JsonDict:  # noqa: A002
    """Metadata of a settings field that has a short flag on the command line: `json_schema_extra=flag("--lr")`.

    Args:
        names: spellings of the flag, e.g. "--model", "-m", or "--chat/--no-chat" for a switch.
        help: one line for --help; the field's description if empty.
        old: spellings of earlier releases, which work with a warning.
    """
    return {"flags": [*names], "help": help, "old": [*old]}


@dataclass(frozen=True)
class SettingFlag:
    """The metadata of `flag` at a field: spellings, the line in --help, and spellings of earlier releases."""

    names: tuple[str, ...] = ()
    help: str = ""
    old: tuple[str, ...] = ()


def flag_of(field: FieldInfo) -> SettingFlag:
    """The flag of a settings field; one without names if it has none."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        return SettingFlag()
    return SettingFlag(_texts(extra.get("flags")), str(extra.get("help") or ""), _texts(extra.get("old")))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def resolve_settings(
    kind: type[Settings],
    flags: Mapping[str, object],
    yaml_path: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Settings:
    """The settings of a run: defaults < YAML < environment (`SOFTPROMPT__TRAIN__LR=0.1`) < flags.

    Args:
        flags: dotted names to values as typed, e.g. {"train.lr": "0.3"}; "null" unsets, None means not given.
        environment: usually os.environ.

    Raises:
        ConfigError: unknown key (with the closest known one), wrong type or value; names the source.
    """
    merged: dict[str, object] = {}
    origins: dict[str, str] = {}
    known = known_keys(kind)
    sources: list[tuple[str, dict[str, object]]] = [
        (str(yaml_path), _flatten(_read_yaml(yaml_path)) if yaml_path else {}),
        ("environment", _nulls(_from_environment(environment or {}))),
        ("flags", _nulls({name: value for name, value in flags.items() if value is not None})),
    ]
    for origin, values in sources:
        for old_name, old_value in values.items():
            name, value = _respelled_setting(kind, old_name, old_value)
            _set(merged, name, value, origin, known)
            origins[name] = origin
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            first["msg"], where=f"{name} ({origins.get(name, 'settings')})", got=first["input"]
        ) from error


def known_keys(kind: type[BaseModel]) -> dict[str, str]:
    """Every dotted setting and its description; of a section with variants, the settings of all of them."""
    keys: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys |= {f"{name}.{inner}": text for inner, text in _section_keys(section).items()}
        else:
            keys[name] = _meaning(field)
    return keys


def _section_keys(section: type[BaseModel]) -> dict[str, str]:
    """Every setting of a section and its description, which names the variants that have it if not all do."""
    keys = {name: _meaning(field) for name, field in section.model_fields.items()}
    variants = section.variants() if issubclass(section, Section) else {}
    if not variants:
        return keys
    keys["name"] += f": {', '.join(variants)}"
    owners: dict[str, list[str]] = {}
    for variant, settings in variants.items():
        for name, field in settings.model_fields.items():
            if name not in section.model_fields:
                owners.setdefault(name, []).append(variant)
                keys.setdefault(name, _meaning(field))
    return keys | {name: f"{keys[name]} (of {', '.join(having)})" for name, having in owners.items()}


def _respelled_setting(kind: type[BaseModel], name: str, value: object) -> tuple[str, object]:
    """A dotted setting in today's spelling."""
    section_name, _, key = name.rpartition(".")
    section = kind.model_fields[section_name].annotation if section_name in kind.model_fields else kind
    if (section_name and section is kind) or not (isinstance(section, type) and issubclass(section, Section)):
        return name, value
    prefix = f"{section_name}." if section_name else ""
    ((new_key, new_value),) = respell(section, {key: value}, prefix).items()
    return f"{prefix}{new_key}", new_value


def _meaning(field: FieldInfo) -> str:
    """The description, with the choices if there are any."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return (field.description or "") + (f": {', '.join(choices)}" if choices else "")


def to_yaml(config: BaseModel) -> str:
    """The settings as YAML that `resolve` reads back, each under a comment that says what it is."""
    values = _flatten(_dump(config))
    odd_breaks = any(sign in str(value) for value in values.values() for sign in "\x85\u2028\u2029")
    lines, sections = list[str](), set[str]()
    for name, meaning in known_keys(type(config)).items():
        if name not in values:
            continue  # of another variant
        section, _, leaf = name.rpartition(".")
        nested = {section: {leaf: values[name]}} if section else {leaf: values[name]}
        # PyYAML folds odd breaks unless escaped; tasks keep their order, in which teachers belong to them
        text = yaml.safe_dump(nested, allow_unicode=not odd_breaks, sort_keys=False)
        if section:
            opening, _, text = text.partition("\n")
            lines += [] if section in sections else [f"{opening}\n"]
            sections.add(section)
        lines.append(f"{'  ' * bool(section)}# {meaning}\n{text}")
    return "".join(lines)


def _dump(config: BaseModel) -> dict[str, object]:
    values = config.model_dump(mode="json")
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Section):
            values[name] |= section.ignored()
    return values


def _set(merged: dict[str, object], name: str, value: object, origin: str, known: dict[str, str]) -> None:
    head, _, task = name.partition(".")
    if head in MAPPINGS and task:
        by_task = merged.get(head)
        merged[head] = (by_task if isinstance(by_task, dict) else {}) | {task: value}
        return
    if value is None and any(key.startswith(f"{name}.") for key in known):
        return  # a section of a YAML file with nothing in it
    if name not in known:
        raise ConfigError(f"unknown setting {name!r}", where=origin, hint=_suggestion(name, known))
    *sections, leaf = name.split(".")
    for section in sections:
        inner = merged.setdefault(section, {})
        assert isinstance(inner, dict)  # `known` has a section or a setting of that name, never both
        merged = inner
    merged[leaf] = value


def _suggestion(name: str, known: dict[str, str]) -> str:
    """A hint with the setting that is most likely meant."""
    leaf = name.rpartition(".")[2]
    meant = {leaf, OTHER_NAMES.get(leaf, leaf)}
    close = [key for key in known if key.rpartition(".")[2] in meant]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "--print-config shows them all"


def _flatten(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections as dotted names; what belongs to single tasks stays in one piece."""
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}".replace("-", "_")
        if isinstance(value, dict) and name not in MAPPINGS:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _from_environment(environment: dict[str, str]) -> dict[str, str]:
    start = "SOFTPROMPT__"
    return {
        key.removeprefix(start).lower().replace("__", "."): value
        for key, value in environment.items()
        if key.startswith(start)
    }


def _nulls(values: Mapping[str, object]) -> dict[str, object]:
    """The word null as YAML reads it."""
    return {name: None if value == "null" else value for name, value in values.items()}


def _read_yaml(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise ConfigError("no such config file", where=path)
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError("config file too large", where=path, expected=f"<= {MAX_YAML_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ConfigError("aliases are not allowed in a config file", where=path)  # they can blow up memory
        data = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=path) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a 13th month
        raise ConfigError(f"not valid YAML: {error}", where=path) from error
    if not isinstance(data or {}, dict):
        raise ConfigError("a config file holds a mapping", where=path, got=type(data).__name__)
    return data or {}
