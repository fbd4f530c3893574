"""Quantized base models: named, exact like any other, with gradients through the same quantized weights."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from softprompt.errors import ConfigError, MissingExtraError, ModelError
from softprompt.inference.sampling import Sampling
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models import load_in as load_in_module
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.load_in import QUANTIZATIONS, Quantization, quantization_kind
from softprompt.models.loading import load_model
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.tolerance import tolerance
from softprompt.prefix.verify import verify
from softprompt.prompts import store
from tests.laws.oracle import plain_logits
from tests.support.cases import examples, gradient_tensors, mixed_prefixes, text_ids
from tests.support.engines import NAMES, generated, ids_of, job, running
from tests.support.lora import save_lora
from tests.support.odd_models import odd_lm
from tests.support.prompted import saved as saved_prompt
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_lm, tiny_model, tiny_seq2seq_model, tiny_tokenizer

EXACT: tuple[Quantization, ...] = ("4bit", "int4", "int8")  # whose activations are not rounded
ALL: tuple[Quantization, ...] = (*EXACT, "8bit")
LENGTHS = (9, 2, 15, 3, 7, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def quantized(folder: Path) -> dict[str, FrozenLM]:
    return {kind: load_model(str(folder), dtype="float32", device="cpu", load_in=kind) for kind in ALL}


def quantized_layers(lm: FrozenLM) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in lm.hf_model.named_modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight
            if type(weight.data) is not Tensor or not weight.is_floating_point():
                yield name, layer


def plain_twin(lm: FrozenLM) -> FrozenLM:
    """The tiny Llama with plain weights where `lm` has quantized ones: what its layers make of unit vectors."""
    twin = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        for name, layer in quantized_layers(lm):
            twin.get_submodule(name).get_parameter("weight").copy_(layer(torch.eye(layer.in_features)).T)
    return FrozenLM(twin, lm.tokenizer, "twin")


def our_step(lm: FrozenLM) -> list[Tensor]:
    """The loss of rows after every kind of prefix, and its gradients."""
    prefixes, rows = mixed_prefixes(lm, grad=True), examples(LENGTHS)
    loss = token_losses(lm, prepare_prefixes(lm, prefixes), rows, range(len(rows))).sum()
    return [loss.detach(), *torch.autograd.grad(loss, gradient_tensors(prefixes))]


def plain_step(lm: FrozenLM) -> list[Tensor]:
    """The same by concatenation, one row at a time."""
    prefixes, loss = mixed_prefixes(lm, grad=True), torch.zeros(())
    for row, prefix in zip(examples(LENGTHS), prefixes, strict=True):
        mask = torch.tensor(row.mask[1:], dtype=torch.bool)
        logits, ids = plain_logits(lm, prefix, row.ids), torch.tensor(row.ids[1:])
        loss = loss + cross_entropy(logits[:-1][mask], ids[mask], reduction="sum")
    return [loss.detach(), *torch.autograd.grad(loss, gradient_tensors(prefixes))]


def off(ours: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative difference."""
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(ours, wanted, strict=True))


@pytest.mark.parametrize("load_in", EXACT)
def test_a_step_has_the_gradient_of_the_same_quantized_weights(load_in: str, quantized: dict[str, FrozenLM]) -> None:
    lm = quantized[load_in]
    assert len(list(quantized_layers(lm))) == 14, "all but embedding and head"
    twin = plain_twin(lm)
    assert off(our_step(lm), plain_step(twin)) < 1e-4
    assert off(plain_step(tiny_lm("llama")), plain_step(twin)) > 1e-3, "quantization changes something"


def test_a_step_with_rounded_activations_is_within_the_models_own_noise(quantized: dict[str, FrozenLM]) -> None:
    """LLM.int8() passes gradients on as if it did not round; each row alone is off from the same row in a batch."""
    lm = quantized["8bit"]
    assert 1e-3 < tolerance(lm) < 0.1
    ours, plain = our_step(lm), plain_step(lm)
    assert off(ours[:1], plain[:1]) < tolerance(lm)
    assert off(ours, plain) < 3 * tolerance(lm)
    assert off(plain_step(tiny_lm("llama")), plain) > 3 * tolerance(lm)


