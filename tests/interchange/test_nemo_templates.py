"""NeMo's templates: where a task's virtual tokens stand."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from softprompt.errors import StoreError
from softprompt.interchange import nemo
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.geometry import LayerShape
from tests.support.artifacts import geometry
from tests.support.tiny import tiny_lm

BASE = geometry(hidden=6, layers=(LayerShape(2, 4, 4),) * 3, windows=(None,) * 3)


def nemo_file(path: Path, config: bytes | None, n_tokens: int = 6, width: int = 6) -> Path:
    """A .nemo archive with one task, "tone", and a config beside its weights."""
    weights = io.BytesIO()
    table = torch.arange(float(n_tokens * width)).reshape(n_tokens, width)
    torch.save({"prompt_table": {"prompt_table.tone.prompt_embeddings.weight": table}}, weights)
    members = {"./model_config.yaml": config, "./model_weights.ckpt": weights.getvalue()}
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def config(template: str, splits: Any = None, answer: Any = "label", **more: Any) -> bytes:
    task = {"taskname": "tone", "prompt_template": template, "answer_field": answer, "virtual_token_splits": splits}
    return yaml.safe_dump({"task_templates": [task], **more}).encode()


def imported(tmp_path: Path, data: bytes | None) -> ImportedPrompt:
    (found,) = read_foreign(nemo_file(tmp_path / "x.nemo", data), BASE)
    return found


@pytest.mark.parametrize(
    ("template", "splits", "text"),
    [
        ("<|VIRTUAL_PROMPT_0|> {sentence} sentiment: {label}", [6], " {sentence} sentiment:"),
        ("<|VIRTUAL_PROMPT_0|>Q: {q}\nA:{label}", [6], "Q: {q}\nA:"),
        ("<|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_1|> {q} {label}", [4, 2], " {q}"),
        ("<|VIRTUAL_PROMPT_0|> {q} {label}", None, " {q}"),
    ],
)
def test_virtual_tokens_in_front_keep_their_template(template: str, splits: Any, text: str, tmp_path: Path) -> None:
    layout = imported(tmp_path, config(template, splits)).layout
    assert layout is not None
    assert (layout.template.kind, layout.template.text, layout.bos) == ("text", text, False)


@pytest.mark.parametrize(
    ("template", "splits"),
    [
        ("<|VIRTUAL_PROMPT_0|> {sentence} <|VIRTUAL_PROMPT_1|> sentiment: {label}", [4, 2]),
        ("<|VIRTUAL_PROMPT_0|> Review: <|VIRTUAL_PROMPT_1|>{sentence} {label}", [4, 2]),
        ("Review: <|VIRTUAL_PROMPT_0|> {sentence} {label}", [6]),
        ("{sentence} <|VIRTUAL_PROMPT_0|> {label}", [6]),
        (" <|VIRTUAL_PROMPT_0|>{sentence} {label}", [6]),
        ("<|VIRTUAL_PROMPT_1|><|VIRTUAL_PROMPT_0|>{sentence} {label}", [4, 2]),
        ("{sentence} {label}", [6]),
    ],
)
def test_virtual_tokens_elsewhere_are_refused(template: str, splits: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="several places") as caught:
        imported(tmp_path, config(template, splits))
    assert "VIRTUAL_PROMPT" in str(caught.value.hint)


@pytest.mark.parametrize("splits", [[5], [3, 3], [7]])
def test_other_numbers_of_virtual_tokens_are_refused(splits: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="other virtual tokens"):
        imported(tmp_path, config("<|VIRTUAL_PROMPT_0|> {sentence} {label}", splits))


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"- a list",
        b"task_templates: none",
        b"task_templates: [1, {taskname: tone}, {taskname: tone, prompt_template: 3}]",
        config("<|VIRTUAL_PROMPT_0|> {label}", [6]),
        config("<|VIRTUAL_PROMPT_0|> {sentence} {label} or not", [6]),
        config("<|VIRTUAL_PROMPT_0|> {sentence} {label}", [6], answer=None),
        config("<|VIRTUAL_PROMPT_0|> {a.b} {label}", [6]),
    ],
)
def test_without_a_usable_template_the_text_stands_alone(data: bytes | None, tmp_path: Path) -> None:
    assert imported(tmp_path, data).layout is None


@pytest.mark.parametrize("data", [b"a: &x [1]\nb: *x", b"a: [", b"!!python/object:os.system {}", b"\xff\xfe\x00"])
def test_damaged_configs(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a readable config"):
        imported(tmp_path, data)


def test_a_config_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo, "MAX_CONFIG_BYTES", 10)
    with pytest.raises(StoreError, match=r"model_config\.yaml is too large"):
        imported(tmp_path, config("<|VIRTUAL_PROMPT_0|> {sentence} {label}"))


def test_the_card_says_how_the_text_goes_on(tmp_path: Path) -> None:
    lm = tiny_lm(bos=True)
    path = nemo_file(tmp_path / "x.nemo", config("<|VIRTUAL_PROMPT_0|>Row: {text} {label}", [6]), width=32)
    (found,) = read_foreign(path, lm.geometry)
    card = import_card(lm, found, "tone")
    assert (card.template["text"], card.layout.follow, card.layout.follow_bos) == ("Row: {text}", "Row:", False)
