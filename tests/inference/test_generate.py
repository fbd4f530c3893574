"""Answers through any mix of prompts: one batch says what each request alone would get."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

import softprompt.inference.generate as generation_module
from softprompt.data.records import Message
from softprompt.data.spans import prompt_ids
from softprompt.data.template import Template
from softprompt.errors import ConfigError, DataError, StoreError, WrongBaseError
from softprompt.evaluation.evaluate import answer_all
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for, no_prompt
from softprompt.formatting.inputs import text_to_record
from softprompt.formatting.text_prompt import text_prompt
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.forms import prompt_digest
from tests.support.artifacts import card
from tests.support.cases import random_prompt
from tests.support.rows import one, records
from tests.support.tiny import tiny_lm

TEXTS = ("Where is my parcel?", "Hm", "I was charged twice, please mend it")
PLAIN, CHAT = Template("text", "Review: {text}\nSentiment:"), Template("chat", "{text}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def soft(lm: FrozenLM, form: str, template: Template, n_tokens: int = 5, seed: int = 1) -> FormattedPrompt:
    return FormattedPrompt(random_prompt(lm, form, n_tokens, seed), template, layout_for(lm, template, form))


def all_kinds(lm: FrozenLM) -> dict[str, FormattedPrompt]:
    """Both forms, several lengths and templates, a text prompt and no prompt at all."""
    return {
        "kv": soft(lm, "kv", PLAIN),
        "long": soft(lm, "kv", CHAT, 11, 2),
        "embedding": soft(lm, "embedding", Template("text", "Q: {prompt}\nA:"), 3, 3),
        "talk": soft(lm, "embedding", Template("chat"), 4, 4),
        "base": no_prompt(lm, PLAIN),
        "written": text_prompt(lm, PLAIN, "Be brief.", records({"text": "Fine", "label": "good"})),
    }


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_mixed_is_each_alone(family: str) -> None:
    """Eighteen requests to six subjects in one batch, told apart by their names only."""
    lm, sampling = tiny_lm(family, bos=True), Sampling(8)
    formatted_prompts = all_kinds(lm)
    requests = [Request(text, name) for text in TEXTS for name in formatted_prompts]
    together = generate(lm, formatted_prompts, requests, sampling)
    alone = [generate(lm, {r.name: formatted_prompts[r.name]}, [r], sampling)[0] for r in requests]
    assert together == alone
    assert len({tuple(a.ids) for a in together}) >= len(formatted_prompts), "they say different things"
    backwards = dict(reversed(formatted_prompts.items()))
    assert generate(lm, backwards, requests[::-1], sampling) == together[::-1]


def test_an_answer_is_what_evaluation_gets() -> None:
    """The same text as a row of data, through the same subject."""
    lm, sampling = tiny_lm("llama", bos=True), Sampling(8)
    for formatted in (soft(lm, "kv", PLAIN), no_prompt(lm, PLAIN)):
        rows = records(*({"text": text, "label": "?"} for text in TEXTS))
        asked = generate(lm, {"a": formatted}, [Request(text, "a") for text in TEXTS], sampling)
        assert asked == answer_all(lm, formatted, rows, sampling)


def test_the_base_model_is_a_subject_without_a_prompt() -> None:
    """It answers as Transformers' own generation does."""
    lm = tiny_lm("llama", bos=True)
    ids = lm.tokenizer("Review: Hm\nSentiment:", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == lm.tokenizer.bos_token_id  # type: ignore[index]
    wanted = lm.hf_model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)  # type: ignore
    made = generate(lm, {"(base)": no_prompt(lm, PLAIN)}, [Request("Hm", "(base)")], Sampling(8))
    assert made[0].ids == wanted[0, ids.shape[1] :].tolist()  # type: ignore[union-attr]


def test_text_comes_as_it_is_made() -> None:
    """Piece by piece, with the number of the request."""
    lm, pieces = tiny_lm("llama"), defaultdict[int, list[str]](list)
    formatted_prompts = {"a": soft(lm, "kv", PLAIN), "b": no_prompt(lm, PLAIN)}
    requests = [Request(text, name) for text in TEXTS for name in formatted_prompts]
    made = generate(lm, formatted_prompts, requests, Sampling(12), on_text=lambda row, new: pieces[row].append(new))
    assert ["".join(pieces[row]) for row in range(len(requests))] == [a.text for a in made]
    assert max(len(new) for new in pieces.values()) > 1