def test_only_quantized_models_have_a_measured_tolerance(quantized: dict[str, FrozenLM]) -> None:
    assert tolerance(tiny_lm("llama")) == tolerance(quantized["4bit"]) == tolerance(quantized["int8"]) == 1e-3


@pytest.mark.parametrize("load_in", ALL)
def test_weights_are_counted_and_digested_as_they_are_stored(load_in: str, quantized: dict[str, FrozenLM]) -> None:
    lm, plain = quantized[load_in], tiny_lm("llama")
    assert lm.flops_per_token == plain.flops_per_token
    layers = [layer for _, layer in quantized_layers(lm)]
    packed = sum(layer.in_features * layer.out_features for layer in layers)
    share = {"4bit": 0.5, "int4": 0.75, "8bit": 1, "int8": 1}[load_in]  # bytes a weight
    rows = sum(layer.out_features for layer in layers)
    beside = {"4bit": 1280 * len(layers), "int4": 0, "8bit": 4 * rows, "int8": 5 * rows}[load_in]  # tables and scales
    assert lm.weight_bytes == pytest.approx(plain.weight_bytes - packed * (4 - share) + beside, rel=0.02)
    assert f"{lm.weight_bytes / 2**20:,.1f} MiB of weights, {QUANTIZATIONS[load_in]}" in lm.reason
    digest = lm.digest()
    our_step(lm)
    assert lm.digest() == digest != plain.digest()


def test_in_a_loop_of_ones_own(folder: Path) -> None:
    model = SoftPromptModel.from_method(str(folder), dtype="float32", device="cpu", load_in="4bit")
    ids = torch.tensor([text_ids(9, 0)])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.card.geometry.quantization == QUANTIZATIONS["4bit"]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients and all(gradient is not None and gradient.norm() > 0 for gradient in gradients)


def loaded(model: tf.PreTrainedModel, folder: Path, load_in: str) -> FrozenLM:
    """The model saved, and quantized when it is loaded again."""
    model.save_pretrained(folder)
    tiny_tokenizer(closing=model.config.is_encoder_decoder).save_pretrained(folder)
    return load_model(str(folder), dtype="float32", device="cpu", load_in=load_in)


@pytest.mark.parametrize("load_in", ALL)
def test_an_encoder_decoder_is_proven(load_in: str, tmp_path: Path) -> None:
    lm = loaded(tiny_seq2seq_model("t5"), tmp_path, load_in)
    verify(lm)
    assert lm.geometry.quantization == QUANTIZATIONS[load_in]


@pytest.mark.parametrize(("family", "load_in"), [("mamba", "4bit"), ("rwkv", "int8"), ("qwen3_5", "int4")])
def test_layers_that_cannot_be_quantized_stay_plain(family: str, load_in: str, tmp_path: Path) -> None:
    """Mamba and RWKV read the weights of some by themselves; int4 packs 16 rows together, and Qwen3.5 has others."""
    plain = odd_lm(family)
    lm = loaded(plain.hf_model, tmp_path, load_in)
    verify(lm)
    kept = {name for name, layer in lm.hf_model.named_modules() if isinstance(layer, nn.Linear)}
    kept -= {name for name, _ in quantized_layers(lm)}
    assert any(name.endswith(("dt_proj", "attention.output", "in_proj_b")) for name in kept)
    assert lm.weight_bytes < plain.weight_bytes


@pytest.mark.parametrize("load_in", ["4bit", "int4"])
def test_a_router_of_experts_stays_as_it_is(load_in: str, tmp_path: Path) -> None:
    """Llama 4's looks like a linear layer, and returns two tensors."""
    lm = loaded(odd_lm("llama4").hf_model, tmp_path, load_in)
    verify(lm)
    assert PrefixRuntime.of(lm).path == "state", PrefixRuntime.of(lm).reasons


