"""Records to text: head, body, target, end, for plain text and three kinds of chat templates."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.default_template import default_template
from softprompt.data.targets import end_id, joined, target_text
from softprompt.data.template import Template, answered_apart, body, bos_ids, fill, head, unused_fields
from softprompt.data.tokenizer import closing_ids, encode
from softprompt.errors import DataError
from tests.support.bytes_tokenizer import BOS, END, EOS, START, BytesTokenizer, Turns, chatml, llama2
from tests.support.rows import one, records
from tests.support.tiny import tiny_tokenizer

PLAIN = Template("text", "Review: {text}\nSentiment:")
SYSTEM = "<|im_start|>system\nYou are tiny.<|im_end|>\n"
ROW = one({"text": "fine", "label": "good"})
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
TOK = BytesTokenizer()


def test_plain_head_leaves_whitespace_to_the_row() -> None:
    assert head(PLAIN, TOK) == "Review:"
    assert body(ROW, PLAIN, TOK) == " fine\nSentiment:"
    assert head(Template("text", "{text}!"), TOK) == ""
    assert head(Template("text", "\n {text}"), TOK) == ""
    assert body(ROW, Template("text", "\n {text}"), TOK) == "\n fine"


@pytest.mark.parametrize(
    ("template", "opening", "rest"),
    [
        (
            Template("chat", "{text}"),
            SYSTEM + "<|im_start|>user",
            "\nfine<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            Template("chat", "Review: {text}", "Be brief."),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nReview:",
            " fine<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_chat_head_reaches_into_the_users_turn(template: Template, opening: str, rest: str) -> None:
    assert head(template, TOK) == opening
    assert body(ROW, template, TOK) == rest


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([PLAIN, Template("chat", "Say {text}")]),
)
def test_ids_of_head_and_body_are_the_ids_of_the_whole_prompt(text: str, template: Template) -> None:
    record = dataclasses.replace(ROW, fields={"text": text})
    opening, rest = head(template, TOK), body(record, template, TOK)
    whole = fill(template, record)
    if template.kind == "chat":
        whole = chatml([{"role": "user", "content": whole}], True)
    assert opening + rest == whole
    assert encode(opening, TOK) + encode(rest, TOK) == encode(whole, TOK)


@pytest.mark.parametrize(
    ("adds_bos", "opening"),
    [(True, "[INST]"), (False, "<s>[INST]")],
    ids=["bos by the tokenizer", "by nobody"],
)
def test_bos_is_left_to_the_caller(adds_bos: bool, opening: str) -> None:
    tokenizer = BytesTokenizer(llama2, adds_bos=adds_bos)
    assert head(Template("chat", "{text}"), tokenizer) == opening
    assert bos_ids(tokenizer) == ([BOS] if adds_bos else [])
    record = one({"messages": CHAT})
    assert body(record, Template("chat"), tokenizer).startswith(opening)


def test_bos_ids_without_a_bos_token() -> None:
    assert bos_ids(BytesTokenizer(bos=None)) == []
    assert bos_ids(BytesTokenizer(bos=None, adds_bos=True)) == []


def test_messages_have_no_head_and_end_where_the_assistant_begins() -> None:
    template, record = Template("chat"), one({"messages": [*CHAT, *CHAT]})
    assert head(template, TOK) == ""
    given = [*CHAT, CHAT[0]]
    assert body(record, template, TOK) == chatml(given, True)
    unanswered = one({"messages": CHAT[:1]}, require_target=False)
    assert body(unanswered, template, TOK) == chatml(CHAT[:1], True)


def test_a_system_turn_is_added_to_messages_that_have_none() -> None:
    template, own = Template("chat", system="Be brief."), {"role": "system", "content": "Mine."}
    assert "Be brief." in body(one({"messages": CHAT}), template, TOK)
    assert "Be brief." not in body(one({"messages": [own, *CHAT]}), template, TOK)


@pytest.mark.parametrize(
    ("template", "target", "text"),
    [
        (PLAIN, "good", " good"),
        (PLAIN, " good", " good"),
        (PLAIN, "\ngood", "\ngood"),
        (Template("text", "{text}\n"), "good", "good"),
        (Template("text", "{text} "), "good", "good"),
        (Template("text", "{text}"), "good", " good"),
        (Template("chat", "{text}"), "good", "good"),
    ],
)
def test_target_is_set_apart_by_one_space_in_plain_text(template: Template, target: str, text: str) -> None:
    assert target_text(target, template) == text


def test_end_of_plain_text_is_eos() -> None:
    assert end_id(PLAIN, TOK) == EOS
    with pytest.raises(DataError, match="would never learn to stop"):
        end_id(PLAIN, BytesTokenizer(eos=None))


def test_end_of_chat_is_what_the_chat_template_writes() -> None:
    chat = Template("chat", "{text}")
    assert end_id(chat, TOK) == END  # not EOS, and without one too
    assert end_id(chat, BytesTokenizer(eos=None)) == END
    assert end_id(chat, BytesTokenizer(llama2)) == EOS  # after a space
    assert end_id(Template("chat"), TOK) == END


@pytest.mark.parametrize(("closing", "eos"), [("\n", EOS), ("", EOS), (" </s>", None)])
def test_a_chat_without_an_end_is_refused(closing: str, eos: int | None) -> None:
    def endless(turns: Turns, generation: bool) -> str:
        return "".join(f"{turn['role']}: {turn['content']}{closing}" for turn in turns)

    with pytest.raises(DataError, match="would never learn to stop"):
        end_id(Template("chat", "{text}"), BytesTokenizer(endless, eos=eos))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "a", "completion": "b"}, "{prompt}"),
        ({"input": "a", "target": "b"}, "{prompt}"),
        ({"text": "a", "label": "b"}, "{text}"),
        ({"text": "a", "text2": "b", "label": "c"}, "{text}\n{text2}"),
    ],
)
def test_default_is_chat_if_the_model_has_one(row: object, text: str) -> None:
    rows, base = [one(row)], BytesTokenizer(None)
    assert default_template(rows, TOK) == Template("chat", text)
    assert default_template(rows, TOK, chat=False) == Template("text", text)
    assert default_template(rows, base) == Template("text", text)
    with pytest.raises(DataError, match="has no chat template"):
        default_template(rows, base, chat=True)


def test_default_of_text_alone_is_plain() -> None:
    assert default_template([one({"text": "a"})], TOK) == Template("text", "{text}")


def test_default_with_a_text_is_plain_unless_chat_is_asked_for() -> None:
    assert default_template([ROW], TOK, "{text}?") == Template("text", "{text}?")
    assert default_template([ROW], TOK, "{text}?", chat=True) == Template("chat", "{text}?")


def test_default_of_messages_is_the_chat_template_alone() -> None:
    rows = [one({"messages": CHAT})]
    assert default_template(rows, TOK) == default_template(rows, TOK, chat=True) == Template("chat")
    for tokenizer, text, chat in (
        (TOK, "{text}", None),
        (TOK, None, False),
        (BytesTokenizer(None), None, None),
    ):
        with pytest.raises(DataError, match="rows of messages"):
            default_template(rows, tokenizer, text, chat)


def test_default_checks_every_row() -> None:
    rows = [one({"text": "a", "label": "b", "genre": "film"}), ROW]
    with pytest.raises(DataError, match=r"\{genre\}"):
        default_template(rows, TOK, "{text} {genre}")
    with pytest.raises(DataError, match="no rows"):
        default_template([], TOK)


def test_an_unknown_field_lists_the_known_and_the_closest() -> None:
    with pytest.raises(DataError) as caught:
        body(one({"text": "a", "text2": "b", "label": "c"}), Template("text", "{text3}"), TOK)
    error = caught.value
    assert (error.where, error.expected) == ("f.jsonl:1", "one of text, text2")
    assert error.hint == "did you mean {text2}?" or error.hint == "did you mean {text}?"
    with pytest.raises(DataError) as caught:
        body(ROW, Template("text", "{zzz}"), TOK)
    assert caught.value.hint is None


def test_braces_are_escaped_by_doubling_and_fields_are_never_read_as_templates() -> None:
    template = Template("text", '{{"q": {text}}} {text}')
    record = one({"text": "{label}", "label": "x"})
    assert (head(template, TOK), body(record, template, TOK)) == ('{"q":', " {label}} {label}")
    assert template.names == ("text",)


@pytest.mark.parametrize(
    "text",
    [
        "{text.upper}",
        "{text[0]}",
        "{text!r}",
        "{text:>9}",
        "{}",
        "{0}",
        "{text",
        "text}",
        "{a b}",
        "{text:{n}}",
    ],
)
def test_fields_are_plain_names(text: str) -> None:
    with pytest.raises(DataError, match="brace"):
        Template("text", text)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (("text", ""), "no field"),
        (("text", "hello {{text}}"), "no field"),
        (("chat", "hello"), "no field"),
        (("text", "{text}", "Be brief."), "no system turn"),
        (("prose", "{text}"), "unknown kind"),
    ],
)
def test_useless_templates_are_refused(values: tuple[str, ...], part: str) -> None:
    with pytest.raises(DataError, match=part):
        Template(*values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("template", [PLAIN, Template("chat", "{a} {b}", "S"), Template("chat")])
def test_dict_round_trip(template: Template) -> None:
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"kind": "text", "text": "{a}", "txet": ""}, "unknown key"),
        ({"kind": "text", "text": 3}, "must be a string"),
        ({"kind": "prose", "text": "{a}"}, "unknown kind"),
        ({"text": "{a}"}, "unknown kind"),
        ({"kind": "text", "text": "{a.b}"}, "plain name"),
    ],
)
def test_from_dict_refuses_what_it_does_not_know(values: dict[str, object], part: str) -> None:
    with pytest.raises(DataError, match=part):
        Template.from_dict(values)


def test_rows_must_fit_the_template() -> None:
    with pytest.raises(DataError, match="fits messages only"):
        body(ROW, Template("chat"), TOK)
    for template in (PLAIN, Template("chat", "{text}")):
        with pytest.raises(DataError, match="does not fit rows of messages"):
            body(one({"messages": CHAT}), template, TOK)


def test_what_the_chat_template_refuses_is_passed_on() -> None:
    tokenizer = BytesTokenizer(llama2)
    with pytest.raises(DataError, match="System role not supported"):
        head(Template("chat", "{text}", "Be brief."), tokenizer)
    with pytest.raises(DataError, match="no chat template"):
        head(Template("chat", "{text}"), BytesTokenizer(None))


@pytest.mark.parametrize("times", [0, 2])
def test_the_users_text_must_be_written_once(times: int) -> None:
    def odd(turns: Turns, generation: bool) -> str:
        return "<|im_start|>" + turns[-1]["content"] * times

    with pytest.raises(DataError, match=f"(?s)exactly once.*{times} times"):
        head(Template("chat", "{text}"), BytesTokenizer(odd))


def test_an_opening_that_depends_on_the_row_is_refused() -> None:
    def counting(turns: Turns, generation: bool) -> str:
        return f"[{len(turns[-1]['content'])}] " + chatml(turns, generation)

    with pytest.raises(DataError, match="another opening") as caught:
        body(ROW, Template("chat", "{text}"), BytesTokenizer(counting))
    assert caught.value.where == "f.jsonl:1"


def test_control_tokens_are_told_from_text() -> None:
    assert encode("<|im_start|>", TOK) == [START]
    assert encode("", BytesTokenizer(adds_bos=True)) == []
    assert encode("a", BytesTokenizer(adds_bos=True)) == [97]


def test_fields_that_the_template_leaves_out() -> None:
    rows = records({"prompt": "a", "completion": "b", "system": "c"}, {"prompt": "a", "completion": "b", "id": "x"})
    assert unused_fields(Template("text", "{input}"), rows) == ["id", "system"]
    assert unused_fields(Template("text", "{system} {prompt}"), rows) == ["id"]


def test_what_a_tokenizer_puts_behind_every_text() -> None:
    assert closing_ids(tiny_tokenizer(closing=True)) == [2]
    for bos in (False, True):
        assert closing_ids(tiny_tokenizer(bos=bos)) == []


def test_an_encoder_decoder_writes_the_answer_as_a_text_of_its_own() -> None:
    template = answered_apart(PLAIN)
    assert (head(template, TOK), body(ROW, template, TOK)) == ("Review:", " fine\nSentiment:")
    assert (target_text("good", template), joined("good", template)) == ("good", " good")
    assert end_id(template, TOK) == EOS
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template
