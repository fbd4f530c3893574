"""Tensors and lines for Transformers alone: run by Python as they were written, beside our own decoding."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softprompt.data.template import VIRTUAL, Template
from softprompt.errors import StoreError, UnsupportedModelError
from softprompt.export.base import ExportSource
from softprompt.export.check import check_rows, our_answers
from softprompt.export.registry import find_target
from softprompt.models.frozen_lm import FrozenLM
from tests.support.exported import TEXT, export_source
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm, tiny_seq2seq

TEXTS = ("a", "some longer text than the window")
EXACT = {torch.float32: 2e-4}
CASES = [
    ("llama", "embedding"),
    ("llama", "kv"),
    ("gemma2", "embedding"),
    ("gemma3", "kv"),
    ("opt", "kv"),
    ("falcon_h1", "embedding"),
    ("falcon_h1", "state"),
    ("qwen3_5", "state"),
    ("granite4", "state"),
    ("lfm2", "state"),
    ("gemma4", "embedding"),
    ("gpt_neo", "kv"),
    ("deepseek_v3", "kv"),
]


def model_of(family: str) -> FrozenLM:
    tiny = ("llama", "gemma2", "gemma3", "opt")
    return tiny_lm(family, bos=family == "llama") if family in tiny else odd_lm(family)


def logits_of_lines(folder: Path, source: ExportSource) -> list[torch.Tensor]:
    """Log-probabilities [N, V] of each row's answer, by the exported file."""
    use, lm = runpy.run_path(str(folder / "use.py")), source.lm
    found = list[torch.Tensor]()
    for row in check_rows(source, TEXTS)[: len(TEXTS)]:
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
        with torch.no_grad():
            out = use["answer"](lm.hf_model, list(row.ids), output_logits=True, return_dict_in_generate=True, **options)
        found.append(torch.cat(out.logits).float().log_softmax(-1))
    return found


@pytest.mark.parametrize(("family", "form"), CASES)
def test_the_lines_answer_as_we_do(family: str, form: str, tmp_path: Path) -> None:
    source = export_source(model_of(family), form, n_tokens=14)
    folder = find_target("transformers").write(tmp_path / "out", source).folder
    wanted = our_answers(source, check_rows(source, TEXTS)[: len(TEXTS)])
    for logprobs_NV, ours in zip(logits_of_lines(folder, source), wanted, strict=True):
        for step_V, top in zip(logprobs_NV, ours.logprobs[:4], strict=True):
            assert int(step_V.argmax()) == next(iter(top))
            assert max(abs(float(step_V[token]) - value) for token, value in top.items()) < EXACT[torch.float32]


def test_the_file_says_what_stands_around_a_text(tmp_path: Path) -> None:
    """BOS and opening as ids, the text around the input as strings, and the tensors as they are."""
    lm = tiny_lm("llama", bos=True)
    source = export_source(lm, "embedding")
    folder = find_target("transformers").write(tmp_path / "out", source).folder
    use = runpy.run_path(str(folder / "use.py"))
    assert use["LEAD"] == [lm.tokenizer.bos_token_id] and use["FOLLOW"] == lm.encode("Text:")
    assert use["BEFORE"] + "x" + use["AFTER"] == " x\nLabel:"
    assert torch.equal(load_file(folder / "prompt.safetensors")["embeddings"], source.prompt.tensors()["embeddings"])
    assert (folder / "use.py").read_text() in (folder / "README.md").read_text()
    with pytest.raises(StoreError, match="nothing was written"):
        find_target("transformers").write(tmp_path / "out", source)


@pytest.mark.parametrize("template", [TEXT, Template("chat", "{text}?"), Template("chat", "", system=VIRTUAL)])
def test_the_text_around_an_input_gives_the_ids_of_a_row(template: Template, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    source = export_source(lm, "embedding", template)
    folder = find_target("transformers").write(tmp_path / "out", source).folder
    use = runpy.run_path(str(folder / "use.py"))
    (row,) = check_rows(source, ["one two"])[:1]
    assert lm.encode(use["BEFORE"] + "one two" + use["AFTER"]) == list(row.ids)


def test_what_generate_cannot_go_on_from_is_refused(tmp_path: Path) -> None:
    for lm, form in ((odd_lm("mamba2"), "state"), (tiny_seq2seq(), "embedding")):
        with pytest.raises(UnsupportedModelError):
            find_target("transformers").write(tmp_path / "out", export_source(lm, form))
    assert not list(tmp_path.iterdir())
