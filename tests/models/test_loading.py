"""Base models loaded from disk: frozen and measured; what cannot be loaded or used is told by name, with the reason."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

import softprompt.models.measure as measure_module
from softprompt.errors import ConfigError, ModelError
from softprompt.models import loading, transformers_compat
from softprompt.models.device import pick_device, pick_dtype
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import LayerShape
from softprompt.models.loading import carries_states, load_model, load_tokenizer
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import examples, random_prompt, text_ids
from tests.support.saved import save_tiny
from tests.support.tiny import VOCAB, tiny_lm, tiny_tokenizer

HEAD_SHAPE = LayerShape(2, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def load32(folder: Path) -> FrozenLM:
    return load_model(str(folder), dtype="float32", device="cpu")


def test_a_loaded_model_is_the_saved_one_and_frozen(saved: Path) -> None:
    lm = load32(saved)
    assert lm.digest() == tiny_lm("llama").digest()
    assert not lm.hf_model.training and not any(module.training for module in lm.hf_model.modules())
    assert [p.requires_grad for p in lm.hf_model.parameters()].count(True) == 0
    assert lm.name == lm.geometry.base == str(saved)
    assert lm.encode("ab") == tiny_lm("llama").encode("ab")


def test_what_is_measured(saved: Path) -> None:
    found = load32(saved).geometry
    assert (found.architecture, found.hidden, found.vocab, found.max_positions) == ("llama", 32, VOCAB, 256)
    assert found.layers == (HEAD_SHAPE, HEAD_SHAPE)
    assert found.windows == (None, None)
    assert found.differs(tiny_lm("llama").geometry) is None
    weights = tiny_lm("llama").embedding.weight
    assert found.sample[:4] == tuple(weights[0, :4].tolist())
    assert found.sample[-4:] == tuple(weights[-1, :4].tolist())


@pytest.mark.parametrize(
    ("family", "windows"), [("mistral", (11, 11)), ("qwen3", (11, None)), ("gemma2", (11, None)), ("gpt2", (None,) * 2)]
)
def test_windows_are_per_layer(family: str, windows: tuple[int | None, ...]) -> None:
    assert tiny_lm(family).geometry.windows == windows


def test_every_dtype_is_the_same_base(saved: Path) -> None:
    """A prompt trained on one is used on the other."""
    full = load32(saved).geometry
    for dtype in ("bfloat16", "float16"):
        half = load_model(str(saved), dtype=dtype, device="cpu")
        assert half.dtype == getattr(torch, dtype)
        assert {p.dtype for p in half.hf_model.parameters()} == {half.dtype}
        assert half.geometry.sample != full.sample
        assert half.geometry.differs(full) is full.differs(half.geometry) is None
        assert half.reason == f"device cpu (asked for); dtype {dtype} (asked for); 0.1 MiB of weights"


def test_soft_capped_attention_is_loaded_with_it(tmp_path: Path) -> None:
    """SDPA, the default of a loaded model, would leave the cap out."""
    lm, ids = load32(save_tiny(tmp_path / "gemma2", "gemma2")), torch.tensor([text_ids(9, 1)])
    assert lm.hf_model.config._attn_implementation == "eager"
    assert torch.equal(lm.hf_model(ids).logits, tiny_lm("gemma2").hf_model(ids).logits)


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    """Hardware that is not here."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_fastest_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == (device, f"device {device} (the fastest one found)")
    assert pick_device("cpu") == ("cpu", "device cpu (asked for)")


def test_each_of_several_processes_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto")[0] == "cuda:3"
    assert pick_device("cuda:1") == ("cuda:1", "device cuda:1 (asked for)")
    machine(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto")[0] == "cpu"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
def test_half_precision_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool) -> None:
    machine(monkeypatch, cuda=True, mps=True, bf16=bf16)
    native = bf16 and device != "mps"
    dtype, reason = pick_dtype("auto", device)
    assert dtype is (torch.bfloat16 if native else torch.float32)
    assert reason == f"dtype {'bfloat16 (native' if native else 'float32 (no native bfloat16'} on this {device})"
    assert pick_dtype("float16", device) == (torch.float16, "dtype float16 (asked for)")


def test_amx_is_native_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert pick_dtype("auto", "cpu")[0] is torch.bfloat16


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AutoModelForCausalLM", None)  # touching it would raise AttributeError


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "tpu", "", "CPU"])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, saved: Path, device: str) -> None:
    """Told with those that are, before weights are loaded."""
    machine(monkeypatch)
    no_weights(monkeypatch)
    with pytest.raises(ConfigError, match=rf"(?s)device {device} is not available.*auto or one of \['cpu'\]"):
        load_model(str(saved), device=device)


@pytest.mark.parametrize("dtype", ["int8", "fp16", "", "torch.float32"])
def test_a_dtype_that_is_unknown(monkeypatch: pytest.MonkeyPatch, saved: Path, dtype: str) -> None:
    no_weights(monkeypatch)
    with pytest.raises(ConfigError, match=rf"(?s)dtype '{dtype}' is unknown.*auto.*float32.*bfloat16.*float16"):
        load_model(str(saved), dtype=dtype, device="cpu")


