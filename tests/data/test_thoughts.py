"""Reasoning models: thoughts in rows are learned, none given means an empty thought."""

from __future__ import annotations

import pytest

from softprompt.data.default_template import default_template
from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids
from softprompt.data.template import Template
from softprompt.data.template_notes import row_notes
from softprompt.data.thoughts import split_thought, thought_format, unclosed_thought
from softprompt.data.tokenize import tokenize
from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.errors import DataError
from tests.support.bytes_tokenizer import Turns
from tests.support.reasoning import TEMPLATES, reasoning_tokenizer
from tests.support.rows import one, records
from tests.support.tiny import tiny_tokenizer

PLAIN = ("Hi", "Yo", "Bye", "See")
THOUGHTFUL = ("Hi", "<think>\nGreet.\n</think>\n\nYo", "Bye", "<think>\nPart.\n</think>\n\nSee")
END, USER, SAYS = "<|im_end|>", "<|im_start|>user\n", "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"


def turns(*contents: str) -> Turns:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def marked(rows: list[Record], tokenizer: Tokenizer, template: Template | None = None) -> list[str]:
    """The text of every example with its learned runs in «»."""
    template = template or default_template(rows, tokenizer)
    texts = []
    for example in tokenize(rows, template, tokenizer, max_length=10_000):
        text, before = "", False
        for token, learned in zip(example.ids, example.mask, strict=True):
            text += ("»" if before else "«") * (learned != before) + decode([token], tokenizer)
            before = learned
        texts.append(text + "»" * before)
    return texts


WANTED = {
    ("qwen3", PLAIN): [
        f"{USER}Hi{END}\n{SAYS}{EMPTY}«Yo{END}»",
        f"{USER}Hi{END}\n{SAYS}Yo{END}\n{USER}Bye{END}\n{SAYS}{EMPTY}«See{END}»",
    ],
    ("qwen3", THOUGHTFUL): [
        f"{USER}Hi{END}\n{SAYS}«<think>\nGreet.\n</think>\n\nYo{END}»",
        f"{USER}Hi{END}\n{SAYS}Yo{END}\n{USER}Bye{END}\n{SAYS}«<think>\nPart.\n</think>\n\nSee{END}»",
    ],
    ("thinking", PLAIN): [
        f"{USER}Hi{END}\n{SAYS}{EMPTY}«Yo{END}»",
        f"{USER}Hi{END}\n{SAYS}Yo{END}\n{USER}Bye{END}\n{SAYS}{EMPTY}«See{END}»",
    ],
    ("thinking", THOUGHTFUL): [
        f"{USER}Hi{END}\n{SAYS}<think>\n«Greet.\n</think>\n\nYo{END}»",
        f"{USER}Hi{END}\n{SAYS}Yo{END}\n{USER}Bye{END}\n{SAYS}<think>\n«Part.\n</think>\n\nSee{END}»",
    ],
    ("r1", PLAIN): [
        f"<s>Hi<|im_start|>{EMPTY}«Yo{END}»",
        f"<s>Hi<|im_start|>Yo{END}<s>Bye<|im_start|>{EMPTY}«See{END}»",
    ],
    ("r1", THOUGHTFUL): [
        "<s>Hi<|im_start|><think>\n«Greet.\n</think>\n\nYo<|im_end|>»",
        f"<s>Hi<|im_start|>Yo{END}<s>Bye<|im_start|><think>\n«Part.\n</think>\n\nSee{END}»",
    ],
    ("r1_first", PLAIN): [f"<s>Hi<|im_start|>«Yo{END}»<s>Bye<|im_start|>«See{END}»"],
    ("r1_first", THOUGHTFUL): [
        f"<s>Hi<|im_start|>«<think>\nGreet.\n</think>\n\nYo{END}»",
        f"<s>Hi<|im_start|>Yo{END}<s>Bye<|im_start|>«<think>\nPart.\n</think>\n\nSee{END}»",
    ],
    ("v3.1", PLAIN): [f"<s>Hi<|im_start|></think>«Yo{END}»<s>Bye<|im_start|></think>«See{END}»"],
    ("v3.1", THOUGHTFUL): [
        f"<s>Hi<|im_start|><think>«Greet.</think>Yo{END}»",
        f"<s>Hi<|im_start|></think>Yo{END}<s>Bye<|im_start|><think>«Part.</think>See{END}»",
    ],
}


