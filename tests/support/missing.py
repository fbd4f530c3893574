"""Packages that are not installed, simulated."""

from __future__ import annotations

import sys

import pytest


def uninstall(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make imports of the package and of its loaded modules fail until the test ends."""
    loaded = [name for name in sys.modules if name.partition(".")[0] == package]
    for name in {package, *loaded}:
        monkeypatch.setitem(sys.modules, name, None)
