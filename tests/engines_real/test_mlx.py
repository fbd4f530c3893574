"""mlx-lm itself: what its own loader, generator and command line say after an exported prompt cache."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache
from safetensors import safe_open

from softprompt.errors import UnsupportedModelError
from softprompt.export import mlx_cache
from softprompt.export.check import check_export
from softprompt.export.registry import find_target
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import find_source
from tests.engines_real.conftest import Record, SourceOf
from tests.support.exported import export_source
from tests.support.odd_models import odd_lm
from tests.support.tiny import VOCAB, tiny_lm, tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
FILE = "prompt_cache.safetensors"


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_mlx_lm_answers_as_we_do(form: str, source_of: SourceOf, record: Record, tmp_path: Path) -> None:
    target, source = find_target("mlx"), source_of(form)
    folder = target.write(tmp_path / "out", source).folder
    report = check_export(target, folder, source)
    record("mlx", form, "float32", report)
    assert report.same == report.rows == 20
    assert report.difference <= 1e-4 and report.plain_difference <= 1e-4


def lm_of(config: tf.PreTrainedConfig, name: str) -> FrozenLM:
    """A random model of this config."""
    torch.manual_seed(0)
    return FrozenLM(tf.AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), name)


def plain_lm(family: str) -> FrozenLM:
    """A tiny model without windows."""
    if family != "qwen3":
        return tiny_lm(family)
    return lm_of(tf.Qwen3Config(**SIZES, num_hidden_layers=2), "tiny-qwen3")


@pytest.mark.parametrize("family", mlx_cache.PLAIN)
def test_the_file_written_without_mlx_lm_is_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export_source(plain_lm(family), "kv")
    find_target("mlx").write(tmp_path / "theirs", source)
    monkeypatch.setattr(mlx_cache, "has_mlx", lambda: False)
    find_target("mlx").write(tmp_path / "ours", source)
    with safe_open(tmp_path / "theirs" / FILE, "np") as theirs, safe_open(tmp_path / "ours" / FILE, "np") as ours:
        assert sorted(theirs.keys()) == sorted(ours.keys())
        assert {**theirs.metadata(), "format": ""} == {**ours.metadata(), "format": ""}
        for name in theirs.keys():  # noqa: SIM118 - no mapping
            one, other = theirs.get_tensor(name), ours.get_tensor(name)
            assert one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)


@pytest.mark.parametrize("n_tokens", [3, 30])
def test_layers_with_windows_get_the_cache_that_mlx_lm_has_for_them(n_tokens: int, tmp_path: Path) -> None:
    """Prompts shorter and longer than Gemma 3's window of 11."""
    lm = lm_of(tf.Gemma3TextConfig(**SIZES, num_hidden_layers=6, sliding_window=11), "tiny-gemma3")
    source = export_source(lm, "kv", n_tokens=n_tokens)
    folder = find_target("mlx").write(tmp_path / "out", source).folder
    caches = load_prompt_cache(str(folder / FILE))
    window, full = caches[0], caches[5]
    assert type(window).__name__ == "RotatingKVCache" and type(full).__name__ == "KVCache"
    assert window.max_size == 11 and window.offset == full.offset == n_tokens + len("Text:")
    keys = source.prompt.tensors()["layers.0.k"]
    assert torch.equal(torch.from_numpy(np.array(window.keys))[0, :, :n_tokens], keys)


def test_layers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """DeepSeek's latent attention: mlx-lm keeps something else than keys and values."""
    with pytest.raises(UnsupportedModelError):
        find_target("mlx").write(tmp_path / "out", export_source(odd_lm("deepseek_v3"), "kv"))
    assert not list(tmp_path.iterdir())


def with_older_config(folder: Path, made: Path) -> Path:
    """The model with a config.json as the published one has it, and as the export's note says."""
    made.mkdir()
    for path in folder.iterdir():
        (made / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (made / "config.json").unlink()
    (made / "config.json").write_text(json.dumps(config | mlx_cache.older_rope(config)))
    return made


def test_the_command_of_the_readme(source_of: SourceOf, tmp_path: Path) -> None:
    """Its chat template writes the row around the text; the text is that of `softprompt generate`."""
    source = source_of("embedding", chat=True)  # behind the other one the model ends at once
    folder = find_target("mlx").write(tmp_path / "out", source).folder
    base = with_older_config(Path(find_source("smollm2-135m").path), tmp_path / "base")
    cache, metadata = load_prompt_cache(str(folder / FILE), return_metadata=True)
    save_prompt_cache(str(tmp_path / FILE), cache, metadata | {"model": str(base)})  # the published one is not here
    text = "Where is my parcel?"
    command = [sys.executable, "-m", "mlx_lm", "generate", "--prompt-cache-file", str(tmp_path / FILE)]
    command += ["--prompt", text, "--max-tokens", "12", "--temp", "0", "--verbose", "False"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    lm = source.lm
    (answer,) = generate(lm, {"tone": source.formatted}, [Request(text)], Sampling(max_new_tokens=12))
    assert said.strip() == answer.text.strip() and said.strip()
