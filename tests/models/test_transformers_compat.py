"""The private names of Transformers that softprompt relies on are there, and are used in one place."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from packaging.specifiers import SpecifierSet

import softprompt

PACKAGE = Path(softprompt.__file__).parent
COMPAT = ("models/transformers_compat.py", "engine/transformers_compat.py")
FOREIGN_ROOMS = ("models", "prefix", "engine", "modeling", "export", "lm_eval.py")  # what knows Transformers
# Of torch, which has no public names for them: what the processor can do, how often a tensor was written
# to, and whether it shares memory.
TORCH = {"_is_avx512_bf16_supported", "_is_amx_tile_supported", "_version", "_is_view"}


def requirement(extra: str | None) -> SpecifierSet:
    """The supported range of Transformers, from pyproject.toml."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    (line,) = [line for line in lines if re.match(r"transformers\W", line)]
    return SpecifierSet(line.removeprefix("transformers"))


def check_names(names: list[tuple[Any, str]], supported: SpecifierSet) -> None:
    here = version("transformers")
    for owner, name in names:
        label = getattr(owner, "__name__", type(owner).__name__)
        assert hasattr(owner, name), (
            f"Transformers {here} has no {label}.{name}: find its successor, and change the compat module and the "
            f"supported range ({supported})"
        )


def test_the_model_names_are_there() -> None:
    supported = requirement(None)
    assert str(supported) == "<5.25,>=5.10", "check models/transformers_compat.py against the new range"
    names = [(tf.PreTrainedModel, "_can_set_attn_implementation"), (tf.LlamaConfig(), "_attn_implementation")]
    check_names([*names, (tf.AttentionInterface(), "get")], supported)
    from transformers.models.llama import modeling_llama

    check_names([(modeling_llama, "eager_attention_forward")], supported)


def test_the_batching_names_are_there() -> None:
    supported = requirement("serve")
    assert str(supported) == "<5.25,>=5.23", "check engine/transformers_compat.py against the new range"
    if version("transformers") not in supported:
        pytest.skip(f"the engine needs Transformers {supported}")
    from transformers.generation.continuous_batching import continuous_api, scheduler
    from transformers.generation.continuous_batching.cache_allocators import cache_pool

    manager = continuous_api.ContinuousBatchingManager
    methods = ("_create_batch_processor", "_run_generation_loop", "_generation_loop_body", "_generation_step")
    check_names([(manager, name) for name in methods], supported)
    check_names([(scheduler.FIFOScheduler, "_try_to_meet_safety_margin")], supported)
    source = Path(continuous_api.__file__).read_text() + Path(cache_pool.__file__).read_text()
    for attribute in ("self._generation_thread", "self._wake_up_loop", "self._free_blocks"):
        assert attribute in source, (
            f"Transformers {version('transformers')} has no {attribute} (supported: {supported})"
        )


def private_uses(path: Path) -> list[str]:
    """Attributes with a leading underscore that the module uses and does not define."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute):
                        defined.add(part.attr)
                    elif isinstance(part, ast.Name):
                        defined.add(part.id)
    uses = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in uses if re.match(r"_(?!_)", name) and name not in defined | TORCH]


@pytest.mark.parametrize("package", FOREIGN_ROOMS)
def test_private_names_stand_in_the_compat_modules_only(package: str) -> None:
    for path in sorted((PACKAGE / package).rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() not in COMPAT:
            assert private_uses(path) == [], path


def test_the_search_is_not_empty() -> None:
    assert "_can_set_attn_implementation" in private_uses(PACKAGE / COMPAT[0])
    assert "_generation_loop_body" in Path(PACKAGE / COMPAT[1]).read_text()


def test_the_model_is_private() -> None:
    """`FrozenLM._model` is for `models`; `hf_model` for the packages that know Transformers."""
    for path in sorted(PACKAGE.rglob("*.py")):
        uses = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        foreign = {use.attr for use in uses if not (isinstance(use.value, ast.Name) and use.value.id == "self")}
        package = path.relative_to(PACKAGE).parts[0]
        assert package == "models" or not {"_model", "_config"} & foreign, path
        assert package in FOREIGN_ROOMS or "hf_model" not in foreign, path
