"""PEFT adapters: what is refused, what is written. Logits are compared in tests/laws/test_law6_peft.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft as peft_itself
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import DataError, GeometryError, SoftpromptError, StoreError
from softprompt.interchange import peft
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.geometry import Geometry, LayerShape
from softprompt.prompts.card import Layout
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, prompt_digest
from tests.support import artifacts
from tests.support.adapters import saved_adapter
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm

SHAPE = LayerShape(2, 4, 4)
BASE = artifacts.geometry(layers=(SHAPE,) * 3, windows=(None,) * 3)
NOTHING = torch.zeros(0, BASE.hidden)


def adapter(folder: Path, kind: str = "PROMPT_TUNING", config: Any = None, **tensors: Any) -> Path:
    """Written by hand; a [3, 6] table unless told otherwise."""
    folder.mkdir(exist_ok=True)
    facts = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 3} | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    save_file(tensors or {"prompt_embeddings": torch.ones(3, 6)}, folder / "adapter_model.safetensors")
    return folder


def refused(folder: Path, base: Geometry = BASE) -> SoftpromptError:
    with pytest.raises((StoreError, GeometryError, DataError)) as caught:
        read_foreign(folder, base)
    return caught.value


def write(folder: Path, form: str, base: Geometry = BASE, lead: Tensor = NOTHING, **facts: Any) -> Path:
    prompt = artifacts.prompt(form, base)
    card = artifacts.card(base, form=form, n_tokens=3, template=Template("text", "{text}").to_dict(), **facts)
    peft.write(folder, prompt, card, lead)
    return folder


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"peft_type": "LORA"}, "no soft prompt"),
        ({"peft_type": None}, "no soft prompt"),
        ({"peft_type": ["PROMPT_TUNING"]}, "no soft prompt"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "not for a causal language model"),
        ({"task_type": "SEQ_CLS"}, "not for a causal language model"),
        ({"num_transformer_submodules": 2}, "not for a causal language model"),
        ({"num_virtual_tokens": 4}, "another shape"),
        ({"num_virtual_tokens": "3"}, "another shape"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], what: str, tmp_path: Path) -> None:
    assert what in refused(adapter(tmp_path / "a", config=config)).what


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("PROMPT_TUNING", {"other": torch.ones(3, 6)}),
        ("PROMPT_TUNING", {"prompt_embeddings": torch.ones(3, 6), "classifier.weight": torch.ones(2)}),
        ("PROMPT_TUNING", {"prompt_embeddings": torch.ones(18)}),
        ("PROMPT_TUNING", {"prompt_embeddings": torch.ones(3, 6, dtype=torch.int32)}),
        ("MULTITASK_PROMPT_TUNING", {"prompt_embeddings": torch.ones(3, 6)}),
        ("PREFIX_TUNING", {"prompt_embeddings": torch.ones(3, 47)}),
        ("PREFIX_TUNING", {"prompt_embeddings": torch.ones(3, 48, dtype=torch.int32)}),
        ("CARTRIDGE", {"prompt_embeddings": torch.ones(3, 96)}),
    ],
)
def test_tensors_that_are_refused(kind: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    refused(adapter(tmp_path / "a", kind, **tensors))


@pytest.mark.parametrize(
    ("cols", "rows"),
    [((2, 3, 1), (2, 1, 5)), ((2, 4, 1), (2, 1, 6)), ((2, 3, 1), (3, 1, 6)), ((2, 3, 2), (2, 1, 6)), ((2, 3), (2, 6))],
)
def test_task_tensors_that_do_not_fit(cols: tuple[int, ...], rows: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"prefix_task_cols": torch.ones(cols), "prefix_task_rows": torch.ones(rows)}
    folder = adapter(tmp_path / "a", "MULTITASK_PROMPT_TUNING", prompt_embeddings=torch.ones(3, 6), **tensors)
    assert "do not fit together" in refused(folder).what


def test_a_prefix_of_another_base_names_its_shape(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "PREFIX_TUNING", prompt_embeddings=torch.ones(3, 48))
    read_foreign(folder, BASE)
    error = refused(folder, artifacts.geometry(layers=(SHAPE,) * 2, windows=(None,) * 2))
    assert "= 32]" in str(error.expected) and "(3, 48)" in str(error.got)
    assert "one shape for all layers" in refused(folder, artifacts.PLAIN).what


def test_a_tensor_narrower_than_the_base_is_refused_before_it_gets_a_card(tmp_path: Path) -> None:
    (found,) = read_foreign(adapter(tmp_path / "a", prompt_embeddings=torch.ones(3, 5)), BASE)
    with pytest.raises(GeometryError, match="wrong shape"):
        import_card(tiny_lm(), found, "tone")


def test_a_pickled_adapter_is_read_without_unpickling(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": torch.full((3, 6), 2.0)}, folder / "adapter_model.bin")
    (found,) = read_foreign(folder, BASE)
    assert found.prompt.tensors()["embeddings"].unique().tolist() == [2.0]
    for value in ({"prompt_embeddings": print}, {"prompt_embeddings": [1]}, [1]):
        torch.save(value, folder / "adapter_model.bin")
        refused(folder)
    adapter(folder)
    (found,) = read_foreign(folder, BASE)
    assert found.prompt.tensors()["embeddings"].unique().tolist() == [1.0], "safetensors before a pickle"


def test_an_adapter_in_the_hub_cache_is_read(tmp_path: Path) -> None:
    """Its files are links to the blobs of its own repository; links to anywhere else are not followed."""
    made, blobs = adapter(tmp_path / "made"), tmp_path / "models--owner--adapter" / "blobs"
    snapshot = blobs.parent / "snapshots" / "abc"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for number, file in enumerate(made.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (found,) = read_foreign(snapshot, BASE)
    assert found.prompt.n_tokens == 3
    (snapshot / "adapter_config.json").unlink()
    (snapshot / "adapter_config.json").symlink_to(made / "adapter_config.json")
    assert "not a plain file" in refused(snapshot).what


def test_what_the_adapter_says_of_its_base_is_shown_and_not_kept(tmp_path: Path) -> None:
    (found,) = read_foreign(adapter(tmp_path / "a", config={"base_model_name_or_path": "/home/someone/model"}), BASE)
    assert found.made_for == "/home/someone/model"
    assert "/home" not in json.dumps(found.method)


def test_an_adapter_in_half_precision_keeps_its_bits(tmp_path: Path) -> None:
    table = torch.randn(3, 48).to(torch.bfloat16)
    (found,) = read_foreign(adapter(tmp_path / "a", "PREFIX_TUNING", prompt_embeddings=table), BASE)
    assert isinstance(found.prompt, KVPrompt)
    assert found.prompt.tensors()["layers.1.v"].dtype == torch.bfloat16
    assert torch.equal(peft.to_flat(found.prompt, BASE), table)


@pytest.mark.parametrize(
    "frame",
    [
        [],
        {"template": {"kind": "text", "text": "{text}"}, "bos": 1, "labels": []},
        {"template": {"kind": "text", "text": "{text}"}, "bos": True, "labels": [1]},
        {"template": {"kind": "text", "text": "{text}"}, "bos": True},
        {"template": "x", "bos": True, "labels": []},
        {"template": {"kind": "code", "text": "{text}"}, "bos": True, "labels": []},
    ],
)
def test_broken_frames(frame: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "embedding")
    (folder / "frame.json").write_text(json.dumps(frame))
    refused(folder)


@pytest.mark.parametrize(
    "layers",
    [
        (SHAPE, None, SHAPE),
        (SHAPE, LayerShape(1, 4, 4), SHAPE),
        (SHAPE, SHAPE, LayerShape(2, 8, 8)),
        (LayerShape(2, 4, 3),) * 3,
    ],
)
def test_kv_prompts_that_peft_cannot_hold(layers: Any, tmp_path: Path) -> None:
    base = artifacts.geometry(layers=layers, windows=(None,) * 3)
    with pytest.raises(GeometryError, match="one shape for all layers"):
        write(tmp_path / "a", "kv", base)
    assert not (tmp_path / "a").exists()
    write(tmp_path / "b", "embedding", base)


def test_the_lead_becomes_the_first_virtual_tokens(tmp_path: Path) -> None:
    lead = torch.randn(2, 6)
    folder = write(tmp_path / "a", "embedding", lead=lead)
    (found,) = read_foreign(folder, BASE)
    assert isinstance(found.prompt, EmbeddingPrompt)
    assert found.prompt.n_tokens == 5
    assert torch.equal(found.prompt.embeddings[:2], lead)


@pytest.mark.parametrize(
    ("form", "method", "kind"),
    [
        ("embedding", {"frozen_tokens": 1}, "PROMPT_TUNING"),
        ("kv", {}, "PREFIX_TUNING"),
        ("kv", {"frozen_tokens": 0}, "PREFIX_TUNING"),
        ("kv", {"frozen_tokens": "1"}, "PREFIX_TUNING"),
        ("kv", {"frozen_tokens": 9}, "PREFIX_TUNING"),
        ("kv", {"frozen_tokens": 1}, "CARTRIDGE"),
    ],
)
def test_the_type_of_the_adapter(form: str, method: dict[str, Any], kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", form, method=method)
    config = peft_itself.PeftConfig.from_pretrained(str(folder))
    assert config.peft_type == kind
    assert config.inference_mode is True
    (found,) = read_foreign(folder, BASE)
    assert found.method.get("frozen_tokens") == (1 if kind == "CARTRIDGE" else None)


def test_no_path_of_this_machine_is_written(tmp_path: Path) -> None:
    base = artifacts.geometry(base="/home/someone/models/tiny", layers=(SHAPE,) * 3, windows=(None,) * 3)
    folder = write(tmp_path / "a", "kv", base)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert all(b"someone" not in path.read_bytes() for path in folder.iterdir())


def test_the_built_in_model_is_named_as_peft_finds_it(tmp_path: Path) -> None:
    base = artifacts.geometry(base="smollm2-135m", layers=(SHAPE,) * 3, windows=(None,) * 3)
    folder = write(tmp_path / "a", "kv", base)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"' in (folder / "README.md").read_text()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in ("a", "link"):
        with pytest.raises(StoreError, match="already"):
            write(tmp_path / name, "kv")


@pytest.mark.parametrize("bos", [True, False])
def test_the_readme_says_how_to_feed_it(bos: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "embedding", lead=torch.ones(1, 6), layout=Layout(follow_bos=bos))
    readme = (folder / "README.md").read_text()
    assert f"add_special_tokens={bos}" in readme
    assert "first 1 virtual tokens" in readme
    assert '"{text}"' in readme


@pytest.mark.parametrize("tokenizer_bos", [True, False])
@pytest.mark.parametrize("bos", [True, False, None])
def test_bos_behind_the_virtual_tokens(bos: bool | None, tokenizer_bos: bool) -> None:
    """Only where the tokenizer adds one; the user may say no."""
    lm = tiny_lm(bos=tokenizer_bos)
    found = ImportedPrompt(random_prompt(lm, "kv", 3, 0), {"name": "prefix_tuning", "imported_from": "peft"})
    card = import_card(lm, found, "tone", bos=bos)
    assert card.layout == Layout(follow_bos=tokenizer_bos and bos is not False)
    assert card.template == {"kind": "text", "text": "{text}", "system": ""}


def test_the_users_template_goes_before_the_frame_of_an_export(tmp_path: Path) -> None:
    lm = tiny_lm()
    prompt = random_prompt(lm, "kv", 3, 0)
    card = artifacts.card(lm.geometry, n_tokens=3, template={"kind": "text", "text": "A: {text}"}, labels=("x", "y"))
    peft.write(tmp_path / "a", prompt, card, torch.zeros(0, 32))
    (found,) = read_foreign(tmp_path / "a", lm.geometry)
    assert prompt_digest(found.prompt) == prompt_digest(prompt)
    assert import_card(lm, found, "tone").layout.follow == "A:"
    assert import_card(lm, found, "tone", template=Template("text", "B: {text}")).layout.follow == "B:"


def test_peft_saves_what_the_reader_expects(tmp_path: Path) -> None:
    """The format has not moved: a newer PEFT that writes other tensors fails here first."""
    lm = tiny_lm()
    names = {
        kind: set(load_file(saved_adapter(kind, lm, tmp_path / kind) / "adapter_model.safetensors"))
        for kind in ("PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
    }
    assert names["PREFIX_TUNING"] == names["CPT"] == {"prompt_embeddings"}
    assert names["MULTITASK_PROMPT_TUNING"] == {"prompt_embeddings", "prefix_task_cols", "prefix_task_rows"}
