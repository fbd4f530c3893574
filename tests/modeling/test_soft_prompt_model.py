"""The soft prompt as a Transformers model: placement, packing, files, likelihoods and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import softprompt
from softprompt.data.records import Message
from softprompt.data.template import VIRTUAL, Template
from softprompt.errors import ConfigError, DataError, StoreError, UnsupportedModelError, WrongBaseError
from softprompt.formatting.formatted_prompt import from_card
from softprompt.formatting.inputs import chat_input_ids
from softprompt.methods.registry import method_settings
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from tests.laws.oracle import plain_logits
from tests.support.cases import check_close, text_ids
from tests.support.prompted import FORMS, finished, padded, prompted, saved, texts, wanted_logits
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_lm, tiny_model, tiny_seq2seq, tiny_tokenizer

BOS = 3  # <s>


def test_the_public_name() -> None:
    assert softprompt.SoftPromptModel is SoftPromptModel


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_text_with_bos_is_run_as_it_was_trained(form: str) -> None:
    """BOS stands before the virtual tokens, once. A text that lacks it is the same text."""
    model, row = prompted("llama", form, bos=True), text_ids(6, 1)
    logits = model(torch.tensor([[BOS, *row]], device=model.device)).logits[0]
    lead = (BOS,) if form == "embedding" else ()
    check_close(logits[1:], plain_logits(model.lm, Prefix(model.model.live(), lead), row))
    check_close(model(torch.tensor([row], device=model.device)).logits[0], logits[1:])
    if form == "embedding":  # BOS predicts what follows the whole prefix
        embeds = torch.cat([model.lm.embed([BOS]), model.model.live().tensors()["embeddings"]])
        check_close(logits[0], model.get_base_model()(inputs_embeds=embeds[None]).logits[0, -1])
    else:
        check_close(logits[0], plain_logits(model.lm, Prefix(model.model.live()), [BOS])[0])
    out = model.generate(torch.tensor([[BOS, *row]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert out[0, 7] == logits[-1].argmax()


@torch.no_grad()
def test_bos_alone_is_a_text() -> None:
    model = prompted("llama", "embedding", bos=True)
    first = model(torch.tensor([[BOS]], device=model.device)).logits[0, 0]
    out = model.generate(torch.tensor([[BOS]]), max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert out[0, 1] == first.argmax()
    assert out[0, 2] == wanted_logits(model, [int(out[0, 1])])[-1].argmax()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_virtual_tokens_in_the_system_turn(form: str) -> None:
    """A conversation with an empty system turn is what `softprompt chat` runs; another one is refused."""
    lm = tiny_lm("llama", bos=True)
    model = SoftPromptModel(lm, finished(lm, form, template=Template("chat", "", VIRTUAL)))
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    text: Any = lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    logits = model(lm.tokenizer(text, return_tensors="pt").input_ids).logits[0, -1]
    formatted = from_card(model.model.live(), model.card)
    prefix_kv = prepare_prefixes(lm, [formatted.prefix(lm)])
    ids = chat_input_ids([Message("user", "hi")], formatted, lm.tokenizer)
    check_close(logits, lm.logits(packed_hidden_states(lm, prefix_kv, [Row(ids)]))[-1])
    with pytest.raises(DataError, match=r"(?s)must begin with that turn.*empty system turn"):
        model(lm.tokenizer("hi", return_tensors="pt").input_ids)


@torch.no_grad()
def test_several_sequences_in_a_row() -> None:
    """Each follows the soft prompt, as in padding-free batches."""
    model, rows = prompted("mistral", "kv"), texts(3)
    ids = torch.tensor([[token for row in rows for token in row]])
    positions = torch.tensor([[place for row in rows for place in range(len(row))]])
    logits = model(ids, position_ids=positions).logits[0].split([len(row) for row in rows])
    for ours, row in zip(logits, rows, strict=True):
        check_close(ours, wanted_logits(model, row))
    labels = model(ids, position_ids=positions, labels=ids).loss
    padded_ids, mask = padded(rows, "right")
    wanted = model(padded_ids, attention_mask=mask, labels=padded_ids.masked_fill(mask == 0, -100)).loss
    assert_close(labels, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_likelihood_of_a_sentence() -> None:
    """log p of every token given the earlier ones and the soft prompt."""
    model, row = prompted(), texts(9)[2]
    logits = model(torch.tensor([row], device=model.device)).logits[0].log_softmax(-1)
    total = sum(logits[i, token] for i, token in enumerate(row[1:]))
    wanted = wanted_logits(model, row).log_softmax(-1)
    assert_close(total, sum(wanted[i, token] for i, token in enumerate(row[1:])), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_kept_logits() -> None:
    model, (row,) = prompted(), texts(1, (7,))
    whole = model(torch.tensor([row], device=model.device)).logits
    for kept in (1, 3):
        check_close(
            model(torch.tensor([row], device=model.device), logits_to_keep=kept, use_cache=False).logits,
            whole[:, -kept:],
        )
    columns = torch.tensor([0, 4])
    check_close(model(torch.tensor([row], device=model.device), logits_to_keep=columns).logits, whole[:, columns])
    assert torch.equal(model(torch.tensor([row], device=model.device), return_dict=False)[0], whole)


@torch.no_grad()
def test_the_prefix_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forward pass, and in all of them as long as nothing changes."""
    runs = list[int]()

    def counting(*args: object) -> object:
        runs.append(1)
        return prepare_prefixes(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("softprompt.modeling.backbone.prepare_prefixes", counting)
    model = SoftPromptModel.from_method(tiny_lm(), {"name": "prompt-tuning", "n_tokens": 4})
    ids, mask = padded(texts(), "left")
    first = model(ids, attention_mask=mask).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, first)
    assert len(runs) == 1
    (parameter,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    parameter.mul_(2)
    assert not torch.equal(model(ids, attention_mask=mask).logits, first)
    assert len(runs) == 2


def test_the_context_that_is_left() -> None:
    """The config tells other tools how long a text may be; a longer one is refused."""
    model = prompted("llama", "kv")
    most = model.config.max_position_embeddings
    assert most == model.lm.geometry.max_positions - 5
    assert model.get_base_model().config.max_position_embeddings == model.lm.geometry.max_positions
    model(torch.tensor([text_ids(most, 0)], device=model.device))
    with pytest.raises(DataError, match="do not fit"):
        model(torch.tensor([text_ids(most + 1, 0)], device=model.device))


def test_the_base_is_never_in_training_mode() -> None:
    model = SoftPromptModel.from_method(tiny_lm("gpt2"), {"name": "prompt-tuning", "n_tokens": 3})
    model.train()
    assert model.training and model.model.prompt.training
    assert not any(module.training for module in model.get_base_model().modules())


def test_a_state_dict_holds_the_soft_prompt() -> None:
    model = SoftPromptModel.from_method(tiny_lm(), {"name": "prompt-tuning", "n_tokens": 3})
    state = model.state_dict()
    assert all(name.startswith("model.prompt.") for name in state) and state
    result = model.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert not result.missing_keys and not result.unexpected_keys
    assert model.num_parameters(only_trainable=True) == 3 * 32


def test_saving_keeps_what_others_wrote(tmp_path: Path) -> None:
    model = SoftPromptModel.from_method(tiny_lm(), {"name": "prompt-tuning", "n_tokens": 3}, template="Row: {text}")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "trainer_state.json").write_text("{}")
    for _ in range(2):
        model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "trainer_state.json", "card.json", "prompt.safetensors", "model.safetensors"}
    assert (tmp_path / "README.md").read_text() == "mine"
    _, card = store.load(tmp_path, tiny_lm().geometry)
    assert card.template["text"] == "Row: {text}" and card.layout.follow == "Row:"
    assert card.sha256 == json.loads((tmp_path / "card.json").read_text())["sha256"] != "0" * 64