@pytest.mark.parametrize("load_in", ["int4", "int8"])
def test_a_model_of_which_nothing_can_be_quantized_is_refused(load_in: str, tmp_path: Path) -> None:
    """GPT-2's layers are none of torch's; bitsandbytes knows them."""
    with pytest.raises(ModelError, match="none of its layers") as caught:
        loaded(tiny_model("gpt2"), tmp_path, load_in)
    assert "4bit" in str(caught.value.hint)
    assert loaded(tiny_model("gpt2"), tmp_path, "4bit").weight_bytes < tiny_lm("gpt2").weight_bytes


@pytest.mark.parametrize("load_in", EXACT)
def test_the_engine_answers_as_generate_does(load_in: str, quantized: dict[str, FrozenLM]) -> None:
    lm, rows = quantized[load_in], [text_ids(1 + 5 * i % 17, i) for i in range(6)]

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm) as engine:
            jobs = [job(str(i), NAMES[i], row, Sampling(8)) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    for prefix, row, answer in zip(mixed_prefixes(lm), rows, asyncio.run(run()), strict=True):
        assert answer == generated(lm, prefix, row, Sampling(8))


def test_the_engine_runs_a_model_that_rounds_activations(quantized: dict[str, FrozenLM]) -> None:
    """Its probe allows for the model's noise. Greedy answers may part where two tokens are nearly as likely."""

    async def run() -> tuple[list[int], str]:
        async with running(quantized["8bit"]) as engine:
            return await ids_of(engine, job("0", "both", text_ids(5, 0), Sampling(4)))

    assert len(asyncio.run(run())[0]) <= 4


def test_a_digest_covers_quantized_numbers(quantized: dict[str, FrozenLM]) -> None:
    lm = quantized["int8"]
    weight: Any = lm.hf_model.get_parameter("model.layers.1.mlp.up_proj.weight")
    before = lm.digest()
    weight.data.qdata[3, 4] += 1
    changed = lm.digest()
    weight.data.qdata[3, 4] -= 1
    assert changed != before == lm.digest()


@pytest.mark.parametrize("load_in", ALL)
def test_a_prompt_moves_between_weights_with_a_notice(
    load_in: str, quantized: dict[str, FrozenLM], tmp_path: Path
) -> None:
    lm, plain = quantized[load_in], tiny_lm("llama")
    tone = saved_prompt(lm, tmp_path / "tone")
    assert store.load(tone, lm.geometry)[1].geometry.quantization == QUANTIZATIONS[load_in]
    with pytest.warns(UserWarning, match=f"trained on {QUANTIZATIONS[load_in]} .* used on plain weights"):
        store.load(tone, plain.geometry)
    with pytest.warns(UserWarning, match=f"trained on plain weights .* used on {QUANTIZATIONS[load_in]}"):
        store.load(saved_prompt(plain, tmp_path / "plain"), lm.geometry)
    assert lm.geometry.fingerprint != plain.geometry.fingerprint
    card = json.loads((tmp_path / "plain" / "card.json").read_text())
    assert "quantization" not in card["base"], "cards of plain models stay as they were"


def test_a_card_of_an_unknown_quantization_gives_no_notice(quantized: dict[str, FrozenLM], tmp_path: Path) -> None:
    """Those of 0.1, which had no matrices to sample."""
    tone = saved_prompt(quantized["4bit"], tmp_path / "tone")
    card = json.loads((tone / "card.json").read_text())
    del card["base"]["quantization"]
    (tone / "card.json").write_text(json.dumps(card))
    store.load(tone, quantized["8bit"].geometry)


@pytest.mark.parametrize("load_in", ["4bit", "8bit", "int8"])
def test_a_quantized_checkpoint_loads_as_it_is(load_in: str, quantized: dict[str, FrozenLM], tmp_path: Path) -> None:
    lm = quantized[load_in]
    lm.hf_model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    for again in (None, load_in):
        loaded = load_model(str(tmp_path), dtype="float32", device="cpu", load_in=again)
        assert loaded.geometry.quantization == QUANTIZATIONS[load_in]
        ids = torch.tensor([text_ids(9, 0)])
        with torch.no_grad():
            assert_close(loaded.hf_model(ids).logits, lm.hf_model(ids).logits, rtol=tolerance(lm), atol=tolerance(lm))
    other = "int8" if load_in == "4bit" else "4bit"
    with pytest.raises(ConfigError, match="quantized already") as caught:
        load_model(str(tmp_path), device="cpu", load_in=other)
    assert QUANTIZATIONS[load_in] in str(caught.value.got)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "aqlm"])
