"""Renamed and moved settings: old spellings keep working for one release, with a warning that names the new one.

warn_renamed("method.init: attended", "method.init: selected")
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

REMOVED_IN = "0.3"  # old spellings of 0.1 work throughout 0.2


class RenamedWarning(FutureWarning):
    """An old spelling was used, or a setting where it no longer belongs; the message names the release that ends it.

    The command line prints it as one line. Python shows it by default, as it does every FutureWarning.
    """


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`."""
    warnings.warn(f"{old} is now {new}; softprompt {REMOVED_IN} drops the old name", RenamedWarning, stacklevel)


def renamed_keywords(**names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Accept keyword arguments of a function under their old names too, with a warning.

    @renamed_keywords(subjects="formatted_prompts")
    def generate(lm, formatted_prompts, …)
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def accept_old(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
                warn_renamed(f"{function.__name__}({old}=)", f"{function.__name__}({new}=)")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return accept_old

    return decorate


def warn_ignored(setting: str, by: str, *, stacklevel: int = 3) -> None:
    """Warn that a setting has no effect."""
    warnings.warn(f"{setting} is ignored by {by}; softprompt {REMOVED_IN} refuses it", RenamedWarning, stacklevel)
