"""Scores: every one is of the rows it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import softprompt.evaluation.evaluate as evaluate_module
from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.data.tokenize import tokenize
from softprompt.errors import DataError
from softprompt.evaluation.evaluate import answer_all, evaluate
from softprompt.formatting.formatted_prompt import no_prompt
from softprompt.inference import decoding
from softprompt.inference.answer import Answer
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.card import Layout
from tests.support.labels import LABELS, TEXTS, brute_force, formatted, labelled, score
from tests.support.reasoning import reasoning_tokenizer
from tests.support.rows import records
from tests.support.tiny import SPECIAL, tiny_lm, tiny_model, tiny_tokenizer


def test_classification() -> None:
    """Three rows labelled as the model ranks them, two not: accuracy 3/5."""
    lm, labels = tiny_lm("llama"), LABELS["one begins another"]
    of = formatted(lm)
    wanted = brute_force(lm, of, labelled(labels), labels, end=True)
    best, norm = wanted.argmax(1).tolist(), (wanted / torch.tensor([5.0, 10.0, 5.0])).argmax(1).tolist()
    truth = [labels[n] if i < 3 else labels[(n + 1) % 3] for i, n in enumerate(best)]
    rows = records(*({"text": text, "label": label} for text, label in zip(TEXTS, truth, strict=True)))
    result = evaluate(lm, of, rows, labels=labels)
    assert result.answers == tuple(labels[n] for n in best), "in the order of the rows"
    assert result.scores["accuracy"].value == 3 / 5
    assert result.scores["accuracy_norm"].value == sum(labels[n] == t for n, t in zip(norm, truth, strict=True)) / 5
    assert result.rows == 5
    low, high = result.to_dict()["confidence_interval"]["accuracy"]  # type: ignore[index]
    assert low < 3 / 5 < high


def test_classes_are_those_of_the_rows_unless_given() -> None:
    lm = tiny_lm("llama")
    rows = records({"text": "one", "label": "b"}, {"text": "two", "label": "a"})
    assert set(evaluate(lm, formatted(lm), rows).answers) <= {"a", "b"}
    with pytest.raises(DataError, match=r"(?s)f.jsonl:1: label 'b' is not among the classes.*\['a', 'c'\]"):
        evaluate(lm, formatted(lm), rows, labels=["a", "c"])


def texts() -> list[Record]:
    return records(*({"text": text} for text in TEXTS))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("form", ["none", "embedding", "kv"])
def test_loss_and_perplexity(form: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(evaluate_module, "_TOKENS", 30)
    template = Template("text", "{text}")
    lm, total, count = tiny_lm("llama"), 0.0, 0
    of = formatted(lm, form, template)
    for example in tokenize(texts(), template, lm.tokenizer, max_length=99):
        total -= score(lm, of, example.ids[:1], example.ids[1:])
        count += len(example.ids) - 1
    result = evaluate(lm, of, texts())
    loss, perplexity = result.scores["loss"], result.scores["perplexity"]
    assert loss.value == pytest.approx(total / count, rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert loss.low < loss.value < loss.high
    assert (perplexity.low, perplexity.high) == (math.exp(loss.low), math.exp(loss.high))
    assert result.rows == len(TEXTS)


def test_the_longest_text_that_fits() -> None:
    """Behind BOS and five virtual tokens; the end token counts."""
    lm = tiny_lm("llama", bos=True)
    of = formatted(lm, "embedding", Template("text", "{text}"))
    room = lm.geometry.max_positions - len(of.prefix(lm).lead) - 5
    assert room == 250
    evaluate(lm, of, records({"text": "x" * (room - 1)}))
    with pytest.raises(DataError, match=r"(?s)does not fit in the model's context.*<= 256.*251 \+ 6"):
        evaluate(lm, of, records({"text": "x" * room}))


def questions(answers: Sequence[Any]) -> list[Record]:
    return records(*({"prompt": t, "completion": a} for t, a in zip(TEXTS, answers, strict=True)))


def test_generation_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted and decoded in parts, each row still gets its own answer."""
    lm = tiny_lm("llama")
    of = formatted(lm, "kv", Template("text", "Q: {prompt}\nA:"))
    rows = questions(["?"] * 5)
    alone = [answer_all(lm, of, [row], Sampling(6))[0] for row in rows]
    assert len({tuple(answer.ids) for answer in alone}) == 5
    for size in (2, 32):
        monkeypatch.setattr(decoding, "BATCH_ROWS", size)
        assert answer_all(lm, of, rows, Sampling(6)) == alone


def test_generation_scores() -> None:
    """Two of five references are what the model says."""
    lm = tiny_lm("llama")
    of = formatted(lm, "kv", Template("text", "Q: {prompt}\nA:"))
    said = [answer.text for answer in answer_all(lm, of, questions(["?"] * 5), Sampling(6))]
    assert all(text.strip() for text in said)
    result = evaluate(lm, of, questions([said[0], "no", "no", said[3], "no"]), sampling=Sampling(6))
    assert result.answers == tuple(said)
    assert result.scores["exact_match"].value == 2 / 5
    assert {"exact_match", "bleu", "rouge_l"} <= result.scores.keys()
    assert result.to_dict()["exact_match"] == 2 / 5


@pytest.mark.parametrize(
    ("family", "said", "written"),
    [("", "1!", "1!<|im_end|>"), ("r1", "Hm\n</think>\n\n1!", "<think>\nLet me see.\n</think>\n\n1!<|im_end|>")],
)
def test_what_is_compared(family: str, said: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an end token that stands in the rows, nor thoughts."""
    tokenizer = reasoning_tokenizer(family) if family else tiny_tokenizer()
    lm = FrozenLM(tiny_model("llama"), tokenizer, "tiny")
    rows = records({"prompt": "say one", "completion": written}, {"prompt": "say two", "completion": "2!"})
    monkeypatch.setattr(evaluate_module, "answer_all", lambda *_: [Answer(said), Answer(said)])
    template = Template("chat", "{prompt}", thoughts="given" if family else "")
    result = evaluate(lm, no_prompt(lm, template), rows)
    assert result.scores["exact_match"].value == 1 / 2
    assert result.answers == ("1!", "1!")


def test_answers_end_with_the_models_own_end_tokens() -> None:
    """Those of its generation config too; the template's end is never part of an answer."""
    lm = tiny_lm("llama")
    of = formatted(lm, "kv", Template("text", "Q: {prompt}\nA:"))
    said = answer_all(lm, of, questions(["?"] * 5), Sampling(30))
    assert all(SPECIAL.index("<|im_end|>") not in answer.ids for answer in said)


def test_nothing_to_evaluate() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(DataError, match="there are no rows to evaluate"):
        evaluate(lm, formatted(lm), [])


@pytest.mark.parametrize("row", [{"prompt": "one", "completion": "a"}, {"text": "one", "label": "a"}])
def test_rows_without_answers_are_refused(row: dict[str, str]) -> None:
    lm = tiny_lm("llama")
    field = "prompt" if "prompt" in row else "text"
    bare = {field: "two", ("completion" if field == "prompt" else "label"): None}
    rows = records(row, bare, require_target=False)
    with pytest.raises(DataError, match=r"(?s)f.jsonl:2: "):
        evaluate(lm, formatted(lm, "kv", Template("text", f"Q: {{{field}}}\nA:")), rows)


def test_layout_of_the_subjects() -> None:
    lm = tiny_lm("llama", bos=True)
    assert formatted(lm, "kv").layout == Layout(bos=False, follow="Text:")
    assert formatted(lm, "none").layout == Layout(bos=True, follow="Text:")