def test_prefixes_are_run_once_for_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, runs, real = tiny_lm("llama"), list[int](), generation_module.prepare_prefixes

    def counted(lm: FrozenLM, prefixes: list[object]) -> object:
        runs.append(len(prefixes))
        return real(lm, prefixes)  # type: ignore[arg-type]

    monkeypatch.setattr(generation_module, "prepare_prefixes", counted)
    formatted_prompts = {"a": soft(lm, "kv", PLAIN), "b": soft(lm, "embedding", CHAT)}
    generate(lm, formatted_prompts, [Request(text, name) for text in TEXTS for name in formatted_prompts], Sampling(2))
    assert runs == [2]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (PLAIN, "Review: Hi\nSentiment:"),
        (Template("text", "Q: {prompt}\nA:"), "Q: Hi\nA:"),
        (CHAT, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (Template("chat", "{prompt}", "Be kind."), None),
        (Template("chat"), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_text_fills_the_field(template: Template, text: str | None) -> None:
    """Or is the user's turn."""
    lm = tiny_lm("llama")
    of = no_prompt(lm, template)
    ids = prompt_ids(text_to_record("Hi", of, "here"), template, lm.tokenizer)
    read = lm.tokenizer.decode([*of.prefix(lm).follow, *ids])
    system = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert read == (system if text is None else text)


def test_several_fields_come_as_a_json_object() -> None:
    of = no_prompt(tiny_lm("llama"), Template("text", "{text}\n{text2}"))
    row = text_to_record('{"text": "A", "text2": "B", "id": 3}', of, "stdin:4")
    assert (row.fields, row.where) == ({"text": "A", "text2": "B"}, "stdin:4")
    for text in ("Hi", "[]", '{"text": "A"}', '{"text": "A", "text2": 2}', "[" * 100_000):
        with pytest.raises(DataError, match=r'(?s)stdin:4: .*several fields.*"text2": "\.\.\."'):
            text_to_record(text, of, "stdin:4")


def test_the_record_of_a_text() -> None:
    lm = tiny_lm("llama")
    turn = text_to_record("Hi", no_prompt(lm, Template("chat")), "here")
    assert (turn.kind, turn.messages, turn.target) == ("messages", (Message("user", "Hi"),), None)
    row = text_to_record("Hi {text}", no_prompt(lm, PLAIN), "here")
    assert (row.fields, row.target) == ({"text": "Hi {text}"}, None), "braces in a text are text"
    assert prompt_ids(row, PLAIN, lm.tokenizer) == prompt_ids(
        one({"text": "Hi {text}", "label": "?"}), PLAIN, lm.tokenizer
    )


def test_a_text_that_does_not_fit() -> None:
    lm = tiny_lm("llama")
    texts, said = ["x", "x" * 300], list[str]()
    with pytest.raises(DataError, match=r"(?s)text 2 for a: .*does not fit in the model's context.*<= 256"):
        generate(
            lm,
            {"a": soft(lm, "kv", PLAIN)},
            [Request(text, "a") for text in texts],
            Sampling(4),
            on_text=lambda _, new: said.append(new),
        )
    assert not said, "refused before any is answered"


def saved(lm: FrozenLM, folder: Path, formatted: FormattedPrompt) -> None:
    assert formatted.prompt is not None
    facts = card(lm.geometry, layout=formatted.layout, template=formatted.template.to_dict())
    store.save(folder, formatted.prompt, facts)


def test_subjects_are_loaded_by_name_and_path(home: Path, tmp_path: Path) -> None:
    """Each in its own frame, under the name it was asked for by; what it says is what it said before."""
    lm = tiny_lm("llama", bos=True)
    mine = {"tone": soft(lm, "kv", PLAIN), str(tmp_path / "Far"): soft(lm, "embedding", CHAT)}
    saved(lm, home / "tone", mine["tone"])
    saved(lm, tmp_path / "Far", mine[str(tmp_path / "Far")])
    found = load_prompts(lm, list(mine))
    assert list(found) == list(mine)
    for name, formatted in found.items():
        assert formatted.prompt is not None
        assert prompt_digest(formatted.prompt) == prompt_digest(mine[name].prompt)  # type: ignore[arg-type]
        assert (formatted.template, formatted.layout) == (mine[name].template, mine[name].layout)
    requests = [Request(text, name) for text in TEXTS for name in mine]
    assert generate(lm, found, requests, Sampling(6)) == generate(lm, mine, requests, Sampling(6))


def test_subjects_that_cannot_be_loaded(home: Path) -> None:
    lm = tiny_lm("llama")
    saved(lm, home / "tone", soft(lm, "kv", PLAIN))
    with pytest.raises(StoreError, match=r"(?s)none.*no such soft prompt.*softprompt list"):
        load_prompts(lm, ["tone", "none"])
    with pytest.raises(StoreError, match="not a usable name"):
        load_prompts(lm, ["Tone"])
    with pytest.raises(WrongBaseError) as caught:
        load_prompts(tiny_lm("gpt2"), ["tone"])
    assert "tiny-llama" in str(caught.value) and "tiny-gpt2" in str(caught.value)


def test_a_row_ends_by_its_own_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end token of a batch mate's template is text like any other."""
    lm = tiny_lm("llama", bos=True)
    formatted_prompts = {"a": soft(lm, "kv", PLAIN), "b": soft(lm, "kv", CHAT)}
    requests = [Request("Hm", "a"), Request("Hm", "b")]
    free = generate(lm, formatted_prompts, requests, Sampling(6))
    foreign = free[0].ids[2]

    def ends(lm: FrozenLM, template: Template) -> list[int]:
        return [foreign] if template.kind == "chat" else []

    monkeypatch.setattr(generation_module, "end_ids", ends)
    assert generate(lm, formatted_prompts, requests, Sampling(6))[0].ids == free[0].ids


def test_an_unknown_name_is_told() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(ConfigError, match="unknown soft prompt"):
        generate(lm, {"a": no_prompt(lm, PLAIN)}, [Request("Hm", "b")], Sampling(2))
