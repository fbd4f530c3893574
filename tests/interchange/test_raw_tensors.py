"""Soft prompts that are nothing but tensors, as people's own training loops save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from softprompt.errors import GeometryError, SoftpromptError, StoreError
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import detect_format, read_foreign
from softprompt.models.geometry import LayerShape
from softprompt.prompts.forms import EmbeddingPrompt, check_fits
from tests.support.artifacts import geometry
from tests.support.tiny import tiny_lm, tiny_seq2seq

BASE = geometry(hidden=6, layers=(LayerShape(2, 4, 4),) * 3, windows=(None,) * 3)
TABLE = torch.arange(18.0).reshape(3, 6) / 7


class Learner(nn.Module):
    """A training loop's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(TABLE.clone())
        self.scale = nn.Parameter(torch.ones(6))


def trained() -> tuple[Learner, torch.optim.Optimizer]:
    """After a step, so that the optimizer has tensors of the prompt's shape."""
    learner = Learner()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.0)
    (learner.prompt.sum() + learner.scale.sum()).backward()
    optimizer.step()
    return learner, optimizer


def saved(path: Path, value: Any) -> Path:
    """By torch.save, or with safetensors by the path's name."""
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path)
    return path


def the_table(path: Path) -> Tensor:
    assert detect_format(path) == "tensors"
    (found,) = read_foreign(path, BASE)
    check_fits(found.prompt, BASE)
    assert found.method == {"name": "prompt_tuning", "imported_from": "tensors"}
    assert isinstance(found.prompt, EmbeddingPrompt)
    return found.prompt.embeddings


def refused(path: Path) -> SoftpromptError:
    with pytest.raises(SoftpromptError) as caught:
        read_and_check(path)
    return caught.value


def read_and_check(path: Path) -> None:
    for found in read_foreign(path, BASE):
        check_fits(found.prompt, BASE)


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        nn.Parameter(TABLE),
        TABLE[None],
        {"soft_prompt": TABLE},
        {"soft_prompt": TABLE, "step": 3, "name": "tone", "lr": 0.3},
        {"soft_prompt": TABLE, "ids": torch.arange(6).reshape(1, 6)},
        {"soft_prompt": TABLE, "projection": torch.ones(6, 5)},
        nn.Embedding.from_pretrained(TABLE).state_dict(),
        Learner().state_dict(),
        {"model": {"state_dict": Learner().state_dict()}, "epoch": 2},
        {"model": trained()[0].state_dict(), "optimizer": trained()[1].state_dict()},
    ],
    ids=range(11),
)
def test_torch_files(value: Any, tmp_path: Path) -> None:
    assert torch.equal(the_table(saved(tmp_path / "prompt.pt", value)), TABLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("more", [{}, {"scale": torch.ones(6)}, {"ids": torch.ones(2, 6, dtype=torch.int64)}], ids=str)
def test_safetensors(dtype: torch.dtype, more: dict[str, Tensor], tmp_path: Path) -> None:
    table = the_table(saved(tmp_path / "any name.safetensors", {"soft_prompt": TABLE.to(dtype)} | more))
    wanted = torch.float32 if dtype == torch.float64 else dtype
    assert table.dtype == wanted and torch.equal(table, TABLE.to(dtype).to(wanted))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_tables_alone_are_several_prompts(name: str, tmp_path: Path) -> None:
    found = read_foreign(saved(tmp_path / name, {"one": TABLE, "two": TABLE[:2] + 1}), BASE)
    assert {one.task: one.prompt.n_tokens for one in found} == {"one": 3, "two": 2}
    assert [one.method["task"] for one in found] == [one.task for one in found]


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_table_among_others_is_not_guessed(name: str, tmp_path: Path) -> None:
    """A whole model, for example."""
    error = refused(saved(tmp_path / name, {"up": TABLE, "down": TABLE + 1, "norm": torch.ones(6)}))
    assert error.what.startswith("several tensors could be")
    assert "up, down" in str(error.got) or "down, up" in str(error.got)


def test_a_hint_is_followed(tmp_path: Path) -> None:
    """What the message says, done."""
    path = saved(tmp_path / "x.pt", {"up": TABLE, "down": TABLE + 1, "norm": torch.ones(6)})
    assert "torch.save(tensor, FILE)" in str(refused(path).hint)
    assert torch.equal(the_table(saved(tmp_path / "y.pt", torch.load(path)["up"])), TABLE)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_another_width_is_the_wrong_base(name: str, tmp_path: Path) -> None:
    error = refused(saved(tmp_path / name, {"soft_prompt": torch.ones(3, 7)}))
    assert isinstance(error, GeometryError)
    assert (error.expected, error.got) == ((3, 6), (3, 7))


@pytest.mark.parametrize(
    "tensor", [torch.ones(6), torch.ones(3, 6, dtype=torch.int32), torch.ones(2, 3, 6), torch.tensor(1.0)], ids=str
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_no_table(name: str, tensor: Tensor, tmp_path: Path) -> None:
    error = refused(saved(tmp_path / name, {"a": tensor}))
    assert isinstance(error, StoreError) and error.what == "no table of virtual tokens"


@pytest.mark.parametrize("value", [{"a": 1}, [TABLE], {}, {"a": [TABLE]}], ids=str)
def test_what_holds_no_tensors_by_name(value: Any, tmp_path: Path) -> None:
    assert "no soft prompt of a known format" in refused(saved(tmp_path / "x.pt", value)).what


def test_a_module_that_was_pickled_is_not_run(tmp_path: Path) -> None:
    """The hint leads to a file that is read."""
    learner = Learner()
    error = refused(saved(tmp_path / "x.pt", learner))
    assert "could run any code" in error.what and "save its tensors alone" in str(error.hint)
    assert torch.equal(the_table(saved(tmp_path / "y.pt", {"prompt": learner.prompt})), TABLE)


def test_the_hint_for_an_old_file_is_true(tmp_path: Path) -> None:
    torch.save(TABLE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    error = refused(tmp_path / "old.bin")
    assert "torch.save" in str(error.hint) and "safetensors" in str(error.hint)


@pytest.mark.parametrize("marker", ["adapter_config.json", "card.json"])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_a_part_of_a_folder_is_not_read_alone(marker: str, name: str, tmp_path: Path) -> None:
    (tmp_path / marker).write_text("{}")
    error = refused(saved(tmp_path / name, {"prompt_embeddings": TABLE}))
    assert "only a part" in error.what
    assert ("give the folder" in str(error.hint)) == (marker != "card.json")


def test_damaged_files(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.safetensors", {"soft_prompt": TABLE}).read_bytes()
    for end in range(9, len(whole), 7):
        (tmp_path / "y.safetensors").write_bytes(whole[:end])
        assert isinstance(refused(tmp_path / "y.safetensors"), StoreError)


def test_a_models_own_table_is_too_long(tmp_path: Path) -> None:
    lm = tiny_lm()
    (found,) = read_foreign(saved(tmp_path / "x.pt", lm.embedding.weight), lm.geometry)
    with pytest.raises(GeometryError, match="as long as the model's context"):
        import_card(lm, found, "tone")


def test_an_encoder_decoder_takes_them_too(tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    (found,) = read_foreign(saved(tmp_path / "x.pt", torch.ones(4, 32)), lm.geometry)
    assert import_card(lm, found, "tone").template["kind"] == "seq2seq"
