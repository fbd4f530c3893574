"""Registry of serving engines: each by name, with the packages it needs, its options and how it is created.

An engine registers an `EngineSpec`, in a module that imports neither the engine's own packages nor torch, so that
`softprompt serve --help` stays quick. Engines of other distributions are found by the entry-point group
`softprompt.engines`, whose entries are `EngineSpec` objects:

    [project.entry-points."softprompt.engines"]
    sglang = "softprompt_sglang.spec:SPEC"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from softprompt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from softprompt.engine.base import Engine
    from softprompt.models.frozen_lm import FrozenLM

_ENTRY_POINTS = "softprompt.engines"


class NoOptions(BaseModel):
    """The settings of an engine without options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class BaseModelOptions:
    """How the base model is loaded, as `softprompt.models.loading.load_model` takes it.

    Attributes:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda" or "mps".
        load_in: quantization on load, "4bit", "8bit", "int4" or "int8"; None for none.
        trust_remote_code: run Python code that comes with the base model.
        device_map: plan that splits the base model over devices, or None.
    """

    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    load_in: str | None = None
    device_map: str | None = None


Options = TypeVar("Options", bound=BaseModel)


def _unchanged(base: BaseModelOptions) -> BaseModelOptions:
    return base


@dataclass(frozen=True)
class EngineSpec(Generic[Options]):
    """One engine.

    Attributes:
        name: value of `softprompt serve --engine`.
        summary: one line for --help.
        options: settings class of the engine's own command-line options. Fields carry `softprompt.settings.flag(...)`;
            a boolean field is a switch, and a tuple field may be given several times.
        create: makes the engine, which `Engine.start` starts. Imports of the engine's packages belong in here.
        packages: importable names of the packages that the engine needs besides the server's.
        install_hint: how to get them.
        prepare_base: called before the base model is loaded; returns the options to load it with.
    """

    name: str
    summary: str
    options: type[Options]
    create: Callable[[FrozenLM, Options, BaseModelOptions], Engine]
    packages: tuple[str, ...] = ()
    install_hint: str | None = None
    prepare_base: Callable[[BaseModelOptions], BaseModelOptions] = _unchanged

    def check_installed(self) -> None:
        """Raises MissingExtraError if a package of the engine is missing."""
        if missing := missing_packages(self.packages):
            what = f"{', '.join(missing)} is not installed here"
            raise MissingExtraError(what, where=f"--engine {self.name}", hint=self.install_hint)


# An engine found by name: its settings class is known at run time only.
AnyEngineSpec: TypeAlias = EngineSpec[Any]

_engines: dict[str, AnyEngineSpec] = {}


def register_engine(spec: AnyEngineSpec) -> None:
    """Add an engine. Raises ConfigError if another one has its name."""
    if _engines.get(spec.name, spec) is not spec:
        raise ConfigError("an engine of this name is registered already", where=_ENTRY_POINTS, got=spec.name)
    _engines[spec.name] = spec


def unregister_engine(name: str) -> None:
    """Remove an engine that `register_engine` added."""
    del _engines[name]


def find_engine(name: str) -> AnyEngineSpec:
    """The engine of this name. Raises ConfigError if there is none, or if the plug-in that has it is broken."""
    if name in _engines:
        return _engines[name]
    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        return _load(entry)
    raise ConfigError("no such engine", where="--engine", expected=", ".join(engine_names()), got=name)


def engine_names() -> list[str]:
    """Names of all engines, installed plug-ins' last."""
    return list(dict.fromkeys([*_engines, *(entry.name for entry in entry_points(group=_ENTRY_POINTS))]))


def usable_engines() -> Iterator[AnyEngineSpec]:
    """All engines; plug-ins that cannot be loaded are left out."""
    for name in engine_names():
        try:
            yield find_engine(name)
        except ConfigError:
            continue


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Importable names among these that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _load(entry: EntryPoint) -> AnyEngineSpec:
    try:
        spec = entry.load()
    except Exception as error:  # code of another distribution
        what = "the plug-in of this engine cannot be loaded"
        raise ConfigError(what, where=f"--engine {entry.name}", got=f"{type(error).__name__}: {error}") from error
    if not isinstance(spec, EngineSpec) or spec.name != entry.name:
        expected = f"an EngineSpec of the name {entry.name!r}"
        raise ConfigError("not an engine", where=f"{_ENTRY_POINTS}: {entry.value}", expected=expected, got=repr(spec))
    return spec
