"""Renamed names: old spellings keep working for one release, with a warning that names the new one.

warn_renamed("method.init: attended", "method.init: selected")
"""

from __future__ import annotations

import warnings

REMOVED_IN = "0.3"  # old spellings of 0.1 work throughout 0.2


class RenamedWarning(FutureWarning):
    """An old spelling was used; the message names the new one and the release that drops the old one.

    The command line prints it as one line. Python shows it by default, as it does every FutureWarning.
    """


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`."""
    warnings.warn(f"{old} is now {new}; softprompt {REMOVED_IN} drops the old name", RenamedWarning, stacklevel)
