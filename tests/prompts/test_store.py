"""Law 6, and everything that is not a soft prompt, which is refused with a typed error."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from softprompt import files
from softprompt.errors import GeometryError, SoftpromptError, StoreError, WrongBaseError
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import DTYPES, EmbeddingPrompt, KVPrompt, prompt_digest
from softprompt.prompts.store import save
from tests.support.artifacts import FORMS, PLAIN, artifacts, card, contents, geometry, prompt

TENSOR = {"embedding": "embeddings", "kv": "layers.2.v"}


@pytest.fixture(params=FORMS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A whole artifact of either form."""
    store.save(tmp_path / "tone", prompt(request.param), card())
    return tmp_path / "tone"


def edit_card(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / store.CARD).read_text()) | changes
    (folder / store.CARD).write_text(json.dumps(data))


def edit_tensors(folder: Path, change: Callable[[str, dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / store.TENSORS)
    change(next(name for name in TENSOR.values() if name in tensors), tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / store.TENSORS)


@settings(deadline=None, max_examples=80)
@given(artifacts())
def test_law_6_loading_what_was_saved_is_the_identity(made: tuple[SoftPrompt, Card]) -> None:
    one, facts = made
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "tone"
        store.save(folder, one, facts)
        again, read = store.load(folder, facts.geometry)
    assert type(again) is type(one)
    assert again.n_tokens == one.n_tokens
    assert contents(again) == contents(one)
    filled = {"form": one.form, "n_tokens": one.n_tokens, "sha256": prompt_digest(one)}
    assert read.model_dump(mode="json") == facts.model_dump(mode="json") | filled


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_twice_saved_is_the_same_bytes(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    store.save(tmp_path / "a", prompt(form, dtype=dtype), card())
    store.save(tmp_path / "b", *store.load(tmp_path / "a"))
    for name in (store.TENSORS, store.CARD, store.README):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tensors_that_share_memory_need_gradients_or_are_turned_can_be_saved(tmp_path: Path) -> None:
    base = geometry(layers=(PLAIN.layers[2], PLAIN.layers[2]), windows=(None, None))
    turned = torch.arange(6.0).view(1, 2, 3).transpose(1, 2).requires_grad_()
    shared = torch.arange(6.0).view(1, 3, 2)
    made = KVPrompt(((turned, turned), (shared, shared)))
    store.save(tmp_path / "a", made, card(base))
    again, _ = store.load(tmp_path / "a", base)
    assert contents(again) == contents(made)
    assert not any(t.requires_grad for t in again.tensors().values())


def test_an_artifact_is_three_files_and_what_extras_adds(tmp_path: Path) -> None:
    def extras(folder: Path) -> None:
        assert (folder / store.CARD).is_file()
        (folder / "curve.png").write_bytes(b"png")

    store.save(tmp_path / "a", prompt("kv"), card(), readme="# Tön", extras=extras)
    store.save(tmp_path / "b", prompt("kv"), card())
    assert sorted(os.listdir(tmp_path / "a")) == ["README.md", "card.json", "curve.png", "prompt.safetensors"]
    assert sorted(os.listdir(tmp_path / "b")) == ["README.md", "card.json", "prompt.safetensors"]
    assert (tmp_path / "a" / store.README).read_bytes().decode() == "# Tön"
    assert "kv prompt, 3 virtual tokens" in (tmp_path / "b" / store.README).read_text()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    for bad in (EmbeddingPrompt(torch.zeros(3, 7)), EmbeddingPrompt(torch.full((3, 6), float("nan")))):
        with pytest.raises(GeometryError):
            store.save(tmp_path / "a", bad, card())
    assert os.listdir(tmp_path) == []


def test_a_metric_that_is_no_number_is_null(tmp_path: Path) -> None:
    """JSON has no NaN, and a run of hours must not be lost to one."""
    store.save(tmp_path / "a", prompt("kv"), card(metrics={"loss": [float("nan"), float("inf"), 1.0]}))
    assert store.load(tmp_path / "a")[1].metrics == {"loss": [None, None, 1.0]}


def test_an_artifact_is_replaced_only_when_told(saved: Path) -> None:
    before, other = contents(store.load(saved)[0]), prompt("kv", seed=99)
    with pytest.raises(StoreError, match="of that name is there"):
        store.save(saved, other, card())
    assert contents(store.load(saved)[0]) == before
    store.save(saved, other, card(name="new"), overwrite=True)
    again, read = store.load(saved)
    assert (contents(again), read.name) == (contents(other), "new")
    assert os.listdir(saved.parent) == ["tone"]


def test_a_failed_save_leaves_no_trace(saved: Path) -> None:
    def extras(folder: Path) -> None:
        raise RuntimeError("no plot")

    before = contents(store.load(saved)[0])
    for folder in (saved, saved.with_name("other")):
        with pytest.raises(RuntimeError, match="no plot"):
            store.save(folder, prompt("kv", seed=99), card(), extras=extras, overwrite=True)
    assert contents(store.load(saved)[0]) == before
    assert os.listdir(saved.parent) == ["tone"]


def test_another_base_model_is_refused_with_both_names(saved: Path) -> None:
    mine = geometry(base="owner/other", architecture="gpt2")
    with pytest.raises(WrongBaseError) as caught:
        store.load(saved, mine)
    message = str(caught.value)
    for fact in ("tiny", "owner/other", PLAIN.fingerprint, mine.fingerprint, "architecture is gpt2", "--model tiny"):
        assert fact in message
    store.load(saved, geometry(base="owner/other"))
    with pytest.raises(WrongBaseError, match="other weights"):
        store.load(saved, geometry(sample=(0.5, -0.25, 0.1, 1.5)))


def _shape(name: str, tensors: dict[str, Tensor]) -> None:
    tensors[name] = tensors[name][..., 1:]


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 5)


def _link(name: str) -> Callable[[Path], object]:
    def link(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return link


def _tensors(change: Callable[[str, dict[str, Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder, change)


def _card(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit_card(folder, **changes)


def _bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tensors": (_cut(store.TENSORS), "damaged safetensors"),
    "truncated card": (_cut(store.CARD), "not valid JSON"),
    "no tensors": (lambda folder: (folder / store.TENSORS).unlink(), "no such file"),
    "no card": (lambda folder: (folder / store.CARD).unlink(), "no such file"),
    "no folder": (shutil.rmtree, "no such soft prompt"),
    "linked tensors": (_link(store.TENSORS), "not a plain file"),
    "linked card": (_link(store.CARD), "not a plain file"),
    "pickled tensors": (lambda folder: torch.save({"a": torch.zeros(1)}, folder / store.TENSORS), "damaged"),
    "header of 4 TiB": (_bytes(store.TENSORS, b"\x00\x00\x00\x00\x00\x04\x00\x00{}"), "damaged safetensors"),
    "wrong shape": (_tensors(_shape), "got: .*F32"),
    "wrong dtype": (_tensors(lambda name, t: t.update({name: t[name].double()})), "got: .*F64"),
    "whole numbers": (_tensors(lambda name, t: t.update({name: t[name].int()})), "got: .*I32"),
    "another dtype": (_tensors(lambda name, t: t.update({name: torch.zeros_like(t[name]).half()})), "sha256"),
    "extra tensor": (_tensors(lambda name, t: t.update(extra=torch.zeros(1))), "tensor extra"),
    "missing tensor": (_tensors(lambda name, t: (t.pop(name), t or t.update(x=torch.zeros(1)))), "missing|tensor x"),
    "NaN": (_tensors(lambda name, t: t[name].view(-1)[-1:].fill_(float("nan"))), "NaN"),
    "infinite": (_tensors(lambda name, t: t[name].view(-1)[:1].fill_(float("-inf"))), "infinite"),
    "another weight": (_tensors(lambda name, t: t[name].view(-1)[:1].fill_(0.125)), "sha256"),
    "another sha": (_card(sha256="1" * 64), "sha256"),
    "another length": (_card(n_tokens=4), "expected: .*4"),
    "another base": (_card(base=geometry(hidden=7, layers=(PLAIN.layers[0],) * 3).to_dict()), "tensor"),
    "base of texts": (_card(base=PLAIN.to_dict() | {"hidden": "6"}), "not a base model description"),
    "version 2": (_card(format_version=2), "unknown format version"),
    "no version": (_card(format_version=None), "unknown format version"),
    "unknown key": (_card(remarks="{{ x }}"), "field remarks"),
    "unknown form": (_card(form="lora"), "field form"),
    "a list": (_bytes(store.CARD, b"[]"), "unknown format version"),
    "key twice": (_bytes(store.CARD, b'{"format_version": 1, "format_version": 1}'), "duplicate key"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_artifact_is_refused(saved: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    store.load(saved, PLAIN)
    damage(saved)
    with pytest.raises((StoreError, GeometryError), match=message):
        store.load(saved)


@pytest.mark.parametrize(("limit", "name"), [("MAX_JSON_BYTES", store.CARD), ("MAX_TENSOR_BYTES", store.TENSORS)])
def test_an_oversized_file_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch, limit: str, name: str) -> None:
    size = (saved / name).stat().st_size
    monkeypatch.setattr(files, limit, size)
    store.load(saved)
    monkeypatch.setattr(files, limit, size - 1)
    with pytest.raises(StoreError, match="too large"):
        store.load(saved)


@pytest.mark.parametrize("base", [PLAIN, None], ids=["for a model", "for none"])
def test_a_wrong_shape_is_refused_before_anything_is_loaded(
    saved: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in (EmbeddingPrompt, KVPrompt):
        monkeypatch.setattr(form, "from_tensors", lambda *_: pytest.fail("too late"))
    edit_tensors(saved, _shape)
    with pytest.raises(StoreError):
        store.load(saved, base)


@functools.cache
def whole_files(form: str) -> dict[str, bytes]:
    """Saved once: an artifact is flushed to disk, which takes its time."""
    with tempfile.TemporaryDirectory() as there:
        store.save(Path(there) / "tone", prompt(form), card())
        return {path.name: path.read_bytes() for path in (Path(there) / "tone").iterdir()}


def whole(form: str, there: str) -> Path:
    for name, content in whole_files(form).items():
        (Path(there) / name).write_bytes(content)
    return Path(there)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(FORMS), st.sampled_from([store.TENSORS, store.CARD]), st.data())
def test_any_damaged_byte_is_a_typed_error_or_no_damage(form: str, name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as there:
        folder = whole(form, there)
        raw = bytearray((folder / name).read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            del raw[at:]
        else:
            raw[at] ^= data.draw(st.integers(1, 255))
        (folder / name).write_bytes(raw)
        try:
            again, _ = store.load(folder, PLAIN)
        except SoftpromptError:
            return
        assert contents(again) == contents(prompt(form)), "altered tensors got through"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "1", "kv", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bos", "kv_heads", "x"]), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(FORMS), st.data())
def test_a_strange_value_anywhere_in_a_card_is_a_typed_error_or_harmless(form: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as there:
        folder = whole(form, there)
        facts = json.loads((folder / store.CARD).read_text())
        inside = data.draw(st.sampled_from([facts, facts["base"], facts["layout"], *facts["base"]["layers"][::2]]))
        inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(_json)
        (folder / store.CARD).write_text(json.dumps(facts))
        try:
            again, read = store.load(folder, PLAIN)
        except SoftpromptError:
            return
        assert contents(again) == contents(prompt(form))
        assert PLAIN.differs(read.geometry) is None


def test_the_list_goes_by_name_and_shows_damage(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        store.save(tmp_path / name, prompt("kv"), card(name=name))
    _cut(store.CARD)(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / ".runs")
    (tmp_path / "file").write_text("")
    os.rename(tmp_path / "c", tmp_path / ".c.old")  # an overwrite died between its two renames
    found = store.list_cards(tmp_path)
    assert [path.name for path, _ in found] == ["a", "b", "c"]
    kinds = [entry.name if isinstance(entry, Card) else type(entry) for _, entry in found]
    assert kinds == ["a", StoreError, "c"]
    assert store.list_cards(tmp_path / "nowhere") == []


def test_loading_undoes_an_overwrite_that_died(saved: Path) -> None:
    os.rename(saved, saved.with_name(".tone.old"))
    store.load(saved, PLAIN)
    assert os.listdir(saved.parent) == ["tone"]


def test_a_name_is_as_good_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    made = prompt("kv")
    save("tone", made, card())
    for place in ("tone", str(tmp_path / "prompts" / "tone"), tmp_path / "prompts" / "tone"):
        assert contents(store.load(place)[0]) == contents(made)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_soft_prompt_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    """`--name ./prompts --overwrite` must not remove every soft prompt in it."""
    folder = tmp_path / "prompts"
    save(folder / "tone", prompt("kv"), card())
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="is not a soft prompt, so it will not be replaced"):
        save(folder, prompt("kv"), card(), overwrite=overwrite)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
