"""A base split over devices by Accelerate does what the same base on one device does.

Without a GPU the second device is the disk: its layers are loaded for each call, by the hooks that move inputs
between GPUs.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from torch.testing import assert_close
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.data.tokenize import Example
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.models.placement import parse_device_map
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes, start_decoding
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from softprompt.training.prepare import prepare
from softprompt.training.run import fit
from tests.support.odd_models import odd_lm
from tests.support.saved import save_tiny, settings
from tests.support.tiny import CONFIGS, tiny_lm, tiny_model, tiny_seq2seq_model, tiny_tokenizer

ROWS = [Example((15, 6, 7, 8, 9), (False, True, True, True, True), "a"), Example((25, 6), (False, True), "b")]
PATHS = {"llama": "packed", "gemma2": "packed", "granite4": "state", "mamba": "concatenated", "t5": "masked"}


def saved(folder: Path, family: str) -> Path:
    if family in CONFIGS:
        return save_tiny(folder, family)
    model = tiny_seq2seq_model(family) if family == "t5" else odd_lm(family).hf_model
    model.save_pretrained(folder)
    tiny_tokenizer(closing=family == "t5").save_pretrained(folder)
    return folder


def on_disk(lm: FrozenLM, *, with_table: bool) -> dict[str, int | str]:
    """A device map of layers, and of modules outside of layers."""
    modules = dict(lm.hf_model.named_modules())
    layers = [place for place, part in modules.items() if isinstance(part, GradientCheckpointingLayer)]
    others = [place for place, part in modules.items() if not list(part.children())]
    inside = tuple(f"{layer}." for layer in layers)
    table = [place for place, part in modules.items() if part is lm.embedding and with_table]
    disk = {*layers[:-1], *table}
    kept = [*layers, *(place for place in others if not place.startswith(inside))]
    return {place: "disk" if place in disk else "cpu" for place in [*kept, *table]}


def both(folder: Path, family: str) -> tuple[FrozenLM, FrozenLM]:
    """The same base on the CPU, and with its layers but the last on the disk, and its embeddings if nothing else uses
    them."""
    base = saved(folder, family)
    whole = load_model(str(base), dtype="float32", device="cpu")
    split = load_model(str(base), dtype="float32", device_map=on_disk(whole, with_table=family == "llama"))
    assert split.is_split
    assert split.is_offloaded
    assert any(weight.device.type == "meta" for weight in split.hf_model.parameters())
    return whole, split


def learned(lm: FrozenLM, *, checkpoint: bool = False) -> list[Tensor]:
    """Losses of rows after virtual tokens, and the gradient of their mean."""
    soft = torch.randn(3, lm.geometry.hidden, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with lm.checkpoint_layers(checkpoint):
        losses = token_losses(lm, prepare_prefixes(lm, [Prefix(EmbeddingPrompt(soft), (4,), (5,))]), ROWS, [0, 0])
        losses.mean().backward()
    assert soft.grad is not None
    return [losses.detach(), soft.grad]


def decoded(lm: FrozenLM) -> Tensor:
    """Logits [3, 2, V] of two rows after a text, step by step; the second row goes on alone at last."""
    rows = [[8, 9], [10, 11]]
    soft = torch.randn(2, lm.geometry.hidden, generator=torch.Generator().manual_seed(0))
    prefix = Prefix(EmbeddingPrompt(soft))
    session = start_decoding(lm, prepare_prefixes(lm, [prefix]), rows, [0, 0], 3)
    states = [session.hidden, session.step(torch.tensor([12, 13]))]
    session.keep(torch.tensor([1, 1]))
    return torch.stack([lm.logits(hidden) for hidden in [*states, session.step(torch.tensor([14, 14]))]])


@pytest.mark.parametrize("family", PATHS)
def test_a_split_base_is_exact(family: str, tmp_path: Path) -> None:
    whole, split = both(tmp_path, family)
    assert split.digest() == whole.digest()
    assert split.geometry == whole.geometry
    assert split.geometry.differs(whole.geometry) is None
    for checkpoint in (False, True, False):
        assert_close(learned(split, checkpoint=checkpoint), learned(whole, checkpoint=checkpoint), rtol=0, atol=0)
    assert_close(decoded(split), decoded(whole), rtol=0, atol=0)
    assert PrefixRuntime.of(split).path == PrefixRuntime.of(whole).path == PATHS[family]


def test_keys_and_values_after_a_split_base(tmp_path: Path) -> None:
    whole, split = both(tmp_path, "gemma2")
    prompts = [
        KVPrompt(tuple(kv and (kv[0][0], kv[1][0]) for kv in compute_keys_values(lm, Prefix(lead=(4, 5, 6)))))
        for lm in (whole, split)
    ]
    assert_close(prompts[1].tensors(), prompts[0].tensors(), rtol=0, atol=0)
    ours, wanted = (
        token_losses(lm, prepare_prefixes(lm, [Prefix(prompt)]), ROWS)
        for lm, prompt in zip((split, whole), prompts, strict=True)
    )
    assert_close(ours, wanted, rtol=0, atol=0)


def test_a_model_that_a_user_offloaded() -> None:
    whole = FrozenLM(tiny_model("qwen3"), tiny_tokenizer(), "whole")
    model: Any = type(tiny_model("qwen3"))(tiny_model("qwen3").config)
    model.load_state_dict(tiny_model("qwen3").state_dict())
    cpu_offload(model, torch.device("cpu"))
    split = FrozenLM(model, tiny_tokenizer(), "split")
    assert split.is_offloaded
    assert split.device == torch.device("cpu")
    assert_close(learned(split), learned(whole), rtol=0, atol=0)


def test_a_run_on_a_split_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloaded layers are checkpointed, else autograd would hold every weight that it has seen."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "home"))
    base = save_tiny(tmp_path / "base")
    places = json.dumps(on_disk(tiny_lm("llama"), with_table=False))
    one = fit(prepare(settings(base, tmp_path, train__steps=2)))
    two = fit(prepare(settings(base, tmp_path, train__steps=2, name="split", device="auto", device_map=places)))
    assert_close(two.result.prompt.tensors(), one.result.prompt.tensors(), rtol=0, atol=0)


def test_a_plan_on_a_machine_with_one_device(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path)), dtype="float32", device_map="auto")
    if not torch.cuda.is_available():
        assert "device cpu (device map auto)" in lm.reason
        assert not lm.is_split


def test_an_engine_refuses_a_split_base(tmp_path: Path) -> None:
    _, split = both(tmp_path, "llama")
    with pytest.raises(UnsupportedModelError, match="split over devices"):
        asyncio.run(TransformersEngine(split).start())


@pytest.mark.parametrize("wanted", ["no map", "[1]", "{}", '{"model": null}', {"model": 1.5}])
def test_what_is_no_device_map(wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)not a device map.*auto, balanced"):
        parse_device_map(wanted, "auto")


def test_a_device_map_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--fsdp"):
        parse_device_map("auto", "auto")
    assert parse_device_map({"": 0}, "auto") == {"": 0}, "each process may have a map of its own"


def test_a_device_beside_a_device_map() -> None:
    with pytest.raises(ConfigError, match="--device cuda alone"):
        parse_device_map("auto", "cuda")


def test_sharding_needs_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        load_model(str(save_tiny(tmp_path)), device="cpu", fsdp=True)
    with pytest.raises(ConfigError, match="leave out --device-map"):
        load_model(str(tmp_path), device_map="auto", fsdp=True)
