"""Points for TensorBoard's projector."""

from __future__ import annotations

import pytest
import torch

from softprompt.report.projector import projector_files
from tests.report.planted import inspection
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm


def test_points_and_labels_have_the_same_rows() -> None:
    prompt = random_prompt(tiny_lm(), "embedding", 3, 1)
    files = projector_files([("tone", prompt, inspection(3, text="a\tb\n"))])
    rows = [list(map(float, line.split("\t"))) for line in files["tensors.tsv"].splitlines()]
    header, *labels = [line.split("\t") for line in files["metadata.tsv"].splitlines()]
    assert len(rows) == len(labels) == 6 and all(len(label) == len(header) for label in labels)
    torch.testing.assert_close(torch.tensor(rows[:3]), prompt.tensors()["embeddings"], rtol=1e-4, atol=1e-5)
    assert labels[1][:4] == ["tone 1", "tone", "1", "trained"] and labels[4][3] == "random"
    assert labels[0][4] == "a\\tb\\n  warm"
    norms = torch.tensor(rows).norm(dim=1)
    assert norms[3:].tolist() == pytest.approx(norms[:3].tolist(), rel=1e-3)


def test_forms_have_files_of_their_own() -> None:
    prompts = [(form, random_prompt(tiny_lm(), form, 2, 1), inspection(2)) for form in ("embedding", "kv")]
    files = projector_files(prompts)
    assert set(files) == {f"{x}.tsv" for x in ("tensors", "tensors-2", "metadata", "metadata-2")} | {
        "projector_config.pbtxt"
    }
    assert files["projector_config.pbtxt"].count("tensor_path") == 2
