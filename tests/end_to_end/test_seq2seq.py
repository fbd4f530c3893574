"""Encoder–decoders through the library's own verbs: trained, resumed, saved, loaded, generated with, evaluated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

import softprompt
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.deprecation import RenamedWarning
from softprompt.errors import ConfigError, DataError, GeometryError, StoreError, UnsupportedModelError
from softprompt.evaluation import label_ranking
from softprompt.evaluation.label_ranking import rank_labels
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for, no_prompt
from softprompt.formatting.text_prompt import text_prompt
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.methods.base import MethodContext, Start
from softprompt.methods.registry import build_method, method_settings
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry
from softprompt.models.loading import is_encoder_decoder, load_model
from softprompt.models.measure import measure_geometry
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.seq2seq import SITES
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import KVPrompt, check_fits, prompt_digest
from softprompt.training.trial import Task
from tests.laws.seq2seq import SUBSETS, only, plain_logits
from tests.laws.test_law5_resume import stop_after
from tests.support.cases import random_prompt, text_ids
from tests.support.encoder_decoders import tiny_bart_tokenizer, tiny_encoder_decoder_model
from tests.support.labels import LABELS, TEXTS, labelled
from tests.support.rows import one
from tests.support.saved import settings
from tests.support.tasks import ANSWER, END, answers, context_of, run, task
from tests.support.tiny import DEVICE, SEQ2SEQ_FAMILIES, tiny_lm, tiny_seq2seq, tiny_seq2seq_model, tiny_tokenizer

TEMPLATE = Template("seq2seq", "Text: {text}\nLabel:")


def start(seed: int = 0) -> Start:
    return Start(n_tokens=6, text=tuple(text_ids(6, 5)), seed=seed)


def said(lm: FrozenLM, prompt: SoftPrompt, rows: list[Example]) -> list[tuple[int, ...]]:
    """Greedy answers after the prompt."""
    own = task()
    prefixes = prepare_prefixes(lm, [Prefix(prompt, own.lead, own.follow)])
    texts = [row.ids[: row.mask.index(True)] for row in rows]
    made = decode_batch(lm, prefixes, texts, [0] * len(rows), Sampling(max_new_tokens=6), end_ids=[[END]] * len(rows))
    return [tuple(answer.ids) for answer in made]


def one_question(count: int, seed: int) -> list[Example]:
    """Rows that differ in one token and have one answer: through its encoder alone, a random model learns no more."""
    given, learned = text_ids(6, 77), (*ANSWER, END)
    mask = (False,) * 7 + (True,) * len(learned)
    return [Example((*given, *text_ids(1, seed + i), *learned), mask, f"f.jsonl:{i + 1}") for i in range(count)]


@pytest.mark.parametrize(
    ("method", "sites", "lr"),
    [
        ("prompt-tuning", (), 1.0),
        ("prefix-tuning", ("encoder",), 1.0),
        ("prefix-tuning", ("decoder",), 0.3),
        ("prefix-tuning", ("cross",), 0.3),
        ("prefix-tuning", (), 0.3),
        ("prefix-tuning-mlp", (), 0.1),
    ],
)
def test_it_learns_saves_loads_and_answers(method: str, sites: tuple[str, ...], lr: float, tmp_path: Path) -> None:
    """At every site alone, and at all of them: the answer is learned, and is still there when loaded again."""
    lm, rows = tiny_seq2seq("t5-1.1"), one_question(6, 500)
    before = lm.digest()
    learner = build_method(
        method, lm, Start(16, text=tuple(text_ids(16, 5))), context_of(method, sites=",".join(sites) or None)
    )
    own = Task(one_question(24, 0), one_question(8, 900), (), task().follow, "digest of the data")
    steps = 400 if sites == ("encoder",) else 200
    result = run(lm, learner, tmp_path / "run", rows=own, steps=steps, lr=lr, evals=5, patience=None)
    assert lm.digest() == before, "law 4"
    assert result.validation_loss is not None
    assert result.validation_loss < 0.25 * result.history[0]["validation_loss"]
    card = Card(name="a", form="kv", n_tokens=1, sha256="0" * 64, base=lm.geometry.to_dict())
    store.save(tmp_path / "a", result.prompt, card)
    prompt, _ = store.load(tmp_path / "a", lm.geometry)
    with torch.no_grad():
        first, second = (
            token_losses(lm, prepare_prefixes(lm, [Prefix(p, (), own.follow)]), rows) for p in (result.prompt, prompt)
        )
    assert torch.equal(first, second)
    right = sum(answer == ANSWER for answer in said(lm, prompt, rows))
    # How far the encoder alone and prompt tuning get depends on how a processor rounds.
    slow = 4 if sites == ("encoder",) else 5 if method == "prompt-tuning" else len(rows)
    assert right >= slow


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_law_5_stop_and_resume(method: str, checkpointing: bool, tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    changes: dict[str, Any] = {"steps": 7, "save_every": 7, "gradient_checkpointing": checkpointing}
    straight = run(lm, build_method(method, lm, start()), tmp_path / "straight", **changes)
    run(lm, build_method(method, lm, start()), tmp_path / "stopped", report=stop_after(3), **changes)
    resumed = run(lm, build_method(method, lm, start(seed=9)), tmp_path / "stopped", resume=True, **changes)
    assert prompt_digest(resumed.prompt) == prompt_digest(straight.prompt)
    assert resumed.history == straight.history


# --- labels ---


def formatted(lm: FrozenLM, form: str) -> FormattedPrompt:
    if form == "none":
        return no_prompt(lm, TEMPLATE)
    return FormattedPrompt(random_prompt(lm, form, 5, 1), TEMPLATE, layout_for(lm, TEMPLATE, form))


@pytest.mark.parametrize("tokens", [20, 8192])
@pytest.mark.parametrize("form", ["none", "embedding", "kv"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_rank_is_brute_force(labels: list[str], form: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_ranking, "_TOKENS", tokens)
    lm, rows = tiny_seq2seq(), labelled(labels)
    own = formatted(lm, form)
    totals, lengths = rank_labels(lm, own, rows, labels)
    begins = any(a != b and b.startswith(a) for a in labels for b in labels)
    assert lengths.tolist() == [len(label) + begins for label in labels], "nothing before it: a text of its own"
    for row, found in zip(rows, totals, strict=True):
        for label, ours in zip(labels, found, strict=True):
            target = [*target_ids(label, TEMPLATE, lm.tokenizer), *([END] if begins else [])]
            with torch.no_grad():
                logits = plain_logits(lm, own.prefix(lm), prompt_ids(row, TEMPLATE, lm.tokenizer), target)
            wanted = torch.log_softmax(logits, -1)[range(len(target)), target].sum()
            assert_close(ours, wanted, rtol=1e-4, atol=1e-3)


def test_each_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows, read = tiny_seq2seq(), labelled(LABELS["shared beginnings"]), []
    encoder = lm.hf_model.get_encoder()
    watch = encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        rank_labels(lm, formatted(lm, "kv"), rows, LABELS["shared beginnings"])
    finally:
        watch.remove()
    assert sum(read) == len(TEXTS)


# --- geometry and artifacts ---


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_geometry(family: str) -> None:
    lm = tiny_seq2seq(family)
    found = lm.geometry
    assert found.sites == ("encoder",) * 2 + ("decoder",) * 3 + ("cross",) * 3
    assert {(s.kv_heads, s.key_dim, s.value_dim) for s in found.layers if s is not None} == {(4, 6, 6)}
    assert len(found.layers) == len(found.windows) == 8
    assert Geometry.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert measure_geometry(tiny_seq2seq_model(family, 1), "b").differs(found) is not None


def test_a_causal_models_card_has_no_sites() -> None:
    """Older cards have none either, and are read."""
    found = tiny_lm("llama").geometry
    assert "sites" not in found.to_dict()
    assert found.sites == Geometry.from_dict(found.to_dict()).sites == ()
    other = dataclasses.replace(found, sites=("decoder",) * len(found.layers))
    assert "sites is" in (found.differs(other) or "")
    assert found.fingerprint != other.fingerprint


@pytest.mark.parametrize("sites", SUBSETS)
def test_a_prompt_of_some_sites_is_whole(sites: tuple[str, ...], tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    prompt = only(lm, random_prompt(lm, "kv", 4, 1), sites)
    check_fits(prompt, lm.geometry)
    card = Card(name="a", form="kv", n_tokens=1, sha256="0" * 64, base=lm.geometry.to_dict())
    store.save(tmp_path / "a", prompt, card)
    again, _ = store.load(tmp_path / "a", lm.geometry)
    assert prompt_digest(again) == prompt_digest(prompt)


def test_half_a_site_is_refused(tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    whole = random_prompt(lm, "kv", 4, 1)
    assert isinstance(whole, KVPrompt)
    for gone in (0, 4, 7):
        half = KVPrompt(tuple(None if i == gone else kv for i, kv in enumerate(whole.layers)))
        with pytest.raises(GeometryError, match=f"layers.{gone}.k"):
            check_fits(half, lm.geometry)
    with pytest.raises(GeometryError, match="at least one virtual token"):
        check_fits(KVPrompt((None,) * 8), lm.geometry)
    causal = tiny_lm("llama")
    prompt = random_prompt(causal, "kv", 4, 1)
    assert isinstance(prompt, KVPrompt)
    with pytest.raises(GeometryError, match=r"layers.1.k"):
        check_fits(KVPrompt((prompt.layers[0], None)), causal.geometry)


def test_a_missing_tensor_is_noticed_when_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lm = tiny_seq2seq()
    card = Card(name="a", form="kv", n_tokens=1, sha256="0" * 64, base=lm.geometry.to_dict())
    store.save(tmp_path / "a", random_prompt(lm, "kv", 4, 1), card)
    path = tmp_path / "a" / store.TENSORS
    tensors = load_file(path)
    whole_site = {name: t for name, t in tensors.items() if int(name.split(".")[1]) < 5}
    for kept, message in (({n: t for n, t in tensors.items() if n != "layers.6.v"}, "missing"), (whole_site, "sha256")):
        save_file(kept, path)
        with pytest.raises(StoreError, match=message):
            store.load(tmp_path / "a", lm.geometry)


# --- settings and templates ---


def test_sites_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"method.sites: sites are an encoder-decoder's"):
        build_method("prefix-tuning", tiny_lm("llama"), start(), context_of("prefix-tuning", sites="encoder"))
    with pytest.raises(ConfigError, match=r"(?s)unknown site 'middle'.*encoder,decoder,cross"):
        build_method("prefix-tuning", tiny_seq2seq(), start(), context_of("prefix-tuning", sites="cross,middle"))
    with pytest.warns(RenamedWarning, match=r"method\.sites is ignored by prompt-tuning"):
        settings_with_sites = method_settings({"name": "prompt-tuning", "sites": "encoder"})
    with pytest.raises(ConfigError, match="always precedes the text"):
        build_method("prompt-tuning", tiny_seq2seq(), start(), MethodContext(settings_with_sites))


def test_the_answer_is_a_text_of_its_own() -> None:
    """Nothing joins it to the question, but in a worked example both are one text."""
    lm, row = tiny_seq2seq(), one({"text": "fine", "label": "good"})
    assert target_ids("good", TEMPLATE, lm.tokenizer) == lm.encode("good")
    shown = text_prompt(lm, TEMPLATE, "Judge.", [row])
    assert shown.template == Template("seq2seq", "Judge.\n\nText: fine\nLabel: good\n\nText: {text}\nLabel:")
    assert shown.stop == (), "it ends its answer by itself"
    assert Template.from_dict(TEMPLATE.to_dict()) == TEMPLATE


def test_texts_and_conversations_are_refused() -> None:
    from softprompt.data.template import answered_apart
    from softprompt.data.tokenize import tokenize

    with pytest.raises(DataError, match="rows of text alone have no answers"):
        tokenize([one({"text": "only this"})], Template("seq2seq", "{text}"), tiny_seq2seq().tokenizer, max_length=99)
    with pytest.raises(DataError, match="it holds no conversations"):
        answered_apart(Template("chat", "{text}"))
    with pytest.raises(DataError, match="no system turn"):
        Template("seq2seq", "{text}", "Be kind.")


# --- a model folder, as a user has it ---


def saved(folder: Path, family: str = "t5") -> Path:
    tiny_seq2seq_model(family).save_pretrained(folder)
    tiny_tokenizer(closing=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_loaded_from_a_folder(family: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family)
    assert is_encoder_decoder(str(base))
    lm = load_model(str(base), dtype="float32", device=DEVICE)
    assert lm.is_encoder_decoder
    assert (lm.start_id, lm.closing) == (0, (END,))
    states = torch.ones(1, lm.geometry.hidden, device=lm.device)
    assert_close(lm.logits(states), tiny_seq2seq(family).logits(states))
    assert lm.digest() == tiny_seq2seq(family).digest()
    assert lm.geometry.differs(tiny_seq2seq(family).geometry) is None


@pytest.mark.parametrize("sites", [None, "decoder", "encoder,cross"])
def test_fit_evaluate_and_answer(sites: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    config = settings(saved(tmp_path / "base"), tmp_path, method__sites=sites, train__steps=60, train__lr=0.1)
    prepared = softprompt.prepare(config)
    assert prepared.tasks[0].template.kind == "seq2seq"
    lm = softprompt.load_model(config.model, dtype="float32", device=DEVICE)
    outcome = softprompt.fit(prepared, lm)
    prompt, card = softprompt.load("tone", lm.geometry)
    assert isinstance(prompt, KVPrompt)
    there = {site for site, kv in zip(lm.geometry.sites, prompt.layers, strict=True) if kv is not None}
    assert there == set(sites.split(",") if sites else SITES)
    assert card.method["sites"] == sites
    found = softprompt.compare(lm, "tone", prepared.tasks[0].splits.validation)
    assert found.soft_prompt.rows == 8
    (answer,) = softprompt.generate(
        lm, softprompt.load_prompts(lm, ["tone"]), [softprompt.Request("row 5", "tone")], Sampling(max_new_tokens=8)
    )
    assert outcome.result.validation_loss is not None
    assert outcome.result.validation_loss < outcome.result.history[0]["validation_loss"]
    assert answer.ids


# --- models that cannot ---


def odd_lm(config: tf.PreTrainedConfig) -> FrozenLM:
    torch.manual_seed(0)
    model = tf.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return FrozenLM(model, tiny_tokenizer(closing=True), "odd-one")


def test_bart_reads_and_writes_as_its_tokenizer_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """<s> stands before the text also behind keys and values, and every answer follows it in the decoder."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    tiny_encoder_decoder_model("bart").save_pretrained(tmp_path / "base")
    tiny_bart_tokenizer().save_pretrained(tmp_path / "base")
    lm = softprompt.load_model(str(tmp_path / "base"), dtype="float32", device=DEVICE)
    assert (lm.opening, lm.closing, lm.start_ids) == ((), (2,), (2, 3))
    for method in ("prompt-tuning", "prefix-tuning"):
        name = {"name": method, "method__name": method, "template": "{text}:"}
        config = settings(tmp_path / "base", tmp_path, **name, train__steps=150, train__lr=0.3)
        outcome = softprompt.fit(softprompt.prepare(config), lm)
        assert outcome.result.validation_loss is not None
        assert outcome.result.validation_loss < outcome.result.history[0]["validation_loss"]
    prompt, card = softprompt.load("prompt-tuning", lm.geometry)
    (answer,) = softprompt.generate(
        lm,
        softprompt.load_prompts(lm, ["prompt-tuning"]),
        [softprompt.Request("row 5", "prompt-tuning")],
        Sampling(max_new_tokens=8, num_beams=2),
    )
    front = torch.cat([lm.embed([3]), prompt.tensors()["embeddings"], lm.embed([*lm.encode("row 5:"), 2])])[None]
    made: Any = lm.hf_model
    wanted = made.generate(
        inputs_embeds=front,
        attention_mask=torch.ones(front.shape[:2], dtype=torch.long),
        decoder_input_ids=torch.tensor([[2, 3]]),
        max_new_tokens=8,
        num_beams=2,
        do_sample=False,
    )[0, 2:].tolist()
    assert answer.ids == (wanted[: wanted.index(2)] if 2 in wanted else wanted)
    assert softprompt.load("prefix-tuning", lm.geometry)[1].layout.follow_bos and not card.layout.follow_bos


def test_a_model_without_a_start_token_is_refused() -> None:
    lm = odd_lm(tf.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    with pytest.raises(UnsupportedModelError, match="no token to start its decoder"):
        token_losses(lm, prepare_prefixes(lm, [Prefix()]), answers(2, 0))
