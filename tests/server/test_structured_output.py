"""Structured output over HTTP: every answer that ended is of its format, behind soft prompts and the base model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from softprompt.server.schema import NEUTRAL
from tests.support.live_server import BASE, USER, Live
from tests.support.tiny import tiny_lm

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TINY = tiny_lm("llama", bos=True)
SAY = [{"role": "user", "content": "Hi"}]
SHORT = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


def format_of(schema: object, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


def asked(path: str, model: str) -> dict[str, Any]:
    """A request whose answers have little space between the parts of JSON."""
    few = {str(token): -40 for token in TINY.encode(" \n\r\t")}
    given = {"messages": SAY} if path == CHAT else {"prompt": "Hi"}
    return {"model": model, "max_tokens": 40, "seed": 1, "logit_bias": few} | given


def answered(server: Live, path: str, model: str, **fields: Any) -> list[tuple[str, str]]:
    reply = server.ask("POST", path, asked(path, model) | fields)
    assert reply.status == 200, reply.raw
    texts = [choice.get("text") or choice.get("message", {}).get("content", "") for choice in reply.json["choices"]]
    return list(zip(texts, [choice["finish_reason"] for choice in reply.json["choices"]], strict=True))


TAG: dict[str, Any] = {"type": "tag", "begin": "<n>", "end": "</n>"}
TAG |= {"content": {"type": "json_schema", "json_schema": {"type": "boolean"}}}
OLD_TAG = {"structures": [{"begin": "<n>", "schema": {"type": "boolean"}, "end": "</n>"}], "triggers": ["<"]}
# The tiny model writes no tag by itself.
ONE_TAG = {"type": "triggered_tags", "triggers": ["<n"], "tags": [TAG], "at_least_one": True, "stop_after_first": True}
FORMATS: list[tuple[dict[str, Any], Callable[[str], Any]]] = [
    (
        {"response_format": format_of(SHORT, strict=True, description="x")},
        lambda text: json.loads(text)["ok"] in (0, 1),
    ),
    ({"response_format": {"type": "json_object", "schema": SHORT}}, lambda text: json.loads(text)["ok"] in (0, 1)),
    ({"structured_outputs": {"json": SHORT}}, lambda text: json.loads(text)["ok"] in (0, 1)),
    ({"structured_outputs": {"json": json.dumps(SHORT)}}, lambda text: json.loads(text)["ok"] in (0, 1)),
    ({"structured_outputs": {"regex": "[a-c]{2,4}"}}, lambda text: re.fullmatch("[a-c]{2,4}", text)),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
    ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, lambda text: text in ("a", "b")),
    ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, lambda text: text in ("a", "b")),
    ({"structured_outputs": {"structural_tag": json.dumps({"format": TAG})}}, lambda text: "e</n>" in text),
    ({"response_format": {"type": "structural_tag", "format": ONE_TAG}}, lambda text: "e</n>" in text),
    ({"guided_json": SHORT}, lambda text: json.loads(text)["ok"] in (0, 1)),
    ({"guided_regex": "x+y"}, lambda text: re.fullmatch("x+y", text)),
    ({"guided_choice": ["é"]}, lambda text: text == "é"),
    ({"guided_grammar": 'start: "c"'}, lambda text: text == "c"),
]


@pytest.mark.parametrize(("fields", "check"), FORMATS)
def test_every_format(fields: dict[str, Any], check: Callable[[str], Any], server: Live) -> None:
    """Two answers, whole and streamed, with log-probabilities, behind a soft prompt and without."""
    for path, model in ((CHAT, "talk"), (TEXT, BASE)):
        answers = answered(server, path, model, n=2, logprobs=True if path == CHAT else 1, **fields)
        assert len(answers) == 2
        assert all(check(text) for text, finish in answers if finish == "stop")
        assert [finish for _, finish in answers].count("stop") >= 1
        events = server.ask("POST", path, asked(path, model) | fields | {"stream": True}).events
        parts = [event["choices"][0] for event in events]
        text = "".join(part.get("text") or part.get("delta", {}).get("content", "") for part in parts)
        assert (text, parts[-1]["finish_reason"]) == answers[0]


def test_a_tag_within_words(server: Live) -> None:
    """The older form of structural tags: words are free, and a trigger begins a structure."""
    bias = {str(TINY.encode("<")[0]): 8} | {str(TINY.encode(letter)[0]): 6 for letter in "n>"}
    fields: dict[str, Any] = {"structured_outputs": {"structural_tag": OLD_TAG}, "logit_bias": bias, "n": 8}
    texts = [text for text, _ in answered(server, CHAT, BASE, **fields, max_tokens=60)]
    assert any(re.search("<n>(true|false)</n>", text) for text in texts)
    for text in texts:
        rest = re.sub("<n>(true|false)</n>", "", text)
        assert re.fullmatch("[^<]*(<n?|<n>[a-z]*(<|</|</n)?)?", rest), text


def test_any_json_object(server: Live) -> None:
    """As OpenAI's clients ask for it; one that was cut says so."""
    (found,) = answered(server, CHAT, "talk", response_format={"type": "json_object"}, max_tokens=2)
    assert found[0].startswith("{") and found[1] == "length"
    bias = {str(token): 100 for token in TINY.encode("{}")}
    bias = {"response_format": {"type": "json_object"}, "logit_bias": bias, "max_tokens": 60, "temperature": 0}
    for text, finish in answered(server, CHAT, BASE, **bias):
        assert finish == "length" or isinstance(json.loads(text), dict)


