"""`import softprompt`: quick, and every public name is what it says."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import softprompt
from softprompt.deprecation import RenamedWarning

EXPORTS: dict[str, str] = softprompt.__dict__["_HOME"]
NAMES = sorted(EXPORTS)


def test_type_checkers_see_the_same_names() -> None:
    """`scripts/stubs` writes __init__.pyi from the table."""
    tree = ast.parse(Path(softprompt.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {
        str(alias.asname): str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == EXPORTS


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_home_defines(name: str) -> None:
    for _ in range(2):  # importing a home must not change what the name means
        public = getattr(softprompt, name)
        assert public is getattr(importlib.import_module(EXPORTS[name]), name)
        assert public.__name__ == name


@pytest.mark.parametrize(("old", "new"), sorted(softprompt.__dict__["_RENAMED"].items()))
def test_a_name_of_the_last_release_works_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(RenamedWarning, match=rf"softprompt\.{old} is now softprompt\.{new}"):
        assert getattr(softprompt, old) is getattr(softprompt, new)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'softprompt' has no attribute 'nonsense'"):
        softprompt.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(softprompt, "torch")


def test_the_version_is_that_of_the_package() -> None:
    assert softprompt.__version__ == importlib.metadata.version("softprompt")


@pytest.mark.parametrize("module", ["softprompt", "softprompt.training.config", "softprompt.cli.main"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    """In a process of its own."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'accelerate'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_dir_lists_the_public_names() -> None:
    assert set(softprompt.__all__) <= set(dir(softprompt))
