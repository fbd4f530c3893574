"""Dotted flags on the command line: --train.warmup 0.1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.errors import ConfigError

if TYPE_CHECKING:
    pass


def parse_overrides(arguments: list[str]) -> tuple[dict[str, str], Path | None]:
    """Flags such as `--train.warmup 0.1` or `--train.warmup=0.1` as dotted settings, and the YAML file among them.

    Raises ConfigError for a flag without a value, and for a second file.
    """
    found: dict[str, str] = {}
    files: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            files.append(flag)
            continue
        name, equals, value = flag.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"flag --{name} needs a value", where="flags")
            value = rest.pop(0)
        found[name.replace("-", "_")] = value
    if len(files) > 1:
        raise ConfigError(f"unexpected argument {files[1]!r}", where="flags", hint="softprompt train --help")
    return found, Path(files[0]) if files else None
