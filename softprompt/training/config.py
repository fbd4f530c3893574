"""Every setting with its default, its meaning, and one way to merge: defaults < YAML < environment < flags.

The description of a field stands above it in `softprompt train --print-config`. Unknown keys are errors, with a
suggestion.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from softprompt.errors import ConfigError

MAX_YAML_BYTES = 2**20
Init = Literal["text", "attended", "labels", "vocab", "uniform", "normal", "demonstrations", "prompt", "best"]
MAPPINGS = ("data", "template")  # one for all, or one for each task: data.TASK


Settings = TypeVar("Settings", bound=BaseModel)


def names(value: Any) -> Any:
    """Names or numbers typed as one text: a,b,c."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class MethodConfig(BaseModel):
    """What is trained and where it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal[
        "decomposed",
        "mixture",
        "multitask",
        "p-tuning",
        "p-tuning-lstm",
        "p-tuning-v2",
        "prefix-tuning",
        "prefix-tuning-mlp",
        "prompt-tuning",
        "residual",
        "residual-separate",
        "smop",
    ] = Field(default="prefix-tuning", description="how the prompt is parameterised")
    n_tokens: int = Field(default=32, ge=1, le=8192, description="virtual tokens")
    init: Init = Field(
        default="text",
        description="where virtual tokens start; attended: those of a long text that rows look at most; best tries "
        "text, labels, vocab and demonstrations on validation rows",
    )
    text_tokens: int = Field(
        default=1024,
        ge=1,
        description="without init_text, init attended chooses from so many tokens of demonstrations, or half a context",
    )
    init_text: str | None = Field(default=None, description="the text to start from; made from the task if not given")
    init_from: str | None = Field(default=None, description="the soft prompt to start from, with init prompt")
    sources: Annotated[tuple[str, ...], BeforeValidator(names)] = Field(
        default=(), description="soft prompts that a mixture attends to"
    )
    teachers: Annotated[tuple[str, ...], BeforeValidator(names)] = Field(
        default=(), description="soft prompts of the tasks, one for each, that multitask training is distilled from"
    )
    kept: Annotated[tuple[int, ...], BeforeValidator(names)] = Field(
        default=(), description="start from these virtual tokens of the start only (what prune kept): rewinding"
    )
    frozen_tokens: int = Field(default=0, ge=0, description="first tokens of a KV prompt that stay as they began")
    hidden: int = Field(default=512, ge=1, description="width of the encoder of a reparametrised prompt")
    rank: int = Field(default=10, ge=1, description="rank of a decomposed prompt")
    n_prompts: int = Field(default=4, ge=2, description="prompts that the router of smop chooses from")
    sites: str | None = Field(
        default=None,
        description="where a KV prompt stands in an encoder-decoder, of encoder,decoder,cross",
    )


class TrainConfig(BaseModel):
    """How it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(
        default=None, ge=1, description="optimiser steps; chosen from the number of rows if not given"
    )
    minutes: float | None = Field(default=None, gt=0, description="wall-time budget; the schedule fits itself to it")
    batch_size: int = Field(default=8, ge=1, description="rows per step, all processes together")
    temperature: float = Field(
        default=1.0, ge=1, description="of several tasks: 1 draws every row equally often, more favours small tasks"
    )
    distil: float = Field(default=1.0, ge=0, description="weight of the teachers' divergence beside the loss")
    accumulate: int = Field(default=1, ge=1, description="parts that a step's rows are run in, to save memory")
    optimizer: Literal["adamw", "adafactor"] = Field(default="adamw", description="optimiser")
    lr: float = Field(default=2e-2, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after warm-up"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the run in which the learning rate rises")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    evals: int = Field(default=8, ge=1, description="validations during the run; the best prompt is kept")
    eval_rows: int = Field(
        default=128, ge=1, description="validation rows at most, for each of them; fewer in short runs"
    )
    patience: int | None = Field(default=4, ge=1, description="stop after so many validations without a better loss")
    save_every: int = Field(default=50, ge=1, description="steps between checkpoints")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute layers in the backward pass to save memory"
    )
    graphs: bool = Field(default=True, description="on a GPU: record passes as CUDA graphs and replay them")
    seed: int = Field(default=0, ge=0, description="seed of every random draw")
    track: Literal["none", "tensorboard", "trackio", "wandb"] = Field(default="none", description="also log there")


