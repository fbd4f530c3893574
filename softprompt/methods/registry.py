"""Registry of training methods: everything that the rest of the package needs to know about a method.

    register_method(MethodSpec("toy", ToyConfig, build=lambda lm, start, context: Toy(lm, start), form="embedding"))

Modules of this package are imported on the first lookup, and entry points of the group `softprompt.methods` after
them. Importing this module imports neither torch nor a method.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

import softprompt.methods
from softprompt.deprecation import warn_ignored
from softprompt.errors import ConfigError
from softprompt.methods.config import MethodConfig
from softprompt.settings import respell

if TYPE_CHECKING:
    from softprompt.methods.base import Method, MethodContext, Start
    from softprompt.models.frozen_lm import FrozenLM

METHOD_PLUGINS = "softprompt.methods"

SettingsType = TypeVar("SettingsType", bound=MethodConfig)


def one_per_task(settings: MethodConfig, tasks: Sequence[str]) -> Sequence[str]:
    """The usual names of a run's soft prompts: those of the tasks."""
    return tasks


@dataclass(frozen=True)
class MethodSpec(Generic[SettingsType]):
    """A training method.

    Attributes:
        name: the value of `method.name`.
        settings: its section of the settings.
        build: makes the trainable method from the base model, the start and the run's context.
        form: of the prompts that it trains; None: the form of the source prompts in its settings.
        parameters: "direct": the virtual tokens themselves; "network": weights of a network, which need a small
            learning rate; "other". The recipe `auto` chooses by it.
        parts: ends of the names that a run's prompts are saved under, from the settings and the names of the tasks.
        save: writes what a run leaves beside its prompts, from the trained method, the folder of the run's name, the
            names of the prompts and `overwrite`; None if there is nothing.
        one_task: whether several tasks are refused.
        distills: whether `softprompt distill` can train it: one prompt, without other prompts as input.
    """

    name: str
    settings: type[SettingsType]
    build: Callable[[FrozenLM, Start, MethodContext[SettingsType]], Method]
    form: Literal["embedding", "kv", "state"] | None
    parameters: Literal["direct", "network", "other"] = "other"
    parts: Callable[[SettingsType, Sequence[str]], Sequence[str]] = one_per_task
    save: Callable[[Method, Path, Sequence[str], bool], None] | None = None
    one_task: bool = False
    distills: bool = True

    @property
    def start_form(self) -> str:
        """Form of a prompt that is built for it to start from; from embeddings, it can start whatever it trains."""
        return self.form or "embedding"

    @property
    def trains_kv(self) -> bool:
        """Whether it trains keys and values: such a prompt begins the sequence, so BOS is part of it."""
        from softprompt.prompts.forms import form_class  # imports torch

        return self.form is not None and form_class(self.form).begins_the_sequence


# A method found by name: its settings class is known at run time only.
AnyMethodSpec: TypeAlias = MethodSpec[Any]

_specs: dict[str, AnyMethodSpec] = {}
_broken: dict[str, str] = {}  # plug-ins that cannot be used, with the reason


def register_method(spec: AnyMethodSpec) -> None:
    """Add a method. Raises ConfigError if another one has its name."""
    if _specs.get(spec.name, spec) is not spec:
        raise ConfigError("a method of this name is registered already", where=METHOD_PLUGINS, got=spec.name)
    _specs[spec.name] = spec


def unregister_method(name: str) -> None:
    """Remove a method that `register_method` added."""
    del _specs[name]


def load_method_plugins() -> None:
    """Register the methods of other installed distributions; those that cannot be used are left out."""
    _broken.clear()
    for entry in entry_points(group=METHOD_PLUGINS):
        try:
            spec = entry.load()
        except Exception as error:  # code of another distribution
            _broken[entry.name] = f"the plug-in of this method cannot be loaded: {type(error).__name__}: {error}"
            continue
        if isinstance(spec, MethodSpec) and spec.name == entry.name:
            register_method(spec)
        else:
            _broken[entry.name] = f"{METHOD_PLUGINS}: {entry.value} is not a MethodSpec of this name"


