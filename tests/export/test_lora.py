"""A LoRA adapter on the input embedding, as PEFT runs it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from softprompt.errors import GeometryError, StoreError
from softprompt.export.check import TEXTS, check_export
from softprompt.export.registry import find_target
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import detect_format, read_foreign
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import prompt_digest
from tests.export.source import source_of
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer

LORA = find_target("lora")


def tied() -> FrozenLM:
    model = copy.deepcopy(tiny_model("llama"))  # that one is shared
    model.config.tie_word_embeddings = True
    model.tie_weights()
    head = model.get_output_embeddings()
    assert head is not None and head.weight is model.get_input_embeddings().weight
    return FrozenLM(model, tiny_tokenizer(bos=True), "tied")


@pytest.mark.parametrize("kind", ["llama", "gemma3", "opt", "tied"])
def test_peft_says_the_same(kind: str, tmp_path: Path) -> None:
    """Embeddings that the model scales (Gemma), projects (OPT) or ties to its head, with and without BOS."""
    lm = tied() if kind == "tied" else tiny_lm(kind, bos=kind == "llama")
    source = source_of(lm)
    exported = LORA.write(tmp_path / "out", source)
    report = check_export(LORA, exported.folder, source, TEXTS[:3])
    assert report.same == 3 and report.difference < 1e-4 and report.plain_difference < 1e-4


def test_another_prompt_is_noticed(tmp_path: Path) -> None:
    """The comparison can fail: the adapter of half the virtual tokens."""
    source = source_of(tiny_lm("llama", bos=True))
    folder = LORA.write(tmp_path / "out", source).folder
    tensors = load_file(folder / "adapter_model.safetensors")
    halved = {name: tensor * (0.5 if name.endswith("B") else 1) for name, tensor in tensors.items()}
    save_file(halved, folder / "adapter_model.safetensors")
    assert check_export(LORA, folder, source, TEXTS[:3]).difference > 1e-3


def test_it_comes_back_exactly(tmp_path: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    source = source_of(lm)
    folder = LORA.write(tmp_path / "out", source).folder
    assert detect_format(folder) == "virtual-tokens"
    (found,) = read_foreign(folder, lm.geometry)
    card = import_card(lm, found, "again")
    assert prompt_digest(found.prompt) == prompt_digest(source.prompt)
    assert (card.layout, card.template) == (source.card.layout, source.card.template)
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(StoreError, match="changed after"):
        read_foreign(folder, lm.geometry)


def test_keys_and_values_are_refused_with_the_targets_for_them(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="no embeddings") as raised:
        LORA.write(tmp_path / "out", source_of(form="kv"))
    assert "llama-slot" in str(raised.value.hint) and not (tmp_path / "out").exists()


def test_the_readme_has_the_ids_and_the_command(tmp_path: Path) -> None:
    source = source_of()
    exported = LORA.write(tmp_path / "out", source)
    readme = (exported.folder / "README.md").read_text()
    assert exported.command in readme and "--lora-modules tone=" in exported.command
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 and config["target_modules"] == ["embed_tokens"]
    one_hot = load_file(exported.folder / "adapter_model.safetensors")[
        "base_model.model.model.embed_tokens.lora_embedding_A"
    ]
    ids = one_hot.argmax(1).tolist()
    assert torch.equal(one_hot.sum(1), torch.ones(3, dtype=one_hot.dtype)) and ", ".join(map(str, ids)) in readme


def test_a_destination_that_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(StoreError, match="there already"):
        LORA.write(tmp_path / "out", source_of())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
