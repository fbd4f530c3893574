"""Artifacts of release 0.1 load and answer as before: soft prompts, routers, study caches, prefixes for vLLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from softprompt.data.spans import prompt_ids
from softprompt.formatting.formatted_prompt import from_card, layout_ids
from softprompt.formatting.inputs import text_to_record
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import router, store
from softprompt.vllm.prefix_file import prefix_path
from softprompt.vllm.published import find_published, published_names
from tests.support.old_release import EXPECTED, assert_like, copy_artifacts, run_old

PROMPTS = EXPECTED["prompts"]
BASE = ("--model", "model", "--dtype", "float32", "--device", "cpu")
NEW_TOKENS = EXPECTED["max_new_tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield copy_artifacts(tmp_path_factory.mktemp("old") / "copy", "prompts", monkeypatch)


@pytest.fixture(scope="module")
def lm(folder: Path) -> FrozenLM:
    return load_model("model", dtype="float32", device="cpu")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_base_model_has_the_same_fingerprint(lm: FrozenLM) -> None:
    assert (lm.digest(), lm.geometry.fingerprint) == (EXPECTED["base"]["digest"], EXPECTED["base"]["fingerprint"])
    assert_like(lm.geometry.to_dict(), EXPECTED["base"]["geometry"], 1e-6)


def test_every_soft_prompt_is_expected(folder: Path) -> None:
    assert sorted(path.parent.name for path in (folder / "prompts").glob("*/card.json")) == sorted(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_soft_prompt_loads_unchanged(name: str, lm: FrozenLM, folder: Path) -> None:
    expected = PROMPTS[name]
    prompt, card = store.load(store.locate(name), lm.geometry)
    assert (prompt.form, prompt.n_tokens, card.sha256) == (expected["form"], expected["n_tokens"], expected["sha256"])
    assert sha256(folder / "prompts" / name / "prompt.safetensors") == expected["file_sha256"]
    shapes = {tensor_name: list(tensor.shape) for tensor_name, tensor in prompt.tensors().items()}
    assert shapes == expected["tensors"]
    assert (card.template, card.layout.model_dump()) == (expected["template"], expected["layout"])
    assert (list(card.labels), card.method.get("name")) == (expected["labels"], expected["method"])
    assert tuple(map(list, layout_ids(lm, card.layout))) == (expected["lead_ids"], expected["follow_ids"])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_soft_prompt_gives_the_same_logits(name: str, lm: FrozenLM) -> None:
    expected = PROMPTS[name]["logits"]
    formatted = from_card(*store.load(store.locate(name), lm.geometry))
    ids = prompt_ids(text_to_record(expected["text"], formatted, "text"), formatted.template, lm.tokenizer)
    assert list(ids) == expected["row_ids"]
    with torch.no_grad():
        states = packed_hidden_states(lm, prepare_prefixes(lm, [formatted.prefix(lm)]), [Row(ids)])
        logits = lm.logits(states[-1:])[0]
    assert logits[:8].tolist() == pytest.approx(expected["first_8"], abs=1e-3)
    assert int(logits.argmax()) == expected["argmax"]


def test_all_soft_prompts_answer_alike_in_one_batch(lm: FrozenLM) -> None:
    requests = [Request(text, name) for name in PROMPTS for text in EXPECTED["texts"]]
    answers = generate(lm, load_prompts(lm, list(PROMPTS)), requests, Sampling(NEW_TOKENS))
    assert [list(answer.ids) for answer in answers] == [
        ids for name in PROMPTS for ids in PROMPTS[name]["generate_ids"]
    ]
    assert [answer.text for answer in answers] == [row["answer"] for p in PROMPTS.values() for row in p["generate"]]


@pytest.mark.parametrize("name", ["tone", "prefix"])
def test_generate_prints_the_same_lines(name: str, lm: FrozenLM) -> None:
    output, _ = run_old("generate", name, *EXPECTED["texts"], "--json", "--max-new-tokens", str(NEW_TOKENS), *BASE)
    assert [json.loads(line) for line in output.splitlines()] == PROMPTS[name]["generate"]


@pytest.mark.parametrize("name", EXPECTED["routers"])
def test_a_router_chooses_the_same_soft_prompts(name: str, lm: FrozenLM, folder: Path) -> None:
    expected = EXPECTED["routers"][name]
    loaded = router.load_router(store.locate(name), lm.geometry)
    assert list(loaded.names) == expected["names"]
    assert sha256(folder / "prompts" / name / "router.safetensors") == expected["file_sha256"]
    output, _ = run_old("generate", name, *EXPECTED["texts"], "--json", "--max-new-tokens", str(NEW_TOKENS), *BASE)
    assert [json.loads(line) for line in output.splitlines()] == expected["generate"]


@pytest.mark.parametrize("name", EXPECTED["fidelity"])
def test_fidelity_is_measured_on_the_rows_of_the_old_study_cache(name: str, folder: Path) -> None:
    caches = {path: path.read_bytes() for path in (folder / "prompts" / ".runs").rglob("*.study/*")}
    output, _ = run_old("fidelity", name, "--json", "--model", "model", "--device", "cpu")
    assert_like(json.loads(output), EXPECTED["fidelity"][name], 1e-3)
    assert {path: path.read_bytes() for path in (folder / "prompts" / ".runs").rglob("*.study/*")} == caches


def test_prefixes_for_vllm_are_found(folder: Path) -> None:
    published = folder / "published"
    assert published_names(published) == sorted(EXPECTED["published"])
    for name, expected in EXPECTED["published"].items():
        entry = find_published(published, name)
        assert entry is not None
        assert (entry.name, entry.id, entry.size, entry.base) == (name, *(expected[k] for k in ("id", "size", "base")))
        assert (entry.template.to_dict(), list(entry.end_ids)) == (expected["template"], expected["end_ids"])
        assert prefix_path(published, entry.id).name == expected["file"]
        assert sha256(prefix_path(published, entry.id)) == expected["file_sha256"]