def test_a_grammar_ends_where_it_must_also_without_end_tokens(server: Live) -> None:
    """As load generators ask for it: ignore_eos beside a format."""
    fields = {"structured_outputs": {"choice": ["yes", "no"]}, "ignore_eos": True, "min_tokens": 30}
    ((text, finish),) = answered(server, TEXT, BASE, **fields)
    assert text in ("yes", "no") and finish == "stop"
    ((text, finish),) = answered(server, TEXT, BASE, structured_outputs={"regex": "a*"}, ignore_eos=True, max_tokens=9)
    assert (text, finish) == ("a" * 9, "length")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": format_of({"not": {}})}, "response_format", 'Unimplemented keys: ["not"]'),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SHORT}}}, "response_format.name", ""),
        ({"guided_json": "[1"}, "guided_json", "not JSON"),
        ({"guided_json": "1"}, "guided_json", "no JSON schema"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag", "no structural tag"),
        (
            {"structured_outputs": {"structural_tag": '{"format": {"type": "grammar"}}'}},
            "structured_outputs.structural_tag",
            "does not match any of the expected tags",
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "structures and triggers, or a format"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"guided_grammar": "start: b"}, "guided_grammar", ""),
        ({"guided_choice": []}, "guided_choice", ""),
        ({"guided_regex": "a", "response_format": format_of(SHORT)}, "guided_regex", "one format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "one format"),
        ({"structured_outputs": {"regex": "(" * 70 + ")" * 70}}, "structured_outputs.regex", "too deep"),
        ({"guided_choice": ["x" * 65_536]}, "guided_choice", "at most 65536"),
    ],
)
def test_what_is_no_format(fields: dict[str, Any], param: str, words: str, server: Live) -> None:
    for path in (CHAT, TEXT):
        body = {"model": "talk", "max_tokens": 4} | ({"messages": SAY} if path == CHAT else {"prompt": "Hi"})
        reply = server.ask("POST", path, body | fields)
        code = "over_limit" if "at most" in words else "invalid_value"
        assert (reply.status, reply.code) == (400, code)
        assert reply.json["error"]["param"] == param
        assert words in reply.json["error"]["message"]


class Item(BaseModel):
    """For the official client's `parse`."""

    good: bool
    kind: str | None


def test_parse_of_the_official_client(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER)
    for seed in range(2):
        made = client.chat.completions.parse(
            model="talk",
            messages=[{"role": "user", "content": "Hi"}],
            response_format=Item,
            seed=seed,
            max_tokens=100,
            logit_bias={str(TINY.encode('"')[0]): 5},
        )
        assert made.choices[0].finish_reason == "stop"
        assert isinstance(made.choices[0].message.parsed, Item)
    client.close()


LEAVES = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 99},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", "b\n", 3, None]},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-z]{1,3}$"},
        {"const": {"x": [1]}},
    ]
)


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(st.sampled_from(["a", "b b", "é", '"']), inner, min_size=1, max_size=3)
    return fields.map(
        lambda own: {"type": "object", "properties": own, "required": list(own), "additionalProperties": False}
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        _objects(inner)
        | inner.map(lambda one: {"type": "array", "items": one, "maxItems": 2})
        | st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some})
    ),
    max_leaves=4,
)


@settings(max_examples=12, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_every_answer_that_ended_is_of_its_schema(schema: dict[str, Any], seed: int, shared: Live) -> None:
    ((text, finish),) = answered(
        shared, CHAT, "talk", response_format=format_of(schema), seed=seed, max_tokens=60, temperature=0.7
    )
    if finish == "stop":
        jsonschema_rs.validate(schema, json.loads(text))


def test_the_fields_are_no_longer_refused() -> None:
    assert not {"response_format", "guided_json", "guided_regex"} & NEUTRAL.keys()
