"""The rules of the house: what a stranger may rely on when reading this package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "softprompt"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350
MAX_NAMES = 2  # that one statement assigns
MAX_ANY = 60  # lines of the package that name it, imports included: untyped libraries leave some
# Hooks that a registry calls by name in each module, and loggers.
SEVERAL = {"FORMAT", "SHAPES", "SPEC", "log", "read", "run", "write"}
# Rooms whose classes are extensions, wire formats or drawings, which the glossary does not list one by one.
UNLISTED = ("cli", "export", "interchange", "jobs", "methods", "report", "server", "vllm", "errors", "deprecation")
EXTENSIONS = {"Engine", "Method", "RowShape", "SoftPrompt"}  # a new one of these is no new term
TERMS = 60


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def names_of(target: ast.expr) -> list[str]:
    """The names that a target binds; attributes and items count as one each, `_` and its like as none."""
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in names_of(part)]
    if isinstance(target, ast.Starred):
        return names_of(target.value)
    name = ast.unparse(target)
    return [] if isinstance(target, ast.Name) and name.startswith("_") and not name.strip("_") else [name]


def top_level(path: Path) -> Iterator[str]:
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (name for target in node.targets for name in names_of(target))
        elif isinstance(node, ast.AnnAssign):
            yield from names_of(node.target)


def public_classes(*, extensions: bool) -> set[str]:
    return {
        node.name
        for path in SOURCES
        if module_of(path).split(".")[0] not in UNLISTED
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if extensions or EXTENSIONS.isdisjoint(map(ast.unparse, node.bases))
    }


def test_no_public_name_is_defined_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for name in set(top_level(path)):
            if not name.startswith("_"):
                homes[name].append(module_of(path))
    twice = {name: where for name, where in homes.items() if len(where) > 1 and name not in SEVERAL}
    assert not twice


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_statement_assigns_at_most_two_names(path: Path) -> None:
    crowded = [
        f"line {node.lineno}: {', '.join(names)}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assign)
        and len(names := [name for target in node.targets for name in names_of(target)]) > MAX_NAMES
    ]
    assert not crowded


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_few_values_are_untyped() -> None:
    """`Any` is for libraries without types; JSON is `json_types.JSON`, and what is only passed on is `object`."""
    lines = [
        f"{module_of(path)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bAny\b", line)
    ]
    assert len(lines) <= MAX_ANY, "\n".join(lines)


@pytest.mark.parametrize("folder", sorted({p.parent for p in SOURCES} - {PACKAGE}), ids=lambda p: p.name)
def test_a_package_begins_with_a_docstring_and_nothing_else(folder: Path) -> None:
    tree = tree_of(folder / "__init__.py")
    assert len(tree.body) == 1
    words = ast.get_docstring(tree) or ""
    assert re.search(r"\b[Kk]nows?\b", words), "what it must not know"
    assert re.search(r"[Ss]tart reading at\s+`\w+`", words), "where to start reading"


def test_every_package_is_a_stage_on_the_map() -> None:
    """docs/structures.md names every package and is short."""
    text = (ROOT / "docs" / "structures.md").read_text(encoding="utf-8")
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {name for name in packages if f"| `{name}` |" not in text} == set()
    assert len(text.splitlines()) <= 60


def test_the_tests_mirror_the_package() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}


def glossary() -> list[list[str]]:
    """The rows of the table: term, meaning, names in the code, source."""
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows[2:] if len(row) > 1]


def test_the_glossary_and_the_classes_are_one_language() -> None:
    listed = {name for row in glossary() for name in re.findall(r"`([A-Z]\w+)`", row[2])}
    assert listed - public_classes(extensions=True) == set(), "listed, but no class"
    assert public_classes(extensions=False) - listed == set(), "a class without a term"


def test_the_glossary_is_short_and_names_its_sources() -> None:
    rows = glossary()
    assert len(rows) <= TERMS
    assert all(len(row) == 4 and row[0] and row[1] and row[3] for row in rows)
    terms = [row[0] for row in rows]
    assert terms == sorted(terms, key=str.lower)
