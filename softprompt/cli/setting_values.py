"""Values of settings that are worth completing, and the dotted settings of a verb, for `softprompt completion`.

Names and settings of the methods come from methods/settings.json, which `scripts/stubs` writes: reading them from the
methods imports torch. Methods of other packages are not in it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import softprompt.methods
from softprompt.methods.config import MethodConfig


def setting_values(kind: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Every dotted setting of a settings class, with its values where they are few."""
    values = dict[str, tuple[str, ...]]()
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner = setting_values(section)
            values |= {f"{name}.{setting}": choices for setting, choices in inner.items()}
        else:
            values[name] = values_of(kind, name)
    if issubclass(kind, MethodConfig):
        values |= {setting: () for own in _method_settings().values() for setting in own}
    return values


def values_of(kind: type[BaseModel], name: str) -> tuple[str, ...]:
    """The values of a setting, none where any text or number is allowed."""
    if issubclass(kind, MethodConfig) and name == "name":
        return tuple(_method_settings())
    return tuple(dict.fromkeys(_choices(kind.model_fields[name])))


def _choices(field: FieldInfo) -> list[str]:
    """true and false of a switch, the choices of a literal."""
    members = [member for member in get_args(field.annotation) or [field.annotation] if member is not NoneType]
    if members == [bool]:
        return ["true", "false"]
    if get_origin(field.annotation) is Literal:
        return [str(choice) for choice in members]
    return [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]


@cache
def _method_settings() -> dict[str, list[str]]:
    """The settings that single methods have, by method."""
    (folder,) = softprompt.methods.__path__
    return json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))
