"""Beams, penalties and several answers, beside `generate` of Transformers on the embeddings of prefix and text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import ConfigError
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.formatting.inputs import input_ids
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling, discourage_repetition
from softprompt.models.frozen_lm import FrozenLM
from tests.support.cases import random_prompt
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm, tiny_seq2seq

TEXTS = ("Where is my parcel?", "Hm", "I was charged twice, please mend it")
PLAIN = Template("text", "Review: {text}\nSentiment:")


def soft(lm: FrozenLM, seed: int = 1) -> FormattedPrompt:
    template = Template("seq2seq", PLAIN.text) if lm.is_encoder_decoder else PLAIN
    prompt = random_prompt(lm, "embedding", 5, seed)
    return FormattedPrompt(prompt, template, layout_for(lm, template, "embedding"))


@torch.no_grad()
def transformers_answers(lm: FrozenLM, formatted: FormattedPrompt, text: str, **options: Any) -> list[list[int]]:
    """What `generate` of Transformers answers, without end tokens and what follows them."""
    prefix, row = formatted.prefix(lm), input_ids(text, formatted, lm.tokenizer)
    assert prefix.prompt is not None and prefix.prompt.input_embeddings() is not None
    virtual = prefix.prompt.input_embeddings()
    assert isinstance(virtual, Tensor)
    after = [*prefix.follow, *row, *lm.closing]
    before = lm.embed(torch.tensor(prefix.lead, dtype=torch.long))
    embeddings = torch.cat([before, virtual.to(lm.dtype), lm.embed(after)])[None]
    ends = end_ids(lm, formatted.template)
    given: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": torch.ones(embeddings.shape[:2])}
    read: list[int] = []
    if lm.is_encoder_decoder:
        given["use_cache"] = False  # Transformers' has as many layers as the encoder
    else:
        read = [*prefix.lead, *after]
        given["input_ids"] = torch.tensor([read])
    options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": 9} | options
    found = lm.hf_model.generate(**given, **options)  # pyright: ignore
    answers = []
    for ids in found.tolist():
        answer = ids[len(read) + lm.is_encoder_decoder :]
        stop = next((i for i, token in enumerate(answer) if token in ends), len(answer))
        answers.append(answer[:stop])
    return answers


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "n": 4},
    {"num_beams": 5, "n": 2, "repetition_penalty": 1.7},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
]


def as_transformers(options: dict[str, Any]) -> dict[str, Any]:
    return {"num_return_sequences" if name == "n" else name: value for name, value in options.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_are_those_of_transformers(family: str, options: dict[str, Any]) -> None:
    """Every text alone there, all in one batch here."""
    lm, formatted = tiny_lm(family, bos=True), soft(tiny_lm(family, bos=True))
    made = generate(lm, {"it": formatted}, [Request(text) for text in TEXTS], Sampling(9, **options))
    wanted = [
        answer for text in TEXTS for answer in transformers_answers(lm, formatted, text, **as_transformers(options))
    ]
    assert [answer.ids for answer in made] == wanted
    assert len({tuple(ids) for ids in wanted}) > 2, "they say different things"


@pytest.mark.parametrize("family", ["lfm2", "bloom"])
def test_beams_of_states_and_of_plain_passes(family: str) -> None:
    """Beams move with whatever a model carries from token to token."""
    lm = odd_lm(family)
    formatted, options = soft(lm), OPTIONS[1]
    made = generate(lm, {"it": formatted}, [Request(text) for text in TEXTS[:2]], Sampling(6, **options))
    wanted = [
        answer
        for text in TEXTS[:2]
        for answer in transformers_answers(lm, formatted, text, **as_transformers(options), max_new_tokens=6)
    ]
    assert [answer.ids for answer in made] == wanted


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[3]], ids=str)
def test_answers_of_an_encoder_decoder(options: dict[str, Any]) -> None:
    lm = tiny_seq2seq("t5")
    formatted = soft(lm)
    made = generate(lm, {"it": formatted}, [Request(text) for text in TEXTS], Sampling(9, **options))
    wanted = [
        answer for text in TEXTS for answer in transformers_answers(lm, formatted, text, **as_transformers(options))
    ]
    assert [answer.ids for answer in made] == wanted


def test_beams_end_by_their_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers win where they are likelier, and beams that ended leave room for others."""
    lm = tiny_lm("llama", bos=True)
    formatted, sampling = soft(lm, 3), Sampling(9, num_beams=4, n=3)
    options = {"num_beams": 4, "num_return_sequences": 3}
    free = generate(lm, {"it": formatted}, [Request(text) for text in TEXTS], sampling)
    common = free[0].ids[2]
    monkeypatch.setattr(lm.hf_model.generation_config, "eos_token_id", [common, free[4].ids[1]])
    made = generate(lm, {"it": formatted}, [Request(text) for text in TEXTS], sampling)
    wanted = [answer for text in TEXTS for answer in transformers_answers(lm, formatted, text, **options)]
    assert [answer.ids for answer in made] == wanted
    assert {answer.finish for answer in made} == {"stop", "length"} or all(len(ids) < 9 for ids in wanted)
    assert min(map(len, wanted)) < 9


def test_a_stop_string_ends_a_beam() -> None:
    lm = tiny_lm("llama", bos=True)
    formatted = soft(lm)
    (free,) = generate(lm, {"it": formatted}, [Request("Hm")], Sampling(9, num_beams=3))
    stop = free.text[2:4]
    (made,) = generate(lm, {"it": formatted}, [Request("Hm")], Sampling(9, num_beams=3, stop=(stop,)))
    assert stop and stop not in made.text
    assert made.finish in ("stop", "length")


def test_several_drawn_answers() -> None:
    """Answer j to request i draws with the seed of row i · n + j, as that many requests would."""
    lm = tiny_lm("llama", bos=True)
    formatted, shown = {"it": soft(lm)}, dict[int, str]()
    drawn = Sampling(6, temperature=1.5, seed=7, n=3)

    def show(row: int, new: str) -> None:
        shown[row] = shown.get(row, "") + new

    made = generate(lm, formatted, [Request(text) for text in TEXTS[:2]], drawn, on_text=show)
    one_each = Sampling(6, temperature=1.5, seed=7)
    assert made == generate(lm, formatted, [Request(text) for text in TEXTS[:2] for _ in range(3)], one_each)
    assert [shown[i] for i in range(6)] == [answer.text for answer in made]
    assert len({answer.text for answer in made[:3]}) > 1


def test_a_penalty_counts_the_text_and_not_virtual_tokens() -> None:
    scores = torch.tensor([2.0, -2.0, 1.0, -1.0])
    assert discourage_repetition(scores, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0, -1.0]
    assert scores.tolist() == [2.0, -2.0, 1.0, -1.0], "not changed"


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"n": 3, "num_beams": 2},
        {"num_beams": 2, "temperature": 1.0},
        {"num_beams": 0},
        {"n": 0},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("nan")},
    ],
    ids=str,
)
def test_useless_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(4, **options)
