"""Functions that the user wrote, named on the command line as FILE.py:function or package.module:function."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from softprompt.errors import ConfigError

UserFunction = Callable[..., object]


def load_user_function(name: str, kind: str, expected: str) -> UserFunction:
    """The function of this name. Importing it runs the file's code.

    Args:
        name: FILE.py:function or package.module:function.
        kind: what it is to be, for messages, such as "metric".
        expected: how such a name is written, and what the function takes.

    Raises ConfigError for a file, module or function that cannot be loaded.
    """
    place, function_name = name.rpartition(":")[0], name.rpartition(":")[2]
    if not place or not function_name:
        raise ConfigError(f"the {kind} names no function", expected=expected, got=name)
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # importing runs the user's code, which may raise anything
        got = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the {kind} cannot be imported", where=name, expected=expected, got=got) from error
    function: UserFunction | None = getattr(module, function_name, None)
    if function is None or not callable(function):
        functions = [other for other, value in vars(module).items() if callable(value) and other[:1] != "_"]
        raise ConfigError("no such function", where=name, expected=f"one of {functions}", got=function_name)
    return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
