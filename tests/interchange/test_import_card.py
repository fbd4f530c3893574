"""A prompt that names another base model is not imported by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.data.template import Template
from softprompt.errors import WrongBaseError
from softprompt.interchange import peft
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import may_be_one_model
from tests.support.artifacts import card
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer


def named(made_for: str) -> ImportedPrompt:
    return ImportedPrompt(
        random_prompt(tiny_lm(), "kv", 3, 0), {"name": "x", "imported_from": "peft"}, made_for=made_for
    )


@pytest.mark.parametrize("made_for", ["", "tiny-llama", "someone/Tiny-Llama", "/models/tiny-llama", "../tiny-llama/"])
def test_the_same_name(made_for: str) -> None:
    import_card(tiny_lm(), named(made_for), "tone")


def test_the_folder_that_the_model_was_loaded_from() -> None:
    """PEFT writes it down for a model that has no other name, such as the built-in one."""
    model = tiny_model("llama")
    model.config.name_or_path = "/cache/softprompt/0123abc"
    lm = FrozenLM(model, tiny_tokenizer(), "built-in")
    import_card(lm, named("/cache/softprompt/0123abc"), "tone")
    with pytest.raises(WrongBaseError):
        import_card(lm, named("/cache/softprompt/0123abd"), "tone")


@pytest.mark.parametrize("made_for", ["owner/other", "/models/tiny-llama-2", "tiny"])
def test_another_name_needs_force(made_for: str) -> None:
    with pytest.raises(WrongBaseError, match="another base model") as caught:
        import_card(tiny_lm(), named(made_for), "tone")
    assert caught.value.expected == made_for and "--force" in str(caught.value.hint)
    import_card(tiny_lm(), named(made_for), "tone", force=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", False),
        ("owner/Name-7b", "/x/models--owner--Name-7b/snapshots/0a1b", True),
        ("/x/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct", True),
        ("/x/a.BF16.gguf", "a", True),
        ("a/b", "a/b+/x/lora", False),
        ("llama-7b", "llama-7b-f", False),
    ],
)
def test_names_of_one_model(one: str, other: str, same: bool) -> None:
    assert may_be_one_model(one, other) is may_be_one_model(other, one) is same


def test_an_export_is_recognized_by_its_weights(tmp_path: Path) -> None:
    """Whatever the folder of the base model is called; and another model of that name is another model."""
    lm = tiny_lm()
    prompt, template = random_prompt(lm, "kv", 3, 0), Template("text", "{text}").to_dict()
    peft.write(tmp_path / "a", prompt, card(lm.geometry, n_tokens=3, template=template), torch.zeros(0, 32))
    (found,) = read_foreign(tmp_path / "a", lm.geometry)
    assert found.made_for == "tiny-llama"
    import_card(FrozenLM(tiny_model("llama"), tiny_tokenizer(), "renamed"), found, "tone")
    stranger = FrozenLM(tiny_model("llama", 1), tiny_tokenizer(), "tiny-llama")
    with pytest.raises(WrongBaseError, match="other weights"):
        import_card(stranger, found, "tone")
