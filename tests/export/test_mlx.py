"""The prompt cache of mlx-lm by its tensors and metadata; `tests/engines_real` runs mlx-lm itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from softprompt.data.template import Template
from softprompt.errors import MissingExtraError, UnsupportedModelError
from softprompt.export import mlx_cache
from softprompt.export.check import check_rows
from softprompt.export.registry import find_target
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import compute_keys_values
from tests.support.exported import export_source
from tests.support.odd_models import odd_lm
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_lm, tiny_seq2seq, tiny_tokenizer

FILE = "prompt_cache.safetensors"
QUOTED = Template("text", 'Say "it\'s" {{now}} 🙂 {text}\n\\ {{% raw %}}\tDone:')


@pytest.fixture(autouse=True)
def _without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_cache, "has_mlx", lambda: False)


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_the_file_holds_the_keys_and_values_of_the_whole_prefix(form: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    source = export_source(lm, form)
    out = find_target("mlx").write(tmp_path / "out", source).folder
    wanted = compute_keys_values(lm, source.formatted.prefix(lm))
    size = 5 + len(lm.encode("Text:")) + (form == "embedding")
    with safe_open(out / FILE, "pt") as file:
        facts = file.metadata()
        for i, kv in enumerate(wanted):
            assert kv is not None
            keys, values, offset = (file.get_tensor(f"{i}.{j}") for j in range(3))
            assert torch.equal(keys, kv[0].cpu()) and torch.equal(values, kv[1].cpu())
            assert offset.dtype == torch.int32 and offset.shape == () and offset.item() == size
            assert facts[f"1.{i}"] == "KVCache" and facts[f"2.{i + 1}.0"] == f"{i}.2" and facts["2.0"] == ""
    assert facts["0.model"] == lm.name and len(facts) == 2 + 3 * len(wanted) + 1
    if form == "kv":
        first = source.prompt.tensors()["layers.0.k"]
        assert torch.equal(wanted[0][0][0, :, :5], first)  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize("template", [QUOTED, Template("chat", "{text}!"), Template("text", "{text}")])
def test_mlx_lm_writes_the_row_around_a_text(template: Template, tmp_path: Path) -> None:
    """As `mlx_lm.generate` does it: it keeps what comes after the place of "<query>" in a second rendering."""
    lm = tiny_lm("llama")
    source = export_source(lm, "embedding", template)
    out = find_target("mlx").write(tmp_path / "out", source).folder
    with safe_open(out / FILE, "pt") as file:
        config = json.loads(file.metadata()["0.tokenizer_config"])
    write = jinja2.Environment().from_string(config["chat_template"]).render
    first, second = (write(messages=[{"role": "user", "content": text}]) for text in ("one two", "<query>"))
    (row,) = check_rows(source, ["one two"])[:1]
    assert lm.encode(first[second.index("<query>") :]) == list(row.ids)


def older(config: object) -> dict[str, Any]:
    return mlx_cache.older_rope(json.loads(json.dumps(config)))


def test_rotary_positions_are_named_as_mlx_lm_reads_them(tmp_path: Path) -> None:
    """A folder that Transformers 5 wrote has them in another place: a note says what to add."""
    yarn = {"rope_type": "yarn", "rope_theta": 5.0, "factor": 2.0}
    assert older({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}) == {"rope_theta": 5.0}
    assert older({"rope_parameters": yarn})["rope_scaling"] == {"rope_type": "yarn", "factor": 2.0}
    assert older({"rope_theta": 5.0, "rope_parameters": yarn}) == {}
    kinds = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 3.0}}
    found = older({"rope_parameters": kinds})
    assert found == {"rope_theta": 5.0, "rope_local_base_freq": 3.0}
    base = save_tiny(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    lm = FrozenLM(model, tiny_tokenizer(), str(base))
    notes = find_target("mlx").write(tmp_path / "out", export_source(lm, "kv")).notes
    assert any(f'"rope_theta": {10000.0}' in note and "config.json" in note for note in notes)


def test_what_mlx_lm_must_write_itself_needs_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="pip install mlx-lm"):
        find_target("mlx").write(tmp_path / "out", export_source(tiny_lm("gemma3"), "kv"))
    for lm in (odd_lm("granite4"), tiny_seq2seq()):
        with pytest.raises(UnsupportedModelError):
            find_target("mlx").write(tmp_path / "out", export_source(lm, "embedding"))
    assert not list(tmp_path.iterdir())
