"""Soft prompts for vLLM's own server, on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from softprompt.data.template import Template
from softprompt.errors import StoreError
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import from_card
from softprompt.prompts import store
from softprompt.vllm import published
from softprompt.vllm.prefix_file import compile_prefix, prefix_digest, prefix_path
from softprompt.vllm.published import PublishedPrompt, find_published, publish
from tests.support.live_server import TEMPLATES, save_prompt
from tests.support.tiny import tiny_lm


def saved(folder: Path, name: str, seed: int = 1) -> PublishedPrompt:
    """A soft prompt of one of the tests' kinds, published in `folder`."""
    lm, (form, template) = tiny_lm("llama", bos=True), TEMPLATES[name]
    save_prompt(folder / "prompts" / name, form, template, seed)
    prompt, card = store.load(folder / "prompts" / name, lm.geometry)
    return publish(lm, prompt, card, folder, overwrite=seed > 1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    lm, made = tiny_lm("llama", bos=True), saved(tmp_path, name)
    assert find_published(tmp_path, name) == made
    formatted = from_card(*store.load(tmp_path / "prompts" / name, lm.geometry))
    prefix = formatted.prefix(lm)
    compiled = compile_prefix(lm, prefix)
    assert (made.id, made.size) == (prefix_digest(compiled), len(prefix.lead) + 5 + len(prefix.follow))
    assert replace(made.template, chat_template="") == TEMPLATES[name][1]
    assert bool(made.template.chat_template) == (made.template.kind == "chat"), "the template is pinned"
    assert made.end_ids == tuple(end_ids(lm, formatted.template))
    assert published.published_names(tmp_path) == [name]


def test_another_version_is_another_file_and_must_be_asked_for(tmp_path: Path) -> None:
    one = saved(tmp_path, "review")
    assert saved(tmp_path, "review") == one, "the same again is no change"
    two = saved(tmp_path, "review", seed=2)
    assert find_published(tmp_path, "review") == two
    assert one.id != two.id
    assert prefix_path(tmp_path, one.id).exists(), "requests that run may need it"
    with pytest.raises(StoreError, match="another version"):
        saved(tmp_path, "review")
    assert find_published(tmp_path, "review") == two


@pytest.mark.parametrize("name", ["none", "../review", "Review", "prompts/review", ""])
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    saved(tmp_path, "review")
    assert find_published(tmp_path, name) is None


def test_a_card_that_would_leave_the_folder(tmp_path: Path) -> None:
    """A card may come from a stranger."""
    lm = tiny_lm("llama", bos=True)
    card = save_prompt(tmp_path / "prompts" / "p", "kv", Template("text", "{text}"), 1)
    prompt, _ = store.load(tmp_path / "prompts" / "p", lm.geometry)
    with pytest.raises(StoreError, match="holds no valid name"):
        publish(lm, prompt, card.model_copy(update={"name": "../p"}), tmp_path / "served")
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    "change", [{"id": "../x"}, {"name": "other"}, {"size": 0}, {"size": "5"}, {"template": {"kind": "x"}}, {"id": None}]
)
def test_a_damaged_one(change: dict[str, object], tmp_path: Path) -> None:
    saved(tmp_path, "review")
    path = tmp_path / "review.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match="not a published soft prompt"):
        find_published(tmp_path, "review")


def test_one_whose_keys_and_values_are_gone(tmp_path: Path) -> None:
    prefix_path(tmp_path, saved(tmp_path, "review").id).unlink()
    with pytest.raises(StoreError, match="is gone"):
        find_published(tmp_path, "review")