class Config(BaseModel):
    """A training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: Literal["auto", "fixed"] = Field(
        default="auto",
        description="auto: what is not given is chosen from task and time; fixed: the defaults",
    )
    model: str = Field(default="smollm2-135m", description="base model: Hub id, folder, GGUF file or smollm2-135m")
    data: str | dict[str, str] | None = Field(
        default=None, description="file, folder with train/validation/test, or Hub data set; several as {task: path}"
    )
    name: str | None = Field(default=None, description="name of the soft prompt")
    template: str | dict[str, str] | None = Field(
        default=None, description='how a row becomes text, e.g. "Review: {text}\\nSentiment:"; several as {task: text}'
    )
    chat: bool | None = Field(default=None, description="use the model's chat template (default: without --template)")
    max_length: int = Field(default=1024, ge=2, description="longest row in tokens")
    drop_long: bool = Field(default=False, description="leave longer rows out instead of stopping")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16, float16 (of the base model)")
    device: str = Field(default="auto", description="auto, cpu, cuda, mps")
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()


def resolve(flags: dict[str, Any], yaml_path: Path | None = None, environment: dict[str, str] | None = None) -> Config:
    """The settings of a training run, see `resolved`."""
    return resolved(Config, flags, yaml_path, environment)


def resolved(
    kind: type[Settings],
    flags: dict[str, Any],
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
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given: list[tuple[str, dict[str, Any]]] = [
        (str(yaml_path), _flatten(_read_yaml(yaml_path)) if yaml_path else {}),
        ("environment", _nulls(_from_environment(environment or {}))),
        ("flags", _nulls({name: value for name, value in flags.items() if value is not None})),
    ]
    for origin, values in given:
        for name, value in values.items():
            _set(merged, name, value, origin, known_keys(kind))
            origins[name] = origin
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            first["msg"], where=f"{name} ({origins.get(name, 'settings')})", got=first["input"]
        ) from error


def known_keys(kind: type[BaseModel] = Config) -> dict[str, str]:
    """Every dotted setting and its description."""
    keys: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys |= {f"{name}.{inner}": _meaning(f) for inner, f in section.model_fields.items()}
        else:
            keys[name] = _meaning(field)
    return keys


def _meaning(field: FieldInfo) -> str:
    """The description, with the choices if there are any."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return (field.description or "") + (f": {', '.join(choices)}" if choices else "")


def to_yaml(config: BaseModel) -> str:
    """The settings as YAML that `resolve` reads back, each under a comment that says what it is."""
    values = _flatten(config.model_dump(mode="json"))
    odd_breaks = any(sign in str(value) for value in values.values() for sign in "\x85\u2028\u2029")
    lines, sections = list[str](), set[str]()
    for name, meaning in known_keys(type(config)).items():
        section, _, leaf = name.rpartition(".")
        nested = {section: {leaf: values[name]}} if section else {leaf: values[name]}
        text = yaml.safe_dump(nested, allow_unicode=not odd_breaks)  # PyYAML folds odd breaks unless escaped
        if section:
            opening, _, text = text.partition("\n")
            lines += [] if section in sections else [f"{opening}\n"]
            sections.add(section)
        lines.append(f"{'  ' * bool(section)}# {meaning}\n{text}")
    return "".join(lines)


def _set(merged: dict[str, Any], name: str, value: Any, origin: str, known: dict[str, str]) -> None:
    head, _, task = name.partition(".")
    if head in MAPPINGS and task:
        own = merged.get(head)
        merged[head] = (own if isinstance(own, dict) else {}) | {task: value}
        return
    if value is None and any(key.startswith(f"{name}.") for key in known):
        return  # a section of a YAML file with nothing in it
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [
            key for key in known if key.split(".")[-1] == name.split(".")[-1]
        ]
        hint = f"did you mean {close[0]}?" if close else "--print-config shows them all"
        raise ConfigError(f"unknown setting {name!r}", where=origin, hint=hint)
    *sections, leaf = name.split(".")
    for section in sections:
        merged = merged.setdefault(section, {})
    merged[leaf] = value


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names; what belongs to single tasks stays in one piece."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}".replace("-", "_")
        whole = not isinstance(value, dict) or name in MAPPINGS
        flat |= {name: value} if whole else _flatten(value, f"{name}.")
    return flat


def _from_environment(environment: dict[str, str]) -> dict[str, str]:
    start = "SOFTPROMPT__"
    return {
        key.removeprefix(start).lower().replace("__", "."): value
        for key, value in environment.items()
        if key.startswith(start)
    }


def _nulls(values: dict[str, Any]) -> dict[str, Any]:
    """The word null as YAML reads it."""
    return {name: None if value == "null" else value for name, value in values.items()}


def _read_yaml(path: Path) -> dict[str, Any]:
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
