"""Command-line options of the serving engines, read and listed from their settings classes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_origin

from pydantic import BaseModel, ValidationError
from typer.core import TyperCommand

from softprompt.cli.setting_values import values_of
from softprompt.engine.registry import AnyEngineSpec, find_engine, usable_engines
from softprompt.errors import ConfigError
from softprompt.settings import flag_of

if TYPE_CHECKING:  # for types alone: where Typer keeps its click is private to it
    from typer._click import Context, HelpFormatter


@dataclass(frozen=True)
class EngineFlag:
    """One spelling of an option.

    Attributes:
        field: name of the setting.
        switch: value that the flag stands for; None if a value follows it.
        repeatable: whether each use adds a value.
    """

    field: str
    switch: bool | None
    repeatable: bool


def engine_named(name: str) -> AnyEngineSpec:
    """An engine of this package or of a plug-in. Raises ConfigError if there is none of this name."""
    _register_built_in()
    return find_engine(name)


def engine_flags(settings: type[BaseModel]) -> dict[str, EngineFlag]:
    """Every spelling of every option of a settings class."""
    flags = dict[str, EngineFlag]()
    for name, field in settings.model_fields.items():
        is_switch, repeatable = field.annotation is bool, get_origin(field.annotation) in (tuple, list)
        for spelling in _spellings(settings, name):
            positive, *negative = spelling.split("/")
            flags[positive] = EngineFlag(name, True if is_switch else None, repeatable)
            flags |= {off: EngineFlag(name, False, repeatable) for off in negative}
    return flags


def parse_engine_options(engine: AnyEngineSpec, arguments: Iterable[str]) -> BaseModel:
    """The engine's options, from the arguments that are no option of the verb itself.

    Raises ConfigError for an option that the engine does not have, naming the engine that has it, and for a value that
    its settings class refuses.
    """
    flags = engine_flags(engine.options)
    values = dict[str, bool | str | list[str]]()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, *attached = argument.split("=", 1)
        flag = flags.get(name)
        if flag is None or (flag.switch is not None and attached):
            raise _unknown(argument, engine)
        if flag.switch is not None:
            values[flag.field] = flag.switch
            continue
        if not attached and not rest:
            raise ConfigError("this option needs a value", where=name)
        value = attached[0] if attached else rest.pop(0)
        earlier = values.get(flag.field)
        several = [*(earlier if isinstance(earlier, list) else ()), value]
        values[flag.field] = several if flag.repeatable else value
    try:
        return engine.options.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = (
            " ".join(_spellings(engine.options, str(first["loc"][0]))) if first["loc"] else f"--engine {engine.name}"
        )
        raise ConfigError(first["msg"], where=where, got=first["input"]) from error


class EngineCommand(TyperCommand):
    """A verb whose --help also lists the engines and their options, grouped by engine."""

    def other_flags(self) -> dict[str, tuple[str, ...]]:
        """Options of every engine with their values, for shell completion."""
        _register_built_in()
        classes = [engine.options for engine in usable_engines()]
        return {
            spelling: values_of(options, flag.field)
            for options in classes
            for spelling, flag in engine_flags(options).items()
        }

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        _register_built_in()
        engines = list(usable_engines())
        with formatter.section("Engines"):
            formatter.write_dl([(f"--engine {engine.name}", engine.summary) for engine in engines])
        for engine in engines:
            if rows := _help_rows(engine.options):
                with formatter.section(f"Options of --engine {engine.name}"):
                    formatter.write_dl(rows)


def _register_built_in() -> None:
    from softprompt.engine import transformers_spec  # noqa: F401  importing them registers the engines
    from softprompt.vllm import spec  # noqa: F401


def _help_rows(settings: type[BaseModel]) -> list[tuple[str, str]]:
    rows = []
    for name, field in settings.model_fields.items():
        text = flag_of(field).help or field.description or ""
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, False, "", ()) else f"  [default: {default}]"
        value = "" if field.annotation is bool else " <value>"
        rows.append((", ".join(_spellings(settings, name)) + value, text + shown))
    return rows


def _spellings(settings: type[BaseModel], field: str) -> tuple[str, ...]:
    """Flags of a field; by default its name."""
    return flag_of(settings.model_fields[field]).names or (f"--{field.replace('_', '-')}",)


def _unknown(argument: str, engine: AnyEngineSpec) -> ConfigError:
    name = argument.partition("=")[0]
    owners = [other.name for other in usable_engines() if name in engine_flags(other.options)]
    if owners and engine.name not in owners:
        what = f"this is an option of another engine: {', '.join(owners)}"
        return ConfigError(what, where=name, got=f"--engine {engine.name}", hint=f"--engine {owners[0]}")
    near = difflib.get_close_matches(name, engine_flags(engine.options), n=1)
    hint = f"did you mean {near[0]}?" if near else "softprompt serve --help lists the options"
    return ConfigError("no such option", where="softprompt serve", got=argument, hint=hint)