def method_specs() -> dict[str, AnyMethodSpec]:
    """Every method by name, sorted."""
    _discover()
    return dict(sorted(_specs.items()))


@cache
def _discover() -> None:
    """Import the methods of this package and of plug-ins, once."""
    for module in pkgutil.iter_modules(softprompt.methods.__path__):
        importlib.import_module(f"{softprompt.methods.__name__}.{module.name}")
    load_method_plugins()


def method_spec(name: str) -> AnyMethodSpec:
    """The method by name. Raises ConfigError for an unknown name."""
    specs = method_specs()
    if name not in specs:
        message = _broken.get(name, f"unknown method {name!r}")
        raise ConfigError(message, where="method.name", expected=f"one of {sorted(specs)}")
    return specs[name]


def build_method(name: str, lm: FrozenLM, start: Start, context: MethodContext[MethodConfig] | None = None) -> Method:
    """The method by name, at its start. Raises ConfigError for an unknown name.

    Args:
        context: the run's settings and what they name; by default the method's default settings.
    """
    from softprompt.methods.base import MethodContext

    spec = method_spec(name)
    if context is None:
        context = MethodContext(method_settings({"name": name}))
    if sites := context.settings.ignored().get("sites"):  # 0.1 refused them here, too
        message = "sites are for KV prompts: an embedding prompt always precedes the text"
        raise ConfigError(message, where="method.sites", got=sites, hint="leave method.sites out")
    return spec.build(lm, start, context)


def parse_method(values: object) -> object:
    """A `method` section as pydantic finds it, parsed by `method_settings`; what is no section stays as it is."""
    if isinstance(values, MethodConfig):
        return method_settings(values.model_dump(exclude_unset=True)) if type(values) is MethodConfig else values
    return method_settings(values) if isinstance(values, Mapping) else values  # which pydantic refuses


def method_settings(values: Mapping[str, object]) -> MethodConfig:
    """The `method` section, validated by the settings class of the method that `name` names.

    Settings of 0.1 that this method does not have are ignored, with a warning unless they are at their default.

    Raises ValidationError: an unknown method, a setting that this method does not have, or a wrong value.
    """
    values = respell(MethodConfig, values, "method.")
    name = values.get("name", MethodConfig.model_fields["name"].default)
    specs = method_specs()
    if not isinstance(name, str) or name not in specs:
        raise _refused("name", name, _broken.get(str(name), f"unknown method; there are {', '.join(specs)}"))
    settings = specs[name].settings
    own = {key: value for key, value in values.items() if key in settings.model_fields}
    return settings.model_validate(own).with_foreign(_foreign(settings, name, values))


def setting_names(values: Mapping[str, object]) -> set[str]:
    """The settings that the method of a `method` section has; those of every method if it is unknown."""
    default = MethodConfig.model_fields["name"].default
    name = str(values.get("name", default))
    name = MethodConfig.renamed_values["name"].get(name, name)
    spec = method_specs().get(name)
    return set((spec.settings if spec else MethodConfig).model_fields)


def _foreign(settings: type[MethodConfig], name: str, values: Mapping[str, object]) -> dict[str, object]:
    """Settings that the method does not have and 0.1 allowed. Raises ValidationError for others."""
    from softprompt.methods.legacy import ForeignFields, not_default

    foreign = {key: value for key, value in values.items() if key not in settings.model_fields}
    for key, value in foreign.items():
        if key not in ForeignFields.model_fields:
            known = ", ".join(settings.model_fields)
            raise _refused(key, value, f"{name} has no such setting; it has {known}")
    checked = ForeignFields.model_validate(foreign).model_dump(mode="json", include=set(foreign))
    for key in not_default(checked):
        owners = [other for other, spec in method_specs().items() if key in spec.settings.model_fields]
        warn_ignored(f"method.{key}", f"{name} (a setting of {', '.join(owners)})")
    return checked


def _refused(key: str, value: object, message: str) -> ValidationError:
    escaped = message.replace("{", "{{").replace("}", "}}")
    error = InitErrorDetails(type=PydanticCustomError("method", escaped), loc=(key,), input=value)  # pyright: ignore[reportArgumentType]
    return ValidationError.from_exception_data("method", [error])
