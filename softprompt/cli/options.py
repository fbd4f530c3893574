"""Options that several verbs share, and options generated from a settings class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, TypeAlias, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from softprompt.cli.setting_values import values_of
from softprompt.errors import ConfigError
from softprompt.settings import flag_of

NAME_HELP = "A soft prompt: a name, a folder's path, OWNER/NAME[@REVISION] of the Hub, or a URL (s3://…)."


def complete_names(incomplete: str) -> list[str]:
    """What the shell completes a soft prompt's name with, also the last of several: a,b,c."""
    from softprompt.prompts.store import saved_names

    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in saved_names()]


SavedName = Annotated[str, typer.Argument(help=NAME_HELP, autocompletion=complete_names)]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m.")]
BaseAdapter = Annotated[
    str | None, typer.Option("--base-adapter", help="PEFT folder whose LoRA weights are merged into the base model.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
LoadIn = Annotated[
    str | None, typer.Option("--load-in", help="Quantize the base when it is loaded: 4bit, 8bit, int4 or int8.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DeviceSplit = Annotated[
    str | None,
    typer.Option(
        "--device-map", help="Split the base model over devices: auto, balanced, sequential, or a map in JSON."
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Score answers with this too: f1, …, or FILE.py:function of yours (answer, references); may be repeated.",
    ),
]
ChatTemplate = Annotated[
    str,
    typer.Option(
        "--chat-template",
        help="If the model's differs from the one trained with: prompt uses the soft prompt's own, model the model's.",
    ),
]
System = Annotated[
    str | None, typer.Option("--system", help="System turn, in place of the one kept with the soft prompt.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Over 1: tokens of text and answer become less likely; 1 is none.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a prompt or run of that name.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings and stop.")]
ConfigFile = Annotated[str | None, typer.Argument(help="Settings in YAML; flags win over it.")]


# The value of an option as Typer gives it; None if it was not typed.
Typed: TypeAlias = bool | int | float | str | list[str] | None

# Values of a verb's settings, by dotted name.
Flags: TypeAlias = dict[str, Typed]


def parse_names(names: str) -> list[str]:
    """The soft prompts of an argument `a,b,c`, each once. Raises ConfigError if there is none."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise ConfigError("no soft prompt is named", got=names, hint="softprompt list shows the saved ones")
    return chosen


@dataclass(frozen=True)
class SettingOption:
    """The option of one setting, from the metadata that `softprompt.settings.flag` puts at its field.

    Args:
        setting: its dotted name, e.g. "train.lr".
        flags: its spellings, e.g. ("--model", "-m").
        old_flags: spellings of earlier releases.
        help: one line.
        value_type: type of its value as typed, e.g. int, or list[str] if the option may be repeated.
        values: its values, which a shell completes; none where any text or number is allowed.
    """

    setting: str
    flags: tuple[str, ...]
    old_flags: tuple[str, ...]
    help: str
    value_type: type | GenericAlias
    values: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The name of the function's parameter: that of the flag."""
        return self.flags[0].partition("/")[0].lstrip("-").replace("-", "_")

    def as_parameter(self) -> inspect.Parameter:
        """A keyword of the verb's function, as Typer reads it; None if the option is not typed."""
        option = typer.Option(None, *self.flags, help=self.help, autocompletion=self._complete)
        return inspect.Parameter(
            self.parameter, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=self.value_type | None
        )

    def _complete(self, incomplete: str) -> list[str]:
        return [value for value in self.values if value.startswith(incomplete)]


# Defaults to show in --help, by section ("" for none) and setting, where they are not those of the fields.
ShownDefaults: TypeAlias = Mapping[str, Mapping[str, object]]


def setting_options(kind: type[BaseModel], *, defaults: ShownDefaults | None = None) -> list[SettingOption]:
    """An option for each setting of `kind` that has a flag, those of sections last.

    If a section and the class itself have the same flag, it is that of the class.

    Args:
        defaults: None shows no defaults, as where a recipe chooses values that are not given.
    """
    sections = {name: field.annotation for name, field in kind.model_fields.items() if _is_section(field)}
    options = _options_of(kind, "", defaults)
    taken = {option.flags for option in options}
    for section, inner in sections.items():
        assert isinstance(inner, type)
        inner_options = _options_of(inner, f"{section}.", defaults)
        options += [option for option in inner_options if option.flags not in taken]
    return options


def old_flags(kind: type[BaseModel]) -> dict[str, SettingOption]:
    """The settings' flags of earlier releases, without dashes, and what they are now."""
    return {old.lstrip("-"): option for option in setting_options(kind) for old in option.old_flags}


def with_settings(
    kind: type[BaseModel],
    *,
    only: Mapping[str, str] | None = None,
    repeatable: Collection[str] = (),
    defaults: ShownDefaults | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a verb's function: in place of its parameter `flags` come the options of the settings.

    The function gets `flags` as {dotted setting: value as typed, None if it was not}. The command keeps the class as
    `settings_class`, by which a shell completes dotted flags.

    Args:
        kind: the settings class.
        only: these settings alone, each with a help line for this verb, or "" for its own.
        repeatable: settings whose option may be repeated.
        defaults: see `setting_options`.
    """
    options = setting_options(kind, defaults=defaults)
    if only is not None:
        options = [option for option in options if option.setting in only]
    parameters_of_flags = [
        replace(
            option,
            help=(only or {}).get(option.setting) or option.help,
            value_type=list[str] if option.setting in repeatable else option.value_type,
        ).as_parameter()
        for option in options
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.name == "flags":
                parameters += parameters_of_flags
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        def command(**arguments: object) -> None:
            flags = {option.setting: arguments.pop(option.parameter) for option in options}
            function(flags=flags, **arguments)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.settings_class = kind  # pyright: ignore[reportFunctionMemberAccess]
        return command

    return decorate


def _options_of(kind: type[BaseModel], prefix: str, defaults: ShownDefaults | None) -> list[SettingOption]:
    """Options of the fields of one class."""
    own_defaults = (defaults or {}).get(prefix.rstrip("."), {})
    options: list[SettingOption] = []
    for name, field in kind.model_fields.items():
        flag = flag_of(field)
        if not flag.names:
            continue
        default = own_defaults.get(name, field.default)
        known = defaults is not None and not field.is_required() and not field.default_factory
        shown = f"  [default: {default}]" if known and default not in (None, "", ()) and default is not False else ""
        text = (flag.help or _sentence(field)) + shown
        values = values_of(kind, name)
        options.append(SettingOption(f"{prefix}{name}", flag.names, flag.old, text, _type_of(field), values))
    return options


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _sentence(field: FieldInfo) -> str:
    text = field.description or ""
    return f"{text[:1].upper()}{text[1:]}."


def _type_of(field: FieldInfo) -> type:
    """The type of a value as typed: a number or a switch where the setting is one, otherwise text."""
    members = [field.annotation]
    if get_origin(field.annotation) in (Union, UnionType):
        members = [member for member in get_args(field.annotation) if member is not NoneType]
    return next((number for number in (int, float, bool) if members[0] is number), str)