@pytest.mark.parametrize(("family", "contents"), WANTED)
def test_a_conversation_is_learned_as_the_model_writes_it(family: str, contents: tuple[str, ...]) -> None:
    """Also turn by turn: with the turns before it as the template writes them then."""
    tokenizer = reasoning_tokenizer(family)
    wanted = WANTED[family, contents]
    assert marked([one({"messages": turns(*contents)})], tokenizer) == wanted
    (single,) = marked([one({"messages": turns(*contents[:2])})], tokenizer)
    assert wanted[0].startswith(single)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("contents", [PLAIN, THOUGHTFUL])
def test_an_answer_is_generated_after_what_was_given_in_training(family: str, contents: tuple[str, ...]) -> None:
    tokenizer = reasoning_tokenizer(family)
    record = one({"messages": turns(*contents)})
    template = default_template([record], tokenizer)
    example = tokenize([record], template, tokenizer, max_length=10_000)[-1]
    first_learned = max(i for i, mask in enumerate(example.mask) if not mask) + 1
    asked = one({"messages": turns(*contents[:-1])}, require_target=False)
    assert prompt_ids(record, template, tokenizer) == list(example.ids[:first_learned])
    assert prompt_ids(asked, template, tokenizer) == list(example.ids[:first_learned])


@pytest.mark.parametrize(
    ("family", "answer", "text"),
    [
        ("r1", "good", f"<s>fine<|im_start|>{EMPTY}«good{END}»"),
        ("r1", "<think>Hm</think>good", f"<s>fine<|im_start|><think>\n«Hm\n</think>\n\ngood{END}»"),
        ("r1", "Hm</think>good", f"<s>fine<|im_start|><think>\n«Hm\n</think>\n\ngood{END}»"),
        ("thinking", "good", f"{USER}fine{END}\n{SAYS}{EMPTY}«good{END}»"),
        ("qwen3", "good", f"{USER}fine{END}\n{SAYS}{EMPTY}«good{END}»"),
        ("qwen3", "<think>Hm</think>good", f"{USER}fine{END}\n{SAYS}«<think>\nHm\n</think>\n\ngood{END}»"),
        ("v3.1", "good", f"<s>fine<|im_start|></think>«good{END}»"),
        ("v3.1", "<think>Hm</think>good", f"<s>fine<|im_start|><think>«Hm</think>good{END}»"),
    ],
)
@pytest.mark.parametrize("fields", [("text", "label"), ("prompt", "completion"), ("messages", "")])
def test_every_kind_of_row_is_read_alike(family: str, answer: str, text: str, fields: tuple[str, str]) -> None:
    tokenizer = reasoning_tokenizer(family)
    row = (
        {"messages": turns("fine", answer)}
        if fields[0] == "messages"
        else dict(zip(fields, ("fine", answer), strict=True))
    )
    rows, template = [one(row)], default_template([one(row)], tokenizer)
    (found,) = marked(rows, tokenizer)
    opening = "" if fields[0] == "messages" else text[: text.index("fine")].rstrip()
    assert opening + found == text
    given = prompt_ids(rows[0], template, tokenizer)
    assert opening + decode(given, tokenizer) == text[: text.index("«")]


@pytest.mark.parametrize("family", TEMPLATES)
def test_rows_with_and_without_thoughts(family: str) -> None:
    """Each as it is; in use the model does what most rows do, and a user is told."""
    tokenizer = reasoning_tokenizer(family)
    rows = records(*({"messages": turns(*contents[:2])} for contents in (PLAIN, THOUGHTFUL, THOUGHTFUL)))
    template = default_template(rows, tokenizer)
    assert template == Template("chat", thoughts="given")
    alone = [marked([row], tokenizer)[0] for row in rows]
    assert marked(rows, tokenizer) == alone
    notes = row_notes(rows, template, tokenizer, 3)
    assert notes[0] == "2 of 3 rows begin with a thought (<think>), which is learned"
    assert "the model thinks first" in notes[1]
    assert "«" not in (given := decode(prompt_ids(rows[0], template, tokenizer), tokenizer))
    assert given == decode(prompt_ids(rows[1], template, tokenizer), tokenizer), "by the template, not by the row"


