"""The registry of export targets; all modules of this package are imported when it is first used."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

import torch

import softprompt.export
from softprompt.errors import ConfigError
from softprompt.export.base import Exported, ExportSource, ExportTarget
from softprompt.interchange.registry import Format, formats

_TARGETS: dict[str, ExportTarget] = {}


def register_target(target: ExportTarget) -> ExportTarget:
    """Make a target known. Raises ValueError if another one has its name."""
    if _TARGETS.setdefault(target.name, target) is not target:
        raise ValueError(f"an export target named {target.name!r} is registered already")
    return target


def unregister_target(name: str) -> None:
    """Forget a target."""
    del _TARGETS[name]


def targets() -> dict[str, ExportTarget]:
    """All targets by name: those of this package, and the formats of `interchange` that can be written."""
    _import_own_modules()
    foreign = {known.name: _of_format(known) for known in formats().values() if known.write is not None}
    return foreign | _TARGETS


def find_target(name: str) -> ExportTarget:
    """The target of this name. Raises ConfigError if there is none."""
    known = targets()
    if name not in known:
        raise ConfigError("no such target", where="--to", expected=", ".join(known), got=name)
    return known[name]


@functools.cache
def _import_own_modules() -> None:
    for module in pkgutil.iter_modules(softprompt.export.__path__):
        importlib.import_module(f"{softprompt.export.__name__}.{module.name}")


def _of_format(known: Format) -> ExportTarget:
    """The target that writes a format of `interchange` that another package added."""

    def write(out: Path, source: ExportSource) -> Exported:
        assert known.write is not None
        lead = source.lm.embed(torch.tensor(source.around[0], dtype=torch.long))
        known.write(out, source.prompt, source.card, lead)
        return Exported(out, f"softprompt import {out} --model {source.lm.name} --name {source.card.name}")

    return ExportTarget(known.name, f"files of the format {known.name}", write)
