"""`softprompt export --to vocabulary` from the command line, and back by `softprompt import`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from softprompt.errors import GeometryError, StoreError
from softprompt.prompts import store
from softprompt.prompts.forms import prompt_digest
from tests.support.adapters import saved_adapter
from tests.support.shell import done, refused
from tests.support.tiny import tiny_lm


def test_the_size_is_said_first_and_the_copy_is_a_base_model(base: Path, tmp_path: Path) -> None:
    save_file({"soft_prompt": torch.randn(5, 32)}, tmp_path / "prompt.safetensors")
    plain = ("--model", base, "--dtype", "float32")
    done("import", tmp_path / "prompt.safetensors", *plain, "--name", "tone", "--template", r"Q: {text}\nA:")
    said = done("export", "tone", *plain, "--to", "vocabulary", "--out", tmp_path / "copy").stdout
    assert said.index("a copy of the base model: ") < said.index("tone is in ") and "GB of weights" in said
    assert "<|tone_0|>" in said
    done("import", tmp_path / "copy", *plain, "--name", "back")
    assert prompt_digest(store.load("back")[0]) == prompt_digest(store.load("tone")[0])
    assert store.load("back")[1].template == store.load("tone")[1].template
    again = refused("export", "tone", *plain, "--to", "vocabulary", "--out", tmp_path / "copy")
    assert isinstance(again, StoreError)


def test_keys_and_values_are_refused_with_the_target_to_use(base: Path, tmp_path: Path) -> None:
    adapter = saved_adapter("PREFIX_TUNING", tiny_lm(), tmp_path / "adapter")
    done("import", adapter, "--model", base, "--name", "tone", "--dtype", "float32")
    error = refused("export", "tone", "--model", base, "--to", "vocabulary", "--out", tmp_path / "copy")
    assert isinstance(error, GeometryError) and "mlx" in (error.hint or "")
    assert not (tmp_path / "copy").exists()