def test_a_missing_package_is_named(method: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    tf.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    missing = load_in_module._MODULES[method]
    if all(map(importlib.util.find_spec, missing)):
        pytest.skip(f"{missing} are installed")
    with pytest.raises(MissingExtraError) as caught:
        load_model(str(tmp_path), device="cpu")
    assert str(caught.value.hint).startswith("pip install ") and method in caught.value.what


@pytest.mark.parametrize("load_in", ALL)
def test_the_extra_is_named(load_in: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_in_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        load_model(str(folder), device="cpu", load_in=load_in)
    assert caught.value.hint == "pip install 'softprompt[quant]'"


def test_an_unknown_quantization_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no quantization '3bit'") as caught:
        load_model(str(folder), load_in="3bit")
    assert caught.value.expected == "4bit, 8bit, int4, int8"


@pytest.mark.parametrize("load_in", ["4bit", "int8"])
def test_an_adapter_stays_attached(load_in: str, folder: Path, tmp_path: Path) -> None:
    """As in QLoRA: merged, the weights would have to be quantized anew."""
    adapter = save_lora(tmp_path / "lora", folder, tiny_model("llama"), target_modules=["q_proj", "v_proj"])
    lm = load_model(f"{folder}+{adapter}", dtype="float32", device="cpu", load_in=load_in)
    assert any("lora_" in name for name, _ in lm.hf_model.named_parameters()) and lm.geometry.adapted
    assert off(our_step(lm), plain_step(lm)) < 1e-4


def test_layers_that_repack_themselves_are_kept_from_it(folder: Path) -> None:
    """On a CPU with AVX-512 bfloat16 bitsandbytes' 4-bit layers lose their gradient after a run without one."""
    lm = load_model(str(folder), dtype="float32", device="cpu", load_in="4bit")
    layers = [layer for _, layer in quantized_layers(lm)]
    for layer in layers:
        vars(layer)["support_avx512bf16_for_cpu"] = True
    again = FrozenLM(lm.hf_model, lm.tokenizer, "again")
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert off(our_step(again), plain_step(plain_twin(again))) < 1e-4


class InferenceOnly(nn.Linear):
    """As the kernels of some formats: no gradient comes out, and it is a view."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        with torch.no_grad():
            return super().forward(input).view(*input.shape[:-1], self.out_features)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with bias
def test_kernels_without_a_gradient_get_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = tiny_lm(family), copy.deepcopy(tiny_model(family))
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = InferenceOnly
            layer.register_buffer("packed", torch.zeros(1, dtype=torch.int32))
    with pytest.raises((AssertionError, RuntimeError)):
        assert off(our_step(FrozenLM(model, plain.tokenizer, "lost")), plain_step(plain)) < 1e-4
    monkeypatch.setattr(model, "is_quantized", True, raising=False)
    lm = FrozenLM(model, plain.tokenizer, "found")
    assert off(our_step(lm), plain_step(plain)) < 1e-4
    assert lm.geometry.matrices == (), "weights of a quantized model are not sampled"


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (None, ""),
        ({"load_in_8bit": True}, "bitsandbytes int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao int4"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, "torchao"),
    ],
)
def test_checkpoints_say_how_they_are_quantized(section: dict[str, object] | None, kind: str) -> None:
    config = tf.LlamaConfig()
    if section is not None:
        vars(config)["quantization_config"] = section
    assert quantization_kind(config) == kind
