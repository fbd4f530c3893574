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

EXPORTS = softprompt._HOME
NAMES = sorted(EXPORTS)


def test_the_three_lists_are_one() -> None:
    """`__all__`, the table of homes, and the imports that type checkers see."""
    assert sorted(EXPORTS) == sorted(softprompt.__all__)
    assert len(set(softprompt.__all__)) == len(softprompt.__all__)
    tree = ast.parse(Path(softprompt.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == EXPORTS


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_home_defines(name: str) -> None:
    module, attribute = EXPORTS[name]
    for _ in range(2):  # importing a home must not change what the name means
        found = getattr(softprompt, name)
        assert found is getattr(importlib.import_module(module), attribute)
        assert found.__name__ == attribute
        assert found.__module__ == module, "exported from where it is defined"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'softprompt' has no attribute 'nonsense'"):
        softprompt.nonsense  # noqa: B018
    assert not hasattr(softprompt, "torch")


def test_the_version_is_that_of_the_package() -> None:
    assert softprompt.__version__ == importlib.metadata.version("softprompt")


@pytest.mark.parametrize("module", ["softprompt", "softprompt.training.config", "softprompt.cli.main"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    """In a process of its own."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'accelerate'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_dir_lists_the_public_names() -> None:
    assert set(softprompt.__all__) <= set(dir(softprompt))
