"""A soft prompt beside base model and text prompt: the same rows, three subjects, each scored as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softprompt.evaluation.compare as comparison_module
from softprompt.data.records import Record
from softprompt.data.splits import data_digest as data_digest
from softprompt.data.splits import load_rows, load_splits
from softprompt.data.template import Template
from softprompt.errors import DataError, StoreError, WrongBaseError
from softprompt.evaluation.compare import EMPTY_TEXT_PROMPT, compare
from softprompt.evaluation.evaluate import Evaluation, evaluate
from softprompt.evaluation.held_out import HeldOutRows, held_out_rows, pick_shots
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for, no_prompt
from softprompt.formatting.text_prompt import instruction_for, text_prompt
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.prompts.forms import prompt_digest
from tests.support.artifacts import card
from tests.support.cases import random_prompt
from tests.support.rows import labelled, records, write_jsonl
from tests.support.tiny import tiny_lm

LABELS = ("even", "odd")
LABEL_TEMPLATE = Template("text", "Row: {text}\nLabel:")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def stored(lm: FrozenLM, template: Template, **facts: Any) -> FormattedPrompt:
    """A prompt of noise, saved as `tone`, and the subject it is."""
    made, layout = random_prompt(lm, "kv", 5, 1), layout_for(lm, template, "kv")
    written = card(lm.geometry, layout=layout, template=template.to_dict(), **facts)
    store.save(store.locate("tone"), made, written)
    return from_card(made, written)


def labels_of(rows: list[Record]) -> list[str | None]:
    return [row.target for row in rows]


def test_shots_show_every_answer_first() -> None:
    rows = records(*({"text": str(i), "label": label} for i, label in enumerate("aabacb")))
    assert [row.fields["text"] for row in pick_shots(rows, 3)] == ["0", "2", "4"]
    assert [row.fields["text"] for row in pick_shots(rows, 5)] == ["0", "2", "4", "1", "3"]
    assert [row.fields["text"] for row in pick_shots(rows, 2)] == ["0", "2"]
    assert len(pick_shots(rows, 99)) == 6
    assert pick_shots(rows, 0) == pick_shots([], 3) == []


def pair(found: HeldOutRows) -> tuple[list[Record], list[Record]]:
    return found.rows, found.shots


def folder(path: Path, **splits: list[dict[str, str]]) -> str:
    path.mkdir()
    for name, rows in splits.items():
        write_jsonl(path / f"{name}.jsonl", *rows)
    return str(path)


def test_a_folder_gives_its_test_rows_and_examples_from_train(tmp_path: Path) -> None:
    splits = {"train": labelled(6), "validation": labelled(4, 10), "test": labelled(2, 20)}
    rows, shots = pair(held_out_rows(folder(tmp_path / "all", **splits), 3, None))
    assert [row.fields["text"] for row in rows] == ["row 20", "row 21"]
    assert [row.fields["text"] for row in shots] == ["row 0", "row 1", "row 2"]
    splits.pop("test")
    rows, shots = pair(held_out_rows(folder(tmp_path / "two", **splits), 2, None))
    assert [row.fields["text"] for row in rows] == [f"row {i}" for i in range(10, 14)]
    assert labels_of(shots) == ["even", "odd"]


def test_rows_that_were_split_off_are_no_examples(tmp_path: Path) -> None:
    rows, shots = pair(held_out_rows(folder(tmp_path / "one", train=labelled(20)), 99, None))
    assert len(rows) == 2
    assert len(shots) == 18
    assert not {row.where for row in rows} & {row.where for row in shots}


def test_a_file_gives_its_rows_and_no_examples(tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", *labelled(4)))
    rows, shots = pair(held_out_rows(data, 3, None))
    assert [row.fields["text"] for row in rows] == [f"row {i}" for i in range(4)]
    assert shots == []


@pytest.mark.parametrize("whole", [False, True])
def test_examples_from_elsewhere(tmp_path: Path, whole: bool) -> None:
    """From a file, or from the training rows of a folder; the rows stay those of the data."""
    data = str(write_jsonl(tmp_path / "rows.jsonl", *labelled(4)))
    source = {"train": labelled(4, 30), "validation": labelled(2, 40)}
    other = folder(tmp_path / "other", **source) if whole else str(write_jsonl(tmp_path / "o.jsonl", *labelled(4, 30)))
    rows, shots = pair(held_out_rows(data, 2, other))
    assert len(rows) == 4
    assert [row.fields["text"] for row in shots] == ["row 30", "row 31"]
    full = folder(tmp_path / "full", train=labelled(6), validation=labelled(2, 20))
    assert [row.fields["text"] for row in held_out_rows(full, 1, other).shots] == ["row 30"]


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        held_out_rows(str(tmp_path / "missing.jsonl"), 3, None)


def test_three_subjects_on_the_same_rows() -> None:
    """Each loss is that of its own subject, and all three differ."""
    lm, template = tiny_lm("llama", bos=True), Template("text", "{text}")
    soft, rows = stored(lm, template), records(*({"text": text} for text in ("one text", "another", "third")))
    found = compare(lm, "tone", rows, instruction="Go on.")
    formatted_prompts = (no_prompt(lm, template), text_prompt(lm, template, "Go on."), soft)
    assert (found.base, found.text_prompt, found.soft_prompt) == tuple(evaluate(lm, s, rows) for s in formatted_prompts)
    assert len({e.scores["loss"].value for e in (found.base, found.text_prompt, found.soft_prompt)}) == 3
    assert found.to_dict() == {
        "base": found.base.to_dict(),
        "text_prompt": found.text_prompt.to_dict(),
        "soft_prompt": found.soft_prompt.to_dict(),
    }
    assert [values["rows"] for values in found.to_dict().values()] == [3, 3, 3]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FormattedPrompt, list[Record], dict[str, Any]]]:
    """What is evaluated, without running a model."""
    seen: list[tuple[FormattedPrompt, list[Record], dict[str, Any]]] = []

    def listen(lm: FrozenLM, formatted: FormattedPrompt, rows: list[Record], **options: Any) -> Evaluation:
        seen.append((formatted, rows, options))
        return Evaluation({}, len(rows), (str(len(seen)),))

    monkeypatch.setattr(comparison_module, "evaluate", listen)
    return seen


def test_all_get_the_same_rows_labels_and_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, seen = tiny_lm("llama"), watched(monkeypatch)
    soft, rows = stored(lm, LABEL_TEMPLATE, labels=LABELS), records(*labelled(3))
    found = compare(lm, "tone", rows, sampling=Sampling(7))
    assert [answers for (answers,) in (e.answers for e in (found.base, found.text_prompt, found.soft_prompt))] == [
        "1",
        "2",
        "3",
    ]
    assert all(given is rows for _, given, _ in seen)
    wanted = {"labels": LABELS, "sampling": Sampling(7), "extra_metrics": None}
    assert [{key: value for key, value in options.items() if key != "progress"} for *_, options in seen] == [wanted] * 3
    base, text, last = (formatted for formatted, *_ in seen)
    assert base.prompt is None and text.prompt is None and last.prompt is not None and soft.prompt is not None
    assert prompt_digest(last.prompt) == prompt_digest(soft.prompt)
    assert base.template == last.template == LABEL_TEMPLATE


@pytest.mark.parametrize(
    ("facts", "given", "opening"),
    [
        ({"labels": LABELS}, None, instruction_for(LABELS) + "\n\n"),
        ({"labels": LABELS, "method": {"init_text": "Odd {or} even?"}}, None, "Odd {or} even?\n\n"),
        ({"labels": LABELS, "method": {"init_text": "Odd?"}}, "Mine", "Mine\n\n"),
        ({"labels": LABELS, "method": {"init_text": "Odd?"}}, "", ""),
        ({"method": {"init_text": None}}, None, ""),
        ({}, None, ""),
    ],
)
def test_the_instruction_of_the_text_prompt(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], given: str | None, opening: str
) -> None:
    """The user's, else the text that the soft prompt began as, else one of the labels."""
    lm, seen = tiny_lm("llama"), watched(monkeypatch)
    stored(lm, LABEL_TEMPLATE, **facts)
    shots = records(*labelled(2, 50))
    compare(lm, "tone", records(*labelled(3)), instruction=given, shots=shots)
    examples = "Row: row 50\nLabel: even\n\nRow: row 51\nLabel: odd\n\n"
    text = seen[1][0].layout.follow
    assert text == (opening + examples + "Row:")


