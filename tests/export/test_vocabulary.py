"""Copies of a base model with the virtual tokens as tokens, loaded by plain Transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.testing import assert_close

from softprompt.errors import GeometryError, StoreError, UnsupportedModelError
from softprompt.export import vocabulary_model
from softprompt.export.base import ExportSource
from softprompt.export.check import check_rows
from softprompt.export.registry import find_target
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import embedded
from tests.support.exported import export_source
from tests.support.odd_models import odd_lm
from tests.support.saved import save_tiny
from tests.support.tiny import tiny_seq2seq, tiny_tokenizer

# Tied and untied, scaled embeddings, tables with a bias, a head of another name.
FAMILIES = ("llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi")


def saved_lm(folder: Path, family: str = "llama", *, shards: str = "5GB", bos: bool = False) -> FrozenLM:
    if family == "phi":
        torch.manual_seed(0)
        config = tf.PhiConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        tf.PhiForCausalLM(config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    else:
        save_tiny(folder, family, bos=bos)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if shards != "5GB":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shards)
    return FrozenLM(model, tf.AutoTokenizer.from_pretrained(folder), str(folder))


def exported(lm: FrozenLM, out: Path, n_tokens: int = 5) -> tuple[ExportSource, Path]:
    source = export_source(lm, "embedding", n_tokens=n_tokens)
    return source, find_target("vocabulary").write(out, source).folder


def both_logits(source: ExportSource, folder: Path) -> tuple[Tensor, Tensor, list[int]]:
    """The copy's logits [N, V'] at the end of each row, the base model's [N, V], and the ids of the new tokens."""
    lm = source.lm
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    strings = [f"<|tone_{i}|>" for i in range(source.prompt.n_tokens)]
    ids = tokenizer.encode("".join(strings), add_special_tokens=False)
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids] == strings
    theirs, ours, (lead, follow) = list[Tensor](), list[Tensor](), source.around
    with torch.no_grad():
        for row in check_rows(source, ["a", "another text"])[:2]:
            theirs.append(model(torch.tensor([[*lead, *ids, *follow, *row.ids]])).logits[0, -1])
            before = embedded(lm, source.formatted.prefix(lm))
            embeds = torch.cat([before, lm.embed(list(row.ids))])[None]
            ours.append(lm.hf_model(inputs_embeds=embeds).logits[0, -1])
    return torch.stack(theirs), torch.stack(ours), ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_tokens", [5, 50])
def test_the_copy_answers_as_the_base_does_after_the_virtual_tokens(family: str, n_tokens: int, tmp_path: Path) -> None:
    lm = saved_lm(tmp_path / "base", family)
    source, folder = exported(lm, tmp_path / "out", n_tokens)
    theirs, ours, ids = both_logits(source, folder)
    rows = lm.geometry.vocab
    kept = [i for i in range(rows) if i not in ids]
    assert_close(theirs[:, kept], ours[:, kept], rtol=1e-4, atol=1e-4)
    assert theirs.shape[1] == max(rows, 260 + n_tokens, 320 if family == "phi" else 0)
    assert (theirs[:, ids].amax(1) < theirs[:, kept].amax(1)).all(), "never the likeliest"
    if family == "phi":
        assert (theirs.softmax(-1)[:, ids] == 0).all(), "the output has a bias"
    else:
        assert (theirs.softmax(-1)[:, ids] <= 1 / len(kept)).all()


def test_the_new_logit_is_the_mean_of_all() -> None:
    """Of whatever hidden state: that it can never win is arithmetic, not training."""
    head = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    for scale in (0.01, 1.0, 100.0):
        logits = head @ (torch.randn(32, generator=torch.Generator().manual_seed(1)) * scale)
        new = head.mean(0) @ (torch.randn(32, generator=torch.Generator().manual_seed(1)) * scale)
        assert_close(new, logits.mean(), rtol=1e-4, atol=1e-4)
        assert new < logits.max() and new - logits.logsumexp(0) <= -torch.tensor(300.0).log() + 1e-5


def test_generate_never_emits_a_virtual_token_and_the_rest_is_the_bases(tmp_path: Path) -> None:
    lm = saved_lm(tmp_path / "base", bos=True)
    (tmp_path / "base" / "LICENSE").write_text("free")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"another copy")
    source, folder = exported(lm, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".bin") == []
    assert (folder / "LICENSE").read_text() == "free"
    generation = tf.GenerationConfig.from_pretrained(folder)
    ids = list(range(260, 265))
    assert generation.suppress_tokens == ids
    theirs, ours = (tf.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "base"))
    assert theirs.chat_template == ours.chat_template
    assert theirs.encode("hello <s> there") == ours.encode("hello <s> there")
    assert theirs.decode([*ids, 70], skip_special_tokens=True) == ours.decode([70])
    readme = (folder / "README.md").read_text()
    assert "".join(f"<|tone_{i}|>" for i in range(5)) + "Text:" in readme
    assert str([*source.around[0], *ids, *source.around[1]]) in readme


def test_the_exact_virtual_tokens_come_back(tmp_path: Path) -> None:
    """Though the copy has them in its own number format; not from a copy that was changed."""
    lm = saved_lm(tmp_path / "base")
    source, folder = exported(lm, tmp_path / "out")
    (found,) = read_foreign(folder, lm.geometry)
    assert torch.equal(found.prompt.tensors()["embeddings"], source.prompt.tensors()["embeddings"])
    card = import_card(lm, found, "back")
    assert card.layout == source.card.layout and card.template == source.card.template
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(StoreError, match="was changed"):
        read_foreign(folder, lm.geometry)


def test_shards_are_copied_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tied model in several files, a few rows of a table at a time."""
    monkeypatch.setattr("softprompt.export.weight_files._PIECE", 500)
    lm = saved_lm(tmp_path / "base", "gemma2", shards="20KB")
    source, folder = exported(lm, tmp_path / "out", 50)
    assert len(list(folder.glob("model*.safetensors"))) > 2
    theirs, ours, _ = both_logits(source, folder)
    assert_close(theirs[:, :260], ours[:, :260], rtol=1e-4, atol=1e-4)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    lengths = [path.stat().st_size for path in folder.glob("model*.safetensors")]
    assert 0 < sum(lengths) - index["metadata"]["total_size"] < 4000 * len(lengths), "headers alone"
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]


def test_rows_stay_a_multiple_of_64_where_the_base_keeps_to_it() -> None:
    lm = odd_lm("cohere")
    assert lm.geometry.vocab % 64
    assert vocabulary_model.new_tokens(lm, "tone", 41).n_rows == 301


def test_what_no_copy_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("vocabulary")
    lm = saved_lm(tmp_path / "base")
    with pytest.raises(GeometryError, match="no embeddings"):
        target.write(tmp_path / "out", export_source(lm, "kv"))
    for other in (tiny_seq2seq(), odd_lm("gemma4")):
        with pytest.raises(UnsupportedModelError, match="more than an embedding"):
            target.write(tmp_path / "out", export_source(other, "embedding"))
    assert target.cost is not None and "GB of weights" in target.cost(export_source(lm, "embedding"))
    monkeypatch.setattr(vocabulary_model, "copy_size", lambda *_: 10**18)
    monkeypatch.setattr("softprompt.export.vocabulary.copy_size", lambda *_: 10**18)
    with pytest.raises(StoreError, match="no room"):
        target.write(tmp_path / "out", export_source(lm, "embedding"))
    assert not (tmp_path / "out").exists()