def test_a_models_weights_are_not_overwritten(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    model = SoftPromptModel.from_method(tiny_lm(), {"name": "prompt-tuning", "n_tokens": 3})
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(StoreError, match=r"(?s)holds a model's weights.*another folder"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_training_on_names_what_it_began_from(tmp_path: Path) -> None:
    lm = tiny_lm()
    folder = saved(lm, tmp_path / "tone")
    model = SoftPromptModel.from_pretrained(lm, folder, is_trainable=True)
    model.save_pretrained(tmp_path / "more")
    card = store.load_card(tmp_path / "more")
    assert card.method["init_from"] == "tone"
    assert card.method["init_sha256"] == store.load_card(folder).sha256


def test_a_base_by_folder_by_model_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, lm = save_tiny(tmp_path / "base"), tiny_lm()
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    saved(lm, tmp_path / "prompts" / "tone")
    ids = torch.tensor([text_ids(5, 1)])
    wanted = SoftPromptModel.from_pretrained(lm, "tone")(ids).logits
    models = [
        SoftPromptModel.from_pretrained(str(base), "tone", dtype="float32", device="cpu"),
        SoftPromptModel.from_pretrained(tiny_model("llama"), "tone", tokenizer=tiny_tokenizer()),
    ]
    for model in models:
        assert_close(model(ids).logits, wanted)
    assert models[0].name_or_path == str(base)


def test_settings_in_any_writing() -> None:
    """A name, a mapping or a settings object."""
    settings = method_settings({"name": "prompt-tuning", "n_tokens": 100})
    for method in ("prompt-tuning", {"name": "prompt-tuning", "n_tokens": 100}, settings):
        model = SoftPromptModel.from_method(tiny_lm(), method)
        assert model.card.n_tokens == (32 if method == "prompt-tuning" else 100)


def test_mistakes_are_refused(tmp_path: Path) -> None:
    lm = tiny_lm()
    with pytest.raises(ConfigError, match="unknown method"):
        SoftPromptModel.from_method(lm, "nothing")
    with pytest.raises(ConfigError, match=r"(?s)training rows.*init_text"):
        SoftPromptModel.from_method(lm, {"name": "prompt-tuning", "init": "demonstrations"})
    with pytest.raises(ConfigError, match=r"(?s)several prompts.*softprompt train"):
        SoftPromptModel.from_method(lm, {"name": "smop", "n_tokens": 4})
    with pytest.raises(UnsupportedModelError, match=r"(?s)causal models.*softprompt train"):
        SoftPromptModel.from_method(tiny_seq2seq("t5"), "prompt-tuning")
    with pytest.raises(StoreError, match="no such soft prompt"):
        SoftPromptModel.from_pretrained(lm, tmp_path / "nothing")
    other = saved(tiny_lm("qwen2"), tmp_path / "other")
    with pytest.raises(WrongBaseError):
        SoftPromptModel.from_pretrained(lm, other)
    with pytest.raises(UnsupportedModelError, match="frozen"):
        SoftPromptModel(lm, finished(lm)).resize_token_embeddings(10)


def test_imported_prompts_stand_before_bos() -> None:
    """Other tools put the virtual tokens first."""
    lm = tiny_lm("llama", bos=True)
    prompt = finished(lm)
    layout = prompt.card.layout.model_copy(update={"bos": False, "follow_bos": True})
    model = SoftPromptModel(lm, replace(prompt, card=prompt.card.model_copy(update={"layout": layout})))
    row = [BOS, *text_ids(4, 1)]
    with torch.no_grad():
        check_close(
            model(torch.tensor([row], device=model.device)).logits[0], plain_logits(lm, Prefix(model.model.live()), row)
        )


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_mixed_precision(method: str) -> None:
    """As `Trainer(bf16=True)` runs it: rounded logits, and a gradient in float32."""
    model = SoftPromptModel.from_method(tiny_lm(), {"name": method, "n_tokens": 4}).train()
    ids, mask = padded(texts(), "left")
    wanted = model(ids, attention_mask=mask).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    assert ((output.logits - wanted).norm() / wanted.norm()) < 0.05
    output.loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 and grad.norm() > 0 for grad in grads)
