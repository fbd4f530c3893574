"""Dotted flags on the command line: --train.warmup 0.1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from softprompt.cli.options import SettingOption
from softprompt.deprecation import warn_renamed
from softprompt.errors import ConfigError


def parse_overrides(
    arguments: list[str], renamed: Mapping[str, SettingOption] | None = None
) -> tuple[dict[str, str], Path | None]:
    """Dotted settings from flags such as `--train.warmup 0.1` or `--train.warmup=0.1`, and the YAML file among them.

    Args:
        renamed: flags of earlier releases, see `options.old_flags`.

    Raises ConfigError for a flag without a value, and for a second file.
    """
    overrides: dict[str, str] = {}
    files: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            files.append(flag)
            continue
        name, *values = flag.removeprefix("--").split("=", 1)
        if not values and not rest:
            raise ConfigError(f"flag --{name} needs a value", where="flags")
        value = values[0] if values else rest.pop(0)
        if renamed and name in renamed:
            option = renamed[name]
            warn_renamed(f"--{name}", option.flags[0])
            name = option.setting
        overrides[name.replace("-", "_")] = value
    if len(files) > 1:
        raise ConfigError(f"unexpected argument {files[1]!r}", where="flags", hint="softprompt train --help")
    return overrides, Path(files[0]) if files else None