LOADERS: dict[str, Callable[[str], object]] = {"model": load_model, "tokenizer": load_tokenizer}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_name_without_network_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loader: Callable[[str], object], offline: bool
) -> None:
    """Offline by setting, or because nothing listens there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    begin = time.monotonic()
    with pytest.raises(ModelError, match="owner/name: ") as caught:
        loader("owner/name")
    assert time.monotonic() - begin < 5
    assert caught.value.hint is not None and "give the folder" in caught.value.hint
    assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in caught.value.what


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("name", ["/missing/model", "./missing", "missing.gguf", "/missing/m.gguf"])
def test_a_path_to_nothing(loader: Callable[[str], object], name: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder") as caught:
        loader(name)
    assert str(caught.value.where) == name.removeprefix("./")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "m.gguf").mkdir()
    with pytest.raises(ModelError, match=r"m\.gguf: .*no config\.json"):
        load_model(str(tmp_path / "m.gguf"))


def test_an_empty_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told with its name, and nothing is left in the cache."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"m\.gguf: the GGUF file cannot be read"):
        load_model(str(tmp_path / "m.gguf"))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def rewrite(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | changes))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "config is no JSON": (lambda p: (p / "config.json").write_text("{"), "not a valid JSON file"),
    "unknown architecture": (lambda p: rewrite(p, model_type="evil"), "evil"),
    "weights of another shape": (lambda p: rewrite(p, hidden_size=64), "RuntimeError"),
    "no causal language model": (lambda p: rewrite(p, model_type="vit"), "AutoModelForCausalLM"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_folder_that_cannot_be_loaded(copy: Path, damage: Callable[[Path], object], reason: str) -> None:
    """One line of reason, from whatever Transformers raised."""
    damage(copy)
    with pytest.raises(ModelError, match=f"(?s)copy: the base model cannot be loaded.*{reason}") as caught:
        load_model(str(copy), dtype="float32", device="cpu")
    assert "\n" not in str(caught.value.got)


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match="copy: the base model cannot be loaded"):
        load32(copy)
    with pytest.raises(ModelError, match="copy: the tokenizer cannot be loaded"):
        load_tokenizer(str(copy))


def test_the_tokenizer_alone_needs_no_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "model.safetensors").unlink()
    no_weights(monkeypatch)
    assert load_tokenizer(str(copy)).encode("Hi") == tiny_tokenizer().encode("Hi")


def test_remote_code_is_asked_for_by_hand_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def listen(kind: str, real: Any) -> Any:
        class Listener:
            @staticmethod
            def from_pretrained(path: str, **options: Any) -> object:
                asked.append((kind, options.get("trust_remote_code", False)))
                return real.from_pretrained(path, **options)

        return Listener

    monkeypatch.setattr(transformers_compat, "AutoTokenizer", listen("tokenizer", tf.AutoTokenizer))
    monkeypatch.setattr(loading, "AutoModelForCausalLM", listen("model", tf.AutoModelForCausalLM))
    load32(saved)
    load_tokenizer(str(saved))
    assert asked == [("tokenizer", False), ("model", False), ("tokenizer", False)]
    asked.clear()
    load_model(str(saved), dtype="float32", device="cpu", trust_remote_code=True)
    load_tokenizer(str(saved), trust_remote_code=True)
    assert asked == [("tokenizer", True), ("model", True), ("tokenizer", True)]


def test_code_beside_a_model_is_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    rewrite(copy, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    with pytest.raises(ModelError, match="copy: the base model cannot be loaded"):
        load32(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "states"),
    [
        (tf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2), True),
        (tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), False),
    ],
    ids=["mamba", "bloom"],
)
def test_states_are_seen_before_weights_are_loaded(config: Any, states: bool, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path / "odd")
    assert carries_states(str(tmp_path / "odd")) is states


def test_the_language_model_of_a_model_for_images(tmp_path: Path) -> None:
    text: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    text["intermediate_size"] = 64
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**text, **heads),
        vision_config=tf.CLIPVisionConfig(**vision, image_size=28, patch_size=14),
        image_token_index=VOCAB - 1,
    )
    tf.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "vision")
    tiny_tokenizer().save_pretrained(tmp_path / "vision")
    lm = load32(tmp_path / "vision")
    assert lm.geometry.hidden == 32 and len(lm.geometry.layers) == 2
    prepare_prefixes(lm, [Prefix(lead=(5, 6))])


def test_an_encoder_of_sound_is_refused(tmp_path: Path) -> None:
    tf.WhisperConfig(d_model=32, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads sound or images, not text"):
        load_model(str(tmp_path))


def test_loading_leaves_the_log_as_talkative_as_it_was(saved: Path, copy: Path) -> None:
    before, talkative = tf.logging.get_verbosity(), logging.INFO
    (copy / "model.safetensors").unlink()
    try:
        tf.logging.set_verbosity(talkative)
        load32(saved)
        assert tf.logging.get_verbosity() == talkative
        with pytest.raises(ModelError):
            load32(copy)
        assert tf.logging.get_verbosity() == talkative
    finally:
        tf.logging.set_verbosity(before)


def test_layers_are_recomputed_while_switched_on(saved: Path) -> None:
    """Each layer's MLP runs once for prefix and rows, and once more in the backward pass; the gradient is the same."""
    lm, rows, runs = load32(saved), examples([5, 9]), list[int]()
    made = random_prompt(lm, "embedding", 4, 1)
    assert isinstance(made, EmbeddingPrompt)
    for module in lm.hf_model.modules():
        if type(module).__name__ == "LlamaMLP":
            module.register_forward_pre_hook(lambda *_: runs.append(1))

    def gradient() -> Tensor:
        runs.clear()
        table = made.embeddings.detach().clone().requires_grad_()
        token_losses(lm, prepare_prefixes(lm, [Prefix(EmbeddingPrompt(table))]), rows).sum().backward()
        assert table.grad is not None
        return table.grad

    gradient()  # the first use of a model verifies it
    plain, once = gradient(), len(runs)
    assert once == 2 * 2
    with lm.checkpoint_layers():
        for nested in (False, True):  # switching on twice does not recompute twice
            with lm.checkpoint_layers(nested):
                assert_close(gradient(), plain)
                assert len(runs) == 2 * once
        assert_close(gradient(), plain)
        assert len(runs) == 2 * once
    assert torch.equal(gradient(), plain)
    assert len(runs) == once
    assert not any("forward" in vars(module) for module in lm.hf_model.modules() if isinstance(module, nn.Module))


