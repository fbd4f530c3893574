"""PEFT's expectations of a model with a soft prompt, on ten families: logits, padding, generation, files, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.prompts import store
from tests.support.cases import check_close
from tests.support.odd_models import odd_lm
from tests.support.prompted import FORMS, SIDES, finished, greedy, padded, prompted, texts, wanted_logits
from tests.support.tiny import FAMILIES, tiny_lm

METHODS = {"embedding": "prompt-tuning", "kv": "prefix-tuning"}


def live(family: str, form: str, seed: int = 0) -> SoftPromptModel:
    method = {"name": METHODS[form], "n_tokens": 4, "init_text": "abcdefgh"}
    return SoftPromptModel.from_method(tiny_lm(family), method, seed=seed)


def parameters(model: SoftPromptModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_concatenation(family: str, form: str) -> None:
    """Of every row by itself, whatever side is padded, and as many as the ids that were given."""
    model, rows = prompted(family, form), texts()
    wanted = [wanted_logits(model, row) for row in rows]
    for side in SIDES:
        ids, mask = padded(rows, side)
        logits = model(input_ids=ids, attention_mask=mask).logits
        assert logits.shape[:2] == ids.shape
        for i in range(len(rows)):
            check_close(logits[i][mask[i].bool()], wanted[i])
            check_close(logits[i, -1], wanted[i][-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_concatenation(family: str, form: str) -> None:
    """With and without gradient checkpointing."""
    model, rows = live(family, form).train(), texts(4)
    ids, mask = padded(rows, "left")
    labels = ids.masked_fill(mask == 0, -100)
    logits = torch.cat([wanted_logits(model, row)[:-1] for row in rows])
    wanted = cross_entropy(logits, torch.tensor([token for row in rows for token in row[1:]]))
    grads = torch.autograd.grad(wanted, parameters(model))
    assert all(grad.norm() > 0 for grad in grads)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
        for grad, expected in zip(torch.autograd.grad(loss, parameters(model)), grads, strict=True):
            assert ((grad - expected).norm() / expected.norm()) < 1e-4
    assert model.is_activation_checkpointing
    assert not any(parameter.requires_grad for parameter in model.get_base_model().parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_concatenation(family: str, form: str) -> None:
    """Greedy, of a padded batch, with the cache and without one."""
    model, rows = prompted(family, form), texts(8)
    wanted = [greedy(model, row, 5) for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        for use_cache in (True, False):
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=use_cache, eos_token_id=None
            )
            assert torch.equal(out[:, : ids.shape[1]], ids)
            assert out[:, ids.shape[1] :].tolist() == wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_saved_model_is_the_same_model(family: str, form: str, tmp_path: Path) -> None:
    model = live(family, form)
    ids, mask = padded(texts(), "left")
    before = model(input_ids=ids, attention_mask=mask).logits
    model.save_pretrained(tmp_path / "tone")
    _, card = store.load(tmp_path / "tone", model.lm.geometry)
    assert (card.name, card.form, card.method["name"]) == ("tone", form, METHODS[form])
    for is_trainable in (False, True):
        again = SoftPromptModel.from_pretrained(model.lm, tmp_path / "tone", is_trainable=is_trainable)
        assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, before)
        assert bool(parameters(again)) == is_trainable


@pytest.mark.parametrize("family", ["mamba2", "qwen3_5", "granite4", "falcon_h1", "bloom", "deepseek_v3", "cohere"])
@torch.no_grad()
def test_other_layers_masks_and_heads(family: str) -> None:
    """States in place of keys, masks by place, heads with a scale: logits, generation and beams on every path."""
    lm = odd_lm(family)
    model, rows = SoftPromptModel(lm, finished(lm)), texts(0, (7, 3))
    wanted = [wanted_logits(model, row) for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        logits = model(input_ids=ids, attention_mask=mask).logits
        for i in range(len(rows)):
            check_close(logits[i][mask[i].bool()], wanted[i])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert out[:, ids.shape[1] :].tolist() == [greedy(model, row, 3) for row in rows]
    options = {"attention_mask": mask, "max_new_tokens": 4, "num_beams": 3, "eos_token_id": None}
    beams = [model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False)]
    assert torch.equal(*beams)
