"""A prompt is used on the same base model with a padded embedding table, and the other way round."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.rows import labelled, write_jsonl
from tests.support.shell import SHORT, done
from tests.support.tiny import VOCAB, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("models") / "padded", copy.deepcopy(tiny_model("llama"))
    model.resize_token_embeddings(VOCAB + 20, mean_resizing=False)
    with torch.no_grad():
        head: Any = model.get_output_embeddings()
        head.weight[VOCAB:] = 0  # as padding is
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained_on", ["base", "padded"])
def test_prompts_fit_both(trained_on: str, base: Path, padded: Path, tmp_path: Path) -> None:
    models = {"base": base, "padded": padded}
    data = write_jsonl(tmp_path / "rows.jsonl", *labelled(8))
    done("train", "--model", models[trained_on], "--data", data, "--name", "tone", *SHORT)
    ask = ("generate", "tone", "hello", "--max-new-tokens", 3, "--dtype", "float32", "--model")
    assert done(*ask, base).stdout == done(*ask, padded).stdout
