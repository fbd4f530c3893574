"""Records to ids and mask: what is learned, and that training and inference see the same ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.default_template import default_template
from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id
from softprompt.data.template import Template, body, head
from softprompt.data.tokenize import Example, tokenize
from softprompt.data.tokenizer import encode
from softprompt.errors import DataError
from tests.support.bytes_tokenizer import END, EOS, BytesTokenizer, Turns, chatml, llama2
from tests.support.rows import one, records

PLAIN = Template("text", "Review: {text}\nSentiment:")
ROW = one({"text": "fine", "label": "good"})
TOK = BytesTokenizer(adds_bos=True)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def example(record: Record, template: Template, tokenizer: BytesTokenizer = TOK) -> Example:
    return tokenize([record], template, tokenizer, max_length=10_000)[0]


def marked(found: Example) -> str:
    """The text with every learned run in «»."""
    text, before = "", False
    for token, learned in zip(found.ids, found.mask, strict=True):
        text += ("»" if before else "«") * (learned != before) + TOK.decode([token])
        before = learned
    return text + "»" * before


def turns(*contents: str) -> Turns:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def test_plain_text_learns_the_target_and_the_end() -> None:
    found = example(ROW, PLAIN)
    assert marked(found) == " fine\nSentiment:« good</s>»"
    assert found.where == "f.jsonl:1"


def test_chat_learns_the_answer_and_the_end_of_the_turn() -> None:
    found = example(ROW, Template("chat", "{text}"))
    assert marked(found) == "\nfine<|im_end|>\n<|im_start|>assistant\n«good<|im_end|>»"


def test_text_alone_is_learned_whole_but_its_first_token() -> None:
    record = one({"text": "once upon"})
    assert marked(example(record, Template("text", "{text}"))) == "o«nce upon</s>»"
    assert marked(example(record, Template("text", "Tale: {text}!"))) == " o«nce upon!</s>»"
    with pytest.raises(DataError, match="learned whole"):
        example(record, Template("chat", "{text}"))


def test_messages_learn_every_assistant_turn() -> None:
    conversation = turns("Hi", "Yo\nthere", "Bye", " See you ")
    found = example(one({"messages": conversation}), Template("chat"))
    assert marked(found) == (
        "<|im_start|>system\nYou are tiny.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "«Yo\nthere<|im_end|>»\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n« See you <|im_end|>»"
    )
    assert list(found.ids) == encode(chatml(conversation, False).removesuffix("\n"), TOK)


def test_a_prompt_of_messages_is_not_learned() -> None:
    conversation = turns("Hi", "Yo", "Bye", "See you")
    record = one({"prompt": conversation[:3], "completion": conversation[3:]})
    for template in (Template("chat"), Template("chat", system="Be brief.")):
        assert marked(example(record, template)).count("«") == 1
        assert marked(example(record, template)).endswith("assistant\n«See you<|im_end|>»")


def test_messages_of_a_template_that_trims_and_writes_a_space() -> None:
    tokenizer = BytesTokenizer(llama2, adds_bos=True)
    found = example(one({"messages": turns("Hi", " Yo ", "Bye", "See")}), Template("chat"), tokenizer)
    assert marked(found) == "[INST] Hi [/INST]« Yo </s>»[INST] Bye [/INST]« See </s>»"


@given(WORDS, WORDS, st.sampled_from([PLAIN, Template("chat", "Say {text}")]))
def test_training_sees_the_ids_of_inference(text: str, label: str, template: Template) -> None:
    record = one({"text": text, "label": label})
    found = example(record, template)
    given, learned = prompt_ids(record, template, TOK), target_ids(label, template, TOK)
    assert list(found.ids) == [*given, *learned, end_id(template, TOK)]
    assert list(found.mask) == [False] * len(given) + [True] * (len(learned) + 1)
    assert given == encode(body(record, template, TOK), TOK)


@given(st.lists(WORDS, min_size=2, max_size=8).filter(lambda words: len(words) % 2 == 0), st.booleans())
def test_training_sees_the_ids_of_inference_in_conversations(words: list[str], split: bool) -> None:
    messages = turns(*words)
    record = one({"prompt": messages[:-1], "completion": messages[-1:]} if split else {"messages": messages})
    template = default_template([record], TOK)
    found = example(record, template)
    given, learned = prompt_ids(record, template, TOK), target_ids(words[-1], template, TOK)
    assert list(found.ids) == [*given, *learned, END]
    assert list(found.mask[len(given) :]) == [True] * (len(learned) + 1)
    assert not found.mask[len(given) - 1]
    assert head(template, TOK) == ""


def test_prompt_ids_of_rows_without_a_target() -> None:
    assert prompt_ids(one({"text": "fine"}), PLAIN, TOK) == encode(" fine\nSentiment:", TOK)
    record = one({"messages": turns("Hi")}, require_target=False)
    assert prompt_ids(record, Template("chat"), TOK) == encode(chatml(turns("Hi"), True), TOK)


def test_no_bos_and_no_head_in_the_ids() -> None:
    assert example(ROW, PLAIN).ids[0] == encode(" f", TOK)[0]
    assert TOK.bos_token_id not in example(ROW, PLAIN).ids


@pytest.mark.parametrize(
    "record",
    [one({"prompt": "a"}, require_target=False), one({"messages": turns("Hi")}, require_target=False)],
)
def test_rows_without_a_target_cannot_be_learned(record: Record) -> None:
    with pytest.raises(DataError) as caught:
        example(record, default_template([record], TOK))
    assert caught.value.where == "f.jsonl:1"


def test_empty_bodies_and_targets_are_refused() -> None:
    empty = Record({"text": ""}, "x", "label", where="f.jsonl:3")
    with pytest.raises(DataError, match="prompt has no tokens") as caught:
        example(empty, Template("text", "Go: {text}"[:3] + "{text}"))
    assert caught.value.where == "f.jsonl:3"
    with pytest.raises(DataError, match="target has no tokens"):
        target_ids("", Template("chat", "{text}"), TOK)


def rows_of_lengths(*lengths: int) -> list[Record]:
    """Rows that have this many tokens under LONG, target and end included."""
    return records(*({"prompt": "x" * (n - 2), "completion": "y"} for n in lengths))


LONG = Template("text", "{prompt}")


def test_long_rows_are_refused_with_what_would_help() -> None:
    with pytest.raises(DataError) as caught:
        tokenize(rows_of_lengths(10, 12, 15, 11), LONG, TOK, max_length=11)
    error = caught.value
    assert error.what == "2 of 4 rows are too long, the longest has 15 tokens"
    assert (error.where, error.got) == ("f.jsonl:2", "12 tokens in this row")
    assert error.hint == "--max-length 15 to keep them all, or --drop-long to leave them out"


def test_long_rows_can_be_dropped_but_are_never_cut() -> None:
    kept = tokenize(rows_of_lengths(10, 12, 15, 11), LONG, TOK, max_length=11, on_long="drop")
    assert [(len(found.ids), found.where) for found in kept] == [(10, "f.jsonl:1"), (11, "f.jsonl:4")]
    with pytest.raises(DataError, match="no row is left"):
        tokenize(rows_of_lengths(10), LONG, TOK, max_length=9, on_long="drop")
    with pytest.raises(DataError, match="there are no rows"):
        tokenize([], LONG, TOK, max_length=9)


def test_a_template_that_rewrites_earlier_turns_makes_a_row_of_each() -> None:
    def starring(conversation: Turns, generation: bool) -> str:
        last = len(conversation) - 1
        marks = [{**t, "content": "*" * (i == last and i % 2) + t["content"]} for i, t in enumerate(conversation)]
        return chatml(marks, generation)

    tokenizer, template = BytesTokenizer(starring), Template("chat")
    first, second = tokenize(
        [one({"messages": turns("Hi", "Yo", "Bye", "See")})], template, tokenizer, max_length=10_000
    )
    assert marked(first).endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n«*Yo<|im_end|>»")
    assert "«" not in marked(second).partition("Bye")[0] and "assistant\nYo<|im_end|>" in marked(second)
    assert marked(second).endswith("user\nBye<|im_end|>\n<|im_start|>assistant\n«*See<|im_end|>»")
    assert (first.where, second.where) == ("f.jsonl:1", "f.jsonl:1")
    split = one({"prompt": turns("Hi", "Yo", "Bye"), "completion": [{"role": "assistant", "content": "See"}]})
    assert marked(example(split, template, tokenizer)).endswith("«*See<|im_end|>»")
    assert prompt_ids(split, template, tokenizer) == list(second.ids[: second.mask.index(True)])


def test_a_generation_prompt_that_is_not_the_opening_of_the_turn_is_refused() -> None:
    def odd(conversation: Turns, generation: bool) -> str:
        return chatml(conversation, False) + "<|im_start|>bot\n" * generation

    with pytest.raises(DataError, match="before turn 2 differently"):
        example(one({"messages": turns("Hi", "Yo")}), Template("chat"), BytesTokenizer(odd))


def test_a_turn_that_is_not_closed_is_refused() -> None:
    def forgetful(conversation: Turns, generation: bool) -> str:
        return chatml(conversation, generation).replace("Yo<|im_end|>", "Yo")

    with pytest.raises(DataError, match="does not close this turn"):
        example(one({"messages": turns("Hi", "Yo")}), Template("chat"), BytesTokenizer(forgetful))


def test_a_template_that_changes_the_words_is_refused() -> None:
    def shouting(conversation: Turns, generation: bool) -> str:
        return chatml(conversation, generation).replace("Yo", "YO")

    with pytest.raises(DataError, match="as it is"):
        example(one({"messages": turns("Hi", "Yo")}), Template("chat"), BytesTokenizer(shouting))


def test_a_conversation_needs_something_in_front_of_the_answer() -> None:
    def bare(conversation: Turns, generation: bool) -> str:
        return "".join(turn["content"] + "</s>" for turn in conversation)

    record = one({"messages": [{"role": "assistant", "content": "Yo"}]})
    for call in (example, prompt_ids):
        with pytest.raises(DataError, match="no text before"):
            call(record, Template("chat"), BytesTokenizer(bare))


def test_the_end_token_is_the_one_of_the_chat_template() -> None:
    assert example(ROW, Template("chat", "{text}")).ids[-1] == END
    assert example(ROW, PLAIN).ids[-1] == EOS


def test_a_model_that_may_think_learns_the_answer_alone() -> None:
    """Qwen3's template: without thinking, the empty thought stands in the generation prompt and in the turn."""
    empty = "<think>\n\n</think>\n\n"

    def qwen3(conversation: Turns, generation: bool) -> str:
        said = conversation[-1]["role"] == "assistant"
        last = {**conversation[-1], "content": empty * said + conversation[-1]["content"]}
        return chatml([*conversation[:-1], last], generation) + empty * generation

    row = one({"messages": [{"role": "user", "content": "See?"}, {"role": "assistant", "content": "See"}]})
    tokenizer, template = BytesTokenizer(qwen3), Template("chat")
    assert marked(example(row, template, tokenizer)).endswith(f"assistant\n{empty}«See<|im_end|>»")
    given = prompt_ids(row, template, tokenizer)
    assert str(tokenizer.decode(given)).endswith(empty)
