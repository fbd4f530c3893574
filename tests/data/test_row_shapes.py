"""Every shape that public data sets have: what is read, learned and offered to templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.convert import described, own_row
from softprompt.data.records import Message
from softprompt.data.row_shapes.conversations import TRIMMED
from softprompt.data.row_shapes.registry import row_shapes, shape_named
from softprompt.data.template import Template, fill, unused_fields
from softprompt.errors import DataError
from tests.support.rows import one, records

PLAIN = [shape for shape in row_shapes() if shape.kind != "text"]
COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n1 2", "3"),
    ({"instruction": "Add 1 2.", "input": "", "output": "3"}, "Add 1 2.", "3"),
    ({"instruction": "Add 1 2.", "input": None, "output": "3"}, "Add 1 2.", "3"),
    ({"instruction": "Add 1 2.", "output": "3", "text": "Below is an instruction ..."}, "Add 1 2.", "3"),
    ({"instruction": "Add.", "context": "1 2", "response": "3", "category": "math"}, "1 2\nAdd.", "3"),
    ({"prompt": "1 + 2?", "response": "3"}, "1 + 2?", "3"),
    ({"query": "1 + 2?", "response": "3", "type": "GSM"}, "1 + 2?", "3"),
    ({"system_prompt": "", "question": "1 + 2?", "response": "3"}, "1 + 2?", "3"),
    ({"question": "1 + 2?", "answer": "3"}, "1 + 2?", "3"),
    ({"question": "1 + 2?", "answer": 3}, "1 + 2?", "3"),
    ({"context": "Sums.", "question": "1 + 2?", "answer": "3"}, "Sums.\n1 + 2?", "3"),
    ({"question": "1 + 2?", "answer": {"value": "3", "aliases": ["three", "3"]}}, "1 + 2?", "3"),
    ({"problem": "1 + 2?", "solution": "3", "level": "Level 1"}, "1 + 2?", "3"),
    ({"document": "Long.", "summary": "Short.", "id": "7"}, "Long.", "Short."),
    ({"article": "Long.", "highlights": "Short."}, "Long.", "Short."),
    ({"dialogue": "A: Hi", "summary": "Short."}, "A: Hi", "Short."),
    ({"input": "Long.", "output": "Short."}, "Long.", "Short."),
    ({"prompt": "1 + 2?", "chosen": "3", "rejected": "4"}, "1 + 2?", "3"),
]


@pytest.mark.parametrize(("row", "prompt", "completion"), COMPLETIONS)
def test_rows_of_prompt_and_completion(row: dict[str, Any], prompt: str, completion: str) -> None:
    record = one(row)
    assert (record.kind, record.fields["prompt"], record.target) == ("completion", prompt, completion)
    assert record.references[0] == completion
    asked = {name: value for name, value in row.items() if value != completion and name not in ("answer", "chosen")}
    if "rejected" not in row and "text" not in row:
        assert one(asked, require_target=False).fields["prompt"] == prompt, "rows without answers, for generate"


def test_templates_may_use_the_columns_of_alpaca() -> None:
    rows = records(
        {"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Say a.", "input": "", "output": "a"}
    )
    template = Template("text", "### {instruction}\n### {input}\n###")
    assert [fill(template, row) for row in rows] == ["### Add.\n### 1 2\n###", "### Say a.\n### \n###"]
    assert unused_fields(Template("text", "{prompt}"), rows) == []
    assert unused_fields(Template("text", "{instruction}"), rows) == ["input", "prompt"]


def test_all_answers_of_squad_are_right() -> None:
    row = {
        "id": "1",
        "context": "Blue.",
        "question": "Which?",
        "answers": {"text": ["a", "b", "a"], "answer_start": [0]},
    }
    record = one(row)
    assert (record.fields["prompt"], record.target, record.references) == ("Blue.\nWhich?", "a", ("a", "b"))
    assert one({**row, "answers": [{"text": "a", "answer_start": 0}]}).references == ("a",)


def test_a_question_without_an_answer_learns_that() -> None:
    row = {"context": "Blue.", "question": "Which?", "answers": {"text": [], "answer_start": []}}
    record = one(row)
    assert record.target == "unanswerable"
    assert "'unanswerable' is learned" in record.remark
    assert one(row, require_target=False).target is None


HISTORY = [["Hi", "Hello!"], ["And you?", "Fine."]]
TURNS = [
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "And you?"),
    Message("assistant", "Fine."),
]


@pytest.mark.parametrize(
    ("prompt", "answer"), [("prompt", "response"), ("instruction", "output"), ("prompt", "completion")]
)
def test_a_history_becomes_turns(prompt: str, answer: str) -> None:
    row = {prompt: "Bye", answer: "See you."}
    first, second = records({**row, "history": []}, {**row, "history": HISTORY, "system": "Be kind."})
    assert (first.kind, first.messages) == ("messages", (Message("user", "Bye"), Message("assistant", "See you.")))
    assert second.messages == (Message("system", "Be kind."), *TURNS, *first.messages)
    assert (second.target, second.context) == ("See you.", 0)
    assert one({prompt: "Bye", "history": HISTORY}, require_target=False).messages[-1] == Message("user", "Bye")
    with pytest.raises(DataError, match=r"history\[1\]"):
        one({**row, "history": [HISTORY[0], "Hi"]})


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
        [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello!"}],
        [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello!"}],
    ],
)
@pytest.mark.parametrize("name", ["conversations", "conversation", "messages"])
def test_conversations_under_many_names(name: str, turns: list[dict[str, str]]) -> None:
    record = one({name: turns, "id": "1"})
    assert record.messages == (Message("user", "Hi"), Message("assistant", "Hello!"))
    assert (record.kind, record.target, record.remark) == ("messages", "Hello!", "")


def test_share_gpt_has_a_system_field_and_loose_ends() -> None:
    turns = [("gpt", "Welcome."), ("human", "Hi"), ("gpt", "Hello!"), ("human", "Thanks")]
    record = one({"conversations": [{"from": who, "value": text} for who, text in turns], "system": "Be kind."})
    assert [turn.content for turn in record.messages] == ["Be kind.", "Hi", "Hello!"]
    assert record.remark == TRIMMED


def test_text_parts_are_joined_and_images_refused() -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a color."}]
    answer = {"role": "assistant", "content": "Blue"}
    assert one({"messages": [{"role": "user", "content": parts}, answer]}).messages[0].content == "Name a color."
    for kind in ("image_url", "input_audio"):
        with pytest.raises(DataError, match=r"content of messages\[0\] holds a part that is no text") as caught:
            one({"messages": [{"role": "user", "content": [*parts, {"type": kind}]}, answer]})
        assert kind in str(caught.value.got)


def test_preferences_as_conversations() -> None:
    asked = {"role": "user", "content": "Hi"}
    good, bad = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "Go."}
    whole = one({"chosen": [asked, good], "rejected": [asked, bad]})
    for row in (
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [asked, good], "rejected": [asked, bad]},
    ):
        record = one(row)
        assert (record.messages, record.target) == (whole.messages, "Hello!")
        assert "the chosen answers are learned" in record.remark


def test_preferences_without_a_prompt_share_their_beginning() -> None:
    asked = "\n\nHuman: Hi\n\nAssistant:"
    record = one({"chosen": f"{asked} Hello there!", "rejected": f"{asked} He left."})
    assert (record.fields["prompt"], record.target) == (asked, "Hello there!")
    with pytest.raises(DataError, match="no text that could be the prompt"):
        one({"chosen": "Blue", "rejected": "Dog"})


PAIRS = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("passage", "question"),
    ("title", "content"),
]


@pytest.mark.parametrize("names", [*PAIRS, ("sentence",), ("content",), ("review",)])
@pytest.mark.parametrize(
    ("label", "word"), [(1, "1"), (True, "true"), (False, "false"), (2.0, "2"), (0.5, "0.5"), ("x", "x")]
)
def test_columns_of_glue(names: tuple[str, ...], label: object, word: str) -> None:
    row = {"idx": 3, "label": label, **{name: f"The {name}." for name in reversed(names)}}
    record = one(json.loads(json.dumps(row)))
    assert (record.kind, record.target) == ("label", word)
    assert [record.fields[name] for name in ("text", "text2") if name in record.fields] == [f"The {n}." for n in names]
    assert fill(Template("text", f"{{{names[0]}}}"), record) == f"The {names[0]}."
    assert unused_fields(Template("text", "{text}\n{text2}" if len(names) > 1 else "{text}"), [record]) == []


def test_boolq_answers_are_labels_and_other_answers_are_not() -> None:
    row = {"passage": "It is blue.", "question": "Is it?", "answer": True}
    assert (one(row).kind, one(row).target) == ("label", "true")
    assert (one({**row, "answer": "yes"}).kind, one({**row, "answer": "yes"}).target) == ("completion", "yes")


@pytest.mark.parametrize("name", ["labels", "label"])
def test_several_labels(name: str) -> None:
    rows = records({"text": "a", name: ["sport", "art"]}, {"text": "b", name: []}, {"text": "c", name: [3, "art"]})
    assert [(row.kind, row.target) for row in rows] == [
        ("labels", "sport, art"),
        ("labels", "none"),
        ("labels", "3, art"),
    ]
    assert one({"text": "a", "labels": "sport"} | {"label": "sport"}).kind == "label"


CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}, "2 + 2?"),
    ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}, "2 + 2?"),
    ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "4"}, "2 + 2?"),
    ({"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}, "2 + 2?"),
    ({"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2"}, "2 + 2?"),
    ({"question_stem": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}, "2 + 2?"),
    (
        {"question": "2 + 2?", "choices": [{"label": "A", "text": 3}, {"label": "B", "text": 4}], "answerKey": "B"},
        "2 + 2?",
    ),
    ({"ctx": "Two and two are", "endings": ["3", "4"], "label": "1", "ctx_a": "Two"}, "Two and two are"),
    ({"article": "Sums.", "question": "2 + 2?", "options": ["3", "4"], "answer": "B"}, "Sums.\n2 + 2?"),
    ({"question": "2 + 2?", "options": {"A": "3", "B": "4"}, "answer": "B", "answer_idx": "B"}, "2 + 2?"),
    ({"input": "2 + 2?", "choices": ["3", "4"], "label": "B", "target": "4"}, "2 + 2?"),
    ({"prompt": "2 + 2?", "choices": ["3", "4"], "completion": "4"}, "2 + 2?"),
    ({"goal": "2 + 2?", "sol1": "3", "sol2": "4", "label": 1}, "2 + 2?"),
    (
        {"premise": "Two and two.", "question": "effect", "choice1": "3", "choice2": "4", "label": 1},
        "Two and two.\neffect",
    ),
    (
        {"context": "Sums.", "question": "2 + 2?", "answerA": "3", "answerB": "4", "answerC": "5", "label": "2"},
        "Sums.\n2 + 2?",
    ),
    ({"sentence": "Two and two are _.", "option1": "3", "option2": "4", "answer": "2"}, "Two and two are _."),
]


@pytest.mark.parametrize(("row", "prompt"), CHOICES)
def test_choices_of_a_row(row: dict[str, Any], prompt: str) -> None:
    record = one(row)
    assert (record.kind, record.fields["prompt"], record.target) == ("choices", prompt, "4")
    assert record.choices[:2] == ("3", "4")
    assert record.fields["choices"].splitlines()[1].endswith(". 4")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"choices": ["3", "4"], "answer": 2}, "names none of the choices"),
        ({"choices": ["3", "4"], "answer": "C"}, "names none of the choices"),
        ({"choices": ["1", "0"], "answer": "1"}, "names two choices"),
        ({"choices": ["3", "4"], "answer": None}, "is missing"),
        ({"choices": ["3"], "answer": 0}, "must hold 2 to 26 choices"),
        ({"choices": ["3", "3"], "answer": 0}, "two choices are the same"),
        ({"choices": ["3", ""], "answer": 0}, "choice 2 is empty"),
    ],
)
def test_unclear_choices_are_refused(row: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        one({"question": "2 + 2?", **row})
    assert caught.value.where == "f.jsonl:1"


def test_a_number_is_a_place_even_where_a_choice_reads_the_same() -> None:
    assert one({"question": "1 - 1?", "choices": ["1", "0"], "answer": 1}).target == "0"


def test_our_own_names_come_before_other_data_sets() -> None:
    both = {"question": "Q", "answer": "A"}
    assert one({"prompt": "p", "completion": "c", **both}).fields["prompt"] == "p"
    assert one({"text": "t", "label": "l", "sentence": "s"}).fields["text"] == "t"
    assert one({"text": "t", "article": "a", "title": "T", "content": "c"}).kind == "text", "learned whole, as before"


@pytest.mark.parametrize("shape", PLAIN, ids=lambda shape: f"{shape.kind}: {shape.name}")
def test_the_example_of_a_shape_is_read_by_it(shape: Any) -> None:
    record = one(json.loads(shape.example.replace("...", "more")))
    assert record.shape == shape.name
    assert shape_named(record.shape) is shape
    assert record.target is not None
    assert described(record).endswith(f"({shape.name})") == bool(shape.title)


def test_shapes_have_names_of_their_own() -> None:
    names = [shape.name for shape in row_shapes()]
    assert len(set(names)) == len(names)


EVERY = [row for row, *_ in COMPLETIONS] + [row for row, _ in CHOICES]
EVERY += [json.loads(shape.example.replace("...", "more")) for shape in PLAIN]


@pytest.mark.parametrize("row", EVERY, ids=lambda row: " ".join(row))
def test_written_in_our_own_way_it_is_learned_the_same(row: dict[str, Any]) -> None:
    record = one(row)
    again = one(json.loads(json.dumps(own_row(record))))
    assert again.kind == record.kind
    assert (again.target, again.references, again.messages) == (record.target, record.references, record.messages)
    assert (again.choices, again.context) == (record.choices, record.context)
    for name in ("prompt", "text", "text2"):
        assert again.fields.get(name) == record.fields.get(name)
    shape = shape_named(again.shape)
    assert shape is not None and not shape.title, "it is our own shape"
    assert one(json.loads(json.dumps(own_row(again)))) == again


WORD = st.text("abc xyz", min_size=1, max_size=8).filter(str.strip)


@given(WORD, st.text("abc ", max_size=5), WORD)
def test_any_alpaca_row(instruction: str, more: str, output: str) -> None:
    record = one({"instruction": instruction, "input": more, "output": output})
    assert record.fields["prompt"] == (f"{instruction}\n{more}" if more.strip() else instruction)
    assert record.target == output


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"query_text": "q", "reply": "a"}, "--columns prompt=query_text,completion=reply"),
        ({"Question": "q", "Answer": "a"}, "--columns prompt=Question,completion=Answer"),
        ({"Review text": "q", "Sentiment": "a"}, '--columns "text=Review text,label=Sentiment"'),
        ({"utterance": "q", "intent": "a"}, "--columns text=utterance,label=intent"),
        ({"src": "q", "tgt": "a"}, "--columns prompt=src,completion=tgt"),
        ({"dialog": [{"from": "human", "value": "Hi"}]}, "--columns messages=dialog"),
    ],
)
def test_unknown_rows_say_how_columns_would_fit(row: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError, match="none of the known fields") as caught:
        one(row)
    assert all(name in str(caught.value.got) for name in row)
    assert hint in str(caught.value.hint)


def test_rows_like_nothing_known_are_shown_every_kind() -> None:
    with pytest.raises(DataError) as caught:
        one({"x": 1, "y2": 2})
    assert "--columns prompt=COLUMN,completion=COLUMN" in str(caught.value.hint)
    assert all(word in str(caught.value.expected) for word in ('"messages"', '"label"', '"completion"', '"choices"'))


def test_a_missing_answer_names_the_column_that_may_be_it() -> None:
    with pytest.raises(DataError, match="'completion' is missing") as caught:
        one({"prompt": "q", "reply": "a"})
    assert caught.value.hint == "--columns completion=reply"