def test_pickled_weights_are_never_read(copy: Path) -> None:
    """Not even when there is nothing else."""
    weights = tiny_lm("llama").hf_model.state_dict()
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load32(copy)
    assert "safetensors" in str(caught.value.hint)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    """Transformers fills a layer that the files lack with random numbers."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ModelError, match="lack weights") as caught:
        load32(copy)
    assert "model.layers.2." in str(caught.value.got)


def junk_weights(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"junk" * 10)
    return folder


def junk_config(folder: Path) -> Path:
    (folder / "config.json").write_text("[]")
    return folder


def junk_gguf(folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(b"GGUFjunk")
    return folder / "a.gguf"


@pytest.mark.parametrize("damage", [junk_weights, junk_config, junk_gguf])
def test_damaged_files_are_one_message(
    damage: Callable[[Path], Path], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError) as caught:
        load_model(str(damage(copy)))
    assert caught.value.got


def test_an_impossible_device_is_one_message(saved: Path) -> None:
    with pytest.raises((ModelError, ConfigError)):
        load_model(str(saved), device="cpu:x")


def test_one_of_several_processes_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto")[0] == "cuda:1"


def test_a_rope_that_changes_with_the_length_is_exact_in_the_original_context_only() -> None:
    rope: dict[str, Any] = {
        "rope_theta": 1e4,
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    common: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 4096}
    long = tf.Phi3Config(**common, rope_parameters=rope, original_max_position_embeddings=128)
    assert measure_module.context_of(long) == 128
    assert measure_module.context_of(tf.Phi3Config(**common)) == 4096


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_classifier_is_no_language_model(named: bool, tied: bool, tmp_path: Path) -> None:
    """With tied embeddings nothing is missing: it would load, and its head be thrown away."""
    values: dict[str, Any] = tiny_lm("llama").hf_model.config.to_dict()
    values["tie_word_embeddings"] = tied
    config = tf.LlamaConfig(**values)
    tf.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    if not named:
        rewrite(tmp_path / "judge", architectures=None)
    with pytest.raises(ModelError, match="no language model's") as caught:
        load32(tmp_path / "judge")
    assert caught.value.got == "score.weight"
    assert "language model" in str(caught.value.hint)


def test_other_weights_that_are_not_used_are_no_reason_to_refuse(copy: Path) -> None:
    """A value head, or layers that predict further tokens, beside a whole language model."""
    weights = load_file(copy / "model.safetensors")
    more = {"v_head.summary.weight": torch.ones(1, 32), "model.mtp.norm.weight": torch.ones(32)}
    save_file(weights | more, copy / "model.safetensors", metadata={"format": "pt"})
    assert load32(copy).digest() == tiny_lm("llama").digest()


@pytest.mark.parametrize(("added", "unusable"), [(0, 0), (1, 0), (3, 2)])
def test_ids_without_a_row_are_known(added: int, unusable: int, tmp_path: Path) -> None:
    """A tokenizer may have more tokens than the embedding table has rows."""
    from tests.support.tiny import SPECIAL

    folder, tokenizer = save_tiny(tmp_path / "m"), tiny_tokenizer()
    room = VOCAB - len(SPECIAL) - 256 - 1
    tokenizer.add_tokens([f"<new{i}>" for i in range(room + added)])
    tokenizer.save_pretrained(folder)
    lm = load32(folder)
    assert lm.unusable_ids == frozenset(range(VOCAB, VOCAB + unusable))