def test_labels_are_those_of_the_card() -> None:
    """Not those that happen to be in the rows: with one class only, every guess would be right."""
    lm = tiny_lm("llama")
    stored(lm, LABEL_TEMPLATE, labels=("even", "odd", "neither"))
    rows = records(*({"text": f"row {i}", "label": "neither"} for i in range(6)))
    found = compare(lm, "tone", rows)
    said = {answer for e in (found.base, found.text_prompt, found.soft_prompt) for answer in e.answers}
    assert said - {"neither"}
    assert said <= {"even", "odd", "neither"}


def test_several_soft_prompts() -> None:
    """Each is scored as it is alone; the baselines are those of the first."""
    lm, template = tiny_lm("llama"), Template("text", "{text}")
    rows = records({"text": "one text"}, {"text": "another"})
    stored(lm, template)
    other = Template("text", "So: {text}")
    layout = layout_for(lm, other, "embedding")
    facts = card(lm.geometry, layout=layout, template=other.to_dict())
    store.save(store.locate("other"), random_prompt(lm, "embedding", 3, 2), facts)
    alone = {name: compare(lm, name, rows, instruction="Go on.") for name in ("tone", "other")}
    both = compare(lm, ["tone", "other"], rows, instruction="Go on.")
    assert both.soft_prompts == {name: one.soft_prompt for name, one in alone.items()}
    assert (both.base, both.text_prompt) == (alone["tone"].base, alone["tone"].text_prompt)
    assert both.to_dict().keys() == {"base", "text_prompt", "soft_prompts"}
    assert "different templates; base model and text prompt have that of tone" in both.notes[0]
    assert compare(lm, ["tone"], rows, instruction="Go on.") == alone["tone"]


