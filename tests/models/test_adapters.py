"""Base models with a LoRA adapter: the logits of PEFT's, another base model than without it, and nothing changed."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from softprompt.errors import ConfigError, MissingExtraError, ModelError, SoftpromptError, UnsupportedModelError
from softprompt.models import adapters
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry
from softprompt.models.loading import load_model, load_tokenizer, vocabulary_size
from softprompt.models.sources import adapted_name, find_source, is_here
from softprompt.prompts.model_card import public_name
from softprompt.server.model_directory import served_name
from tests.support.cases import check_close, text_ids
from tests.support.lora import TARGETS, logits_of, lora_model, save_lora
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_lm, tiny_model, tiny_seq2seq_model, tiny_tokenizer

IDS = text_ids(9, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return save_lora(folder, base, tiny_model("llama"), target_modules=TARGETS["llama"])


def load32(name: object) -> FrozenLM:
    return load_model(str(name), dtype="float32", device="cpu")


def refused(name: object) -> SoftpromptError:
    with pytest.raises(SoftpromptError) as caught:
        load32(name)
    return caught.value


def changed(folder: Path, tmp_path: Path, **config: Any) -> Path:
    """A copy of an adapter whose config says something else."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return copy


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", {"target_modules": TARGETS["llama"]}),
    "all": ("llama", {"target_modules": "all-linear"}),
    "rslora": ("llama", {"target_modules": TARGETS["llama"], "use_rslora": True}),
    "dora": ("llama", {"target_modules": TARGETS["llama"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "saved head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "transposed": ("gpt2", {"target_modules": TARGETS["gpt2"]}),
    "tied head": ("gpt2", {"target_modules": ["lm_head"]}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_model_is_merged_exactly_and_stays_as_it_was(kind: str) -> None:
    family, settings = KINDS[kind]
    model = lora_model(tiny_model(family), **settings)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = logits_of(model, IDS)
    lm = FrozenLM(model, tiny_tokenizer(), "lora")
    check_close(logits_of(lm.hf_model, IDS), wanted)
    assert not any("lora" in name for name, _ in lm.hf_model.named_modules())
    assert type(lm.hf_model) is type(tiny_model(family))
    assert torch.equal(logits_of(model, IDS), wanted)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert lm.geometry.differs(tiny_lm(family).geometry) is not None
    assert lm.geometry.fingerprint != tiny_lm(family).geometry.fingerprint
    if kind != "tokens":
        assert not torch.allclose(wanted, logits_of(tiny_model(family), IDS), atol=1e-2)


def test_unchanged_layers_are_shared() -> None:
    """A merged model costs the memory of its changed matrices alone."""
    model = lora_model(tiny_model("llama"), target_modules=["q_proj"])
    lm = FrozenLM(model, tiny_tokenizer(), "lora")
    theirs = {weight.data_ptr() for weight in model.parameters()}
    own = [name for name, weight in lm.hf_model.named_parameters() if weight.data_ptr() not in theirs]
    assert own == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]


def test_half_precision_is_rounded_once(base: Path, adapter: Path) -> None:
    half = load_model(str(adapter), dtype="bfloat16", device="cpu")
    plain = load_model(str(base), dtype="bfloat16", device="cpu")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    wanted = plain.hf_model.get_parameter(f"{name}.weight").float() + 5 / 3 * (b @ a)
    assert torch.equal(half.hf_model.get_parameter(f"{name}.weight"), wanted.to(torch.bfloat16))
    assert {weight.dtype for weight in half.hf_model.parameters()} == {torch.bfloat16}
    assert half.geometry.differs(load32(adapter).geometry) is None


def test_an_adapter_folder_is_a_base_model(base: Path, adapter: Path) -> None:
    lm = load32(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    check_close(logits_of(lm.hf_model, IDS), logits_of(theirs, IDS))
    assert lm.name == lm.geometry.base == str(adapter)
    assert find_source(str(adapter)).kind == "folder with an adapter"
    assert load_tokenizer(str(adapter)).encode("Hi") == tiny_tokenizer().encode("Hi")
    assert is_here(str(adapter))


def test_the_base_can_be_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    nameless = changed(adapter, tmp_path, base_model_name_or_path=None)
    assert "does not name its base model" in refused(nameless).what
    name = adapted_name(str(base), str(nameless))
    assert is_here(name)
    lm = load32(name)
    assert lm.geometry.differs(load32(adapter).geometry) is None
    assert lm.name == name
    assert adapted_name("x", None) == "x"
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        adapted_name(str(base), str(base))
    assert "can have one adapter" in refused(adapted_name(str(adapter), str(nameless))).what


def test_an_adapter_in_the_hub_cache(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to blobs, as the Hub's client keeps them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--owner--lora"
    snapshot = repo / "snapshots" / "abc"
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    for number, file in enumerate(adapter.glob("adapter_*")):
        (repo / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(repo / "blobs" / str(number))
    assert is_here("owner/lora")
    assert find_source("owner/lora").adapter == str(snapshot)
    lm = load32("owner/lora")
    assert lm.name == "owner/lora"
    assert lm.geometry.differs(load32(adapter).geometry) is None
    assert adapted_name("x", "owner/lora") == "x+owner/lora"


def test_a_plus_in_a_path_is_part_of_it(tmp_path: Path, adapter: Path) -> None:
    base = save_tiny(tmp_path / "c++" / "model+1")
    assert find_source(str(base)).adapter == ""
    assert find_source(f"{base}+{adapter}").path == str(base)


def test_the_tokenizer_of_the_adapter_comes_first(adapter: Path, tmp_path: Path) -> None:
    own = changed(adapter, tmp_path)
    tiny_tokenizer(bos=True).save_pretrained(own)
    assert load32(own).tokenizer.encode("a")[0] == load_tokenizer(str(own)).encode("a")[0] == 3


def test_added_tokens_come_with_the_adapter(base: Path, tmp_path: Path) -> None:
    import copy

    longer = copy.deepcopy(tiny_model("llama"))
    longer.resize_token_embeddings(303)
    made = save_lora(
        tmp_path / "a", base, longer, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    lm = load32(made)
    assert lm.geometry.vocab == vocabulary_size(str(made)) == 303
    assert vocabulary_size(str(base)) == 300
    stored = load_file(made / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(lm.embedding.weight, stored)


def test_an_encoder_decoder(tmp_path: Path) -> None:
    model = tiny_seq2seq_model()
    model.save_pretrained(tmp_path / "t5")
    tiny_tokenizer(closing=True).save_pretrained(tmp_path / "t5")
    folder = save_lora(tmp_path / "lora", tmp_path / "t5", model, target_modules=TARGETS["t5"])
    lm, decoder = load32(folder), torch.tensor([[0, 7, 9]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tf.T5ForConditionalGeneration.from_pretrained(tmp_path / "t5"), folder)
    wanted = logits_of(theirs.eval(), IDS, decoder_input_ids=decoder)
    check_close(logits_of(lm.hf_model, IDS, decoder_input_ids=decoder), wanted)


class TestIdentity:
    def test_with_and_without(self, base: Path, adapter: Path) -> None:
        merged, plain = load32(adapter).geometry, load32(base).geometry
        card, plain_card = (Geometry.from_dict(json.loads(json.dumps(one.to_dict()))) for one in (merged, plain))
        assert merged.differs(card) is card.differs(merged) is card.differs(card) is None
        for one, other in ((merged, plain_card), (plain, card), (card, plain_card), (merged, plain)):
            assert "adapter" in (one.differs(other) or "") or "other weights" in (one.differs(other) or "")
            assert one.differs(other) == other.differs(one)

    def test_an_adapter_that_moves_no_sampled_weight_counts(self) -> None:
        """The card lists the weights that it moved most."""
        model = lora_model(tiny_model("llama"), target_modules=["q_proj"])
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight[1:] = 0
        lm, plain = FrozenLM(model, tiny_tokenizer(), "lora").geometry, tiny_lm("llama").geometry
        assert lm.sample == plain.sample
        assert len(lm.adapted) == 2
        assert "adapter" in (lm.differs(plain) or "")

    def test_a_merged_checkpoint_is_the_same_base(self, adapter: Path, tmp_path: Path) -> None:
        lm = load32(adapter)
        lm.hf_model.save_pretrained(tmp_path / "merged")
        lm.tokenizer.save_pretrained(tmp_path / "merged")
        card = Geometry.from_dict(lm.geometry.to_dict())
        assert load32(tmp_path / "merged").geometry.differs(card) is None

    def test_another_adapter(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        other = save_lora(tmp_path / "b", base, tiny_model("llama"), seed=1, target_modules=TARGETS["llama"])
        one, two = load32(adapter).geometry, load32(other).geometry
        cards = [Geometry.from_dict(geometry.to_dict()) for geometry in (one, two)]
        assert one.differs(two) and two.differs(cards[0]) and cards[0].differs(cards[1])

    def test_an_adapter_of_nothing_is_the_base(self) -> None:
        model = lora_model(tiny_model("llama"), target_modules=["q_proj"])
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.zero_()
        lm = FrozenLM(model, tiny_tokenizer(), "lora")
        assert lm.geometry.adapted == ()
        assert lm.geometry.differs(tiny_lm("llama").geometry) is None


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"peft_type": "IA3"}, "no LoRA adapter"),
        ({"peft_type": "PROMPT_TUNING"}, "no LoRA adapter"),
        ({"task_type": "SEQ_CLS"}, "another kind of model"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "another kind of model"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "reads other files"),
        ({"init_lora_weights": "corda", "corda_config": {"cache_file": "x.pt"}}, "reads other files"),
        ({"init_lora_weights": "loftq"}, "reads other files"),
        ({"target_modules": ["no_such_module"]}, "does not fit"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "does not fit"),
        ({"base_model_name_or_path": "no/such-model"}, "not on this machine"),
        ({"base_model_name_or_path": "a b c"}, "not on this machine"),
        ({"base_model_name_or_path": 7}, "does not name"),
    ],
)
def test_adapters_that_are_refused(config: dict[str, Any], what: str, adapter: Path, tmp_path: Path) -> None:
    error = refused(changed(adapter, tmp_path, **config))
    assert what in error.what and error.hint


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def half_of_it(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t for name, t in tensors.items() if "layers.0" in name}, folder / "adapter_model.safetensors")


def other_width(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.cat([t, t]) for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def junk(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"junk" * 9)


@pytest.mark.parametrize("damage", [pickled, half_of_it, other_width, junk])
def test_damaged_adapters(damage: Callable[[Path], None], adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path)
    damage(folder)
    assert isinstance(refused(folder), ModelError)


def test_no_path_of_this_machine_is_shown() -> None:
    assert public_name("/home/me/base+/home/me/lora") == "base+lora"
    assert public_name("owner/base+/home/me/lora") == served_name("owner/base+/home/me/lora") == "owner/base+lora"


def test_a_folder_of_both_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path)
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert "a whole model and an adapter" in refused(folder).what


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path, base_model_name_or_path=str(adapter))
    assert "an adapter itself" in refused(folder).what


def test_the_file_of_an_adapter_selects_no_code(adapter: Path) -> None:
    with pytest.raises(ConfigError, match="remote code"):
        load_model(str(adapter), trust_remote_code=True)


def test_without_peft_the_extra_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="peft"):
        adapters.with_adapter(tiny_model("llama"), adapter)


def test_a_model_without_adapters_needs_no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "peft")
    assert adapters.plain_model(tiny_model("llama"), "x") == (tiny_model("llama"), ())


def test_a_soft_prompt_of_peft_is_no_base_model() -> None:
    import copy

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(tiny_model("llama")), config)
    with pytest.raises(UnsupportedModelError, match="no base model") as caught:
        FrozenLM(model, tiny_tokenizer(), "x")
    assert "softprompt import" in str(caught.value.hint)


def test_adapters_that_transformers_attached_are_merged_too(tmp_path: Path) -> None:
    import copy

    model = copy.deepcopy(tiny_model("llama"))
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wanted = logits_of(model.eval(), IDS)
    lm = FrozenLM(model, tiny_tokenizer(), "x")
    check_close(logits_of(lm.hf_model, IDS), wanted)
    assert torch.equal(logits_of(model, IDS), wanted) and model.active_adapters() == ["default"]
    assert len(lm.geometry.adapted) == 2
    lm.hf_model.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    assert load32(tmp_path / "merged").geometry.differs(lm.geometry) is None


def test_a_quantised_model_keeps_its_adapter_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged, its weights would be quantised anew."""
    model = lora_model(tiny_model("llama"), target_modules=["q_proj"])
    wanted = logits_of(model, IDS)
    monkeypatch.setattr(model.get_base_model(), "is_quantized", True, raising=False)
    plain, adapted = adapters.plain_model(model, "x")
    assert plain is model.get_base_model()
    assert_close(logits_of(plain, IDS), wanted, rtol=0, atol=0)
    assert {name.rsplit(".", 3)[1] for name, _, _ in adapted} == {"lora_A", "lora_B"}