@pytest.mark.parametrize("family", ["r1", "thinking"])
def test_an_opened_thought_is_said(family: str) -> None:
    tokenizer, rows = reasoning_tokenizer(family), records({"text": "fine", "label": "good"})
    (note,) = row_notes(rows, default_template(rows, tokenizer), tokenizer, 1)
    assert "opens a thought (<think>) and the rows give none" in note


def test_split_conversations_are_said() -> None:
    tokenizer, rows = reasoning_tokenizer("qwen3"), [one({"messages": turns(*PLAIN)})]
    (note,) = row_notes(rows, default_template(rows, tokenizer), tokenizer, 2)
    assert "1 conversations are learned as 2 rows" in note


def test_a_thought_that_is_not_closed_is_refused() -> None:
    """It would teach to think without an end."""
    for family in TEMPLATES:
        for row in ({"messages": turns("Hi", "<think>Hm. Yo")}, {"prompt": "Hi", "completion": "<think>Hm. Yo"}):
            with pytest.raises(DataError, match="does not close it") as caught:
                marked([one(row)], reasoning_tokenizer(family))
            assert caught.value.where == "f.jsonl:1"
    with pytest.raises(DataError, match="a thought and nothing else"):
        marked([one({"messages": turns("Hi", "<think>Hm</think>")})], reasoning_tokenizer("r1"))


def test_thoughts_are_words_where_the_chat_template_knows_none() -> None:
    tokenizer, content = tiny_tokenizer(), "<think>Hm</think> Yo"
    assert thought_format(tokenizer) is None
    (found,) = marked([one({"messages": turns("Hi", content)})], tokenizer)
    assert found.endswith(f"«{content}{END}»")
    assert default_template([one({"messages": turns("Hi", content)})], tokenizer) == Template("chat")


def test_prompts_of_softprompt_0_1_keep_the_thought_open() -> None:
    """They were trained in it."""
    tokenizer, row = reasoning_tokenizer("r1"), one({"text": "fine", "label": "good"})
    (found,) = marked([row], tokenizer, Template("chat", "{text}", thoughts="open"))
    assert found == f"fine<|im_start|><think>\n«good{END}»"


def test_thoughts_and_answers() -> None:
    assert split_thought("<think>\nHm\n</think>\n\nYo", opened=False) == ("Hm", "Yo")
    assert split_thought(" <think>Hm</think>Yo </think>", opened=False) == ("Hm", "Yo </think>")
    assert split_thought("[THINK]Hm[/THINK]Yo", opened=False) == ("Hm", "Yo")
    assert split_thought(f"{EMPTY}Yo", opened=False) == (None, "Yo")
    assert split_thought("Close it with </think>!", opened=False) == (None, "Close it with </think>!")
    assert split_thought("Hm</think>Yo", opened=True) == ("Hm", "Yo")
    assert split_thought("Say <think>Hm</think>Yo", opened=True) == (None, "Say <think>Hm</think>Yo")
    assert unclosed_thought("<think>Hm") == "<think>" and not unclosed_thought("Say <think>")


@pytest.mark.parametrize("family", TEMPLATES)
def test_thoughts_in_a_field_of_their_own(family: str) -> None:
    """As OpenAI's clients and reasoning models' servers have them."""
    tokenizer, asked = reasoning_tokenizer(family), turns("Hi")
    apart = {"role": "assistant", "content": "Yo", "reasoning_content": "Greet."}
    rows = [one({"messages": [*asked, turn]}) for turn in (apart, turns(*THOUGHTFUL[:2])[1])]
    assert len(set(marked(rows, tokenizer))) == 1