def test_a_prompt_that_cannot_be_used() -> None:
    rows = records(*labelled(2))
    with pytest.raises(StoreError, match="no such soft prompt"):
        compare(tiny_lm("llama"), "tone", rows)
    stored(tiny_lm("llama"), LABEL_TEMPLATE, labels=LABELS)
    with pytest.raises(WrongBaseError, match=r"(?s)tiny-gpt2|tiny-llama"):
        compare(tiny_lm("gpt2"), "tone", rows)
    with pytest.raises(DataError, match="no rows"):
        compare(tiny_lm("llama"), "tone", [])


def trained_on(rows: list[Record], seed: int = 0) -> Card:
    return card(data={"train_sha256": data_digest(rows)}, recipe={"seed": seed})


@pytest.mark.parametrize("seed", [0, 3])
def test_of_a_file_that_was_trained_on_only_the_rows_held_out_are_scored(tmp_path: Path, seed: int) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", *labelled(30)))
    splits = load_splits(data, seed=seed)
    found = held_out_rows(data, 2, None, trained_on(splits.train, seed))
    assert found.rows == splits.validation
    assert not {row.where for row in found.rows} & {row.where for row in splits.train}
    assert len(found.shots) == 2 and all(shot in splits.train for shot in found.shots)
    assert found.notes == ("scored on the 3 rows held out in training; the other 27 were trained on",)
    other = trained_on(splits.train, seed + 1)
    assert len(held_out_rows(data, 2, None, other).rows) == 30, "of another seed, other rows were held out"


def test_the_training_rows_themselves_are_scored_with_a_note(tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "train.jsonl", *labelled(6)))
    found = held_out_rows(data, 3, None, trained_on(load_rows(data)))
    assert (len(found.rows), found.shots) == (6, [])
    assert found.notes == ("the soft prompt was trained on these very rows",)
    one = str(write_jsonl(tmp_path / "one.jsonl", *labelled(1)))
    assert held_out_rows(one, 3, None, trained_on(load_rows(data))) == held_out_rows(one, 3, None)


def test_a_folder_is_split_as_it_was_in_training(tmp_path: Path) -> None:
    data = folder(tmp_path / "one", train=labelled(30))
    splits = load_splits(data, seed=7)
    found = held_out_rows(data, 1, None, trained_on(splits.train, 7))
    assert found.rows == splits.validation != held_out_rows(data, 1, None).rows
    assert found.notes[-1] == "scored on the validation rows"
    strange = card(recipe={"seed": "x"})
    assert held_out_rows(data, 1, None, strange) == held_out_rows(data, 1, None)


def test_an_empty_text_prompt_is_noted() -> None:
    lm, template = tiny_lm("llama"), Template("text", "{text}")
    stored(lm, template)
    rows = records({"text": "one text"})
    assert compare(lm, "tone", rows).notes == (EMPTY_TEXT_PROMPT,)
    assert compare(lm, "tone", rows, instruction="Go on.").notes == ()


def test_several_cards_share_the_rows_that_none_was_trained_on(tmp_path: Path) -> None:
    """Of one file each held out others; of a folder too."""
    rows = labelled(100)
    data, whole = str(write_jsonl(tmp_path / "rows.jsonl", *rows)), folder(tmp_path / "one", train=rows)
    splits = [load_splits(data, seed=seed) for seed in (0, 3)]
    cards = [trained_on(own.train, seed) for own, seed in zip(splits, (0, 3), strict=True)]
    shared = [row.fields["text"] for row in splits[0].validation if row in splits[1].validation]
    assert 0 < len(shared) < 10
    composed = card(data={"trained_on": [place for own in cards for place in own.trained_on]})
    for given in (cards, [composed], [composed, *cards]):
        found = held_out_rows(data, 3, None, *given)
        assert [row.fields["text"] for row in found.rows] == shared
        assert found.notes == (
            f"scored on the {len(shared)} rows held out in training; the other {100 - len(shared)} were trained on",
        )
        assert not {row.where for row in found.shots} & {row.where for row in found.rows}
        found = held_out_rows(whole, 3, None, *given)
        assert [row.fields["text"] for row in found.rows] == shared
        assert found.notes[-1] == f"scored on the {len(shared)} rows that all had for validation"
        assert not {row.where for row in found.shots} & {row.where for row in found.rows}
    small = str(write_jsonl(tmp_path / "small.jsonl", *labelled(12)))
    seeds = next(s for s in range(1, 99) if load_splits(small, seed=s).validation != load_splits(small).validation)
    apart = [trained_on(load_splits(small, seed=seed).train, seed) for seed in (0, seeds)]
    with pytest.raises(DataError, match="every row was trained on by one of these"):
        held_out_rows(small, 3, None, *apart)


def test_one_of_several_was_trained_on_these_very_rows(tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "train.jsonl", *labelled(6)))
    found = held_out_rows(data, 3, None, trained_on(load_rows(data)), card(name="other"))
    assert len(found.rows) == 6
    assert found.notes == ("tone was trained on these very rows",)
