"""Structured output: the grammar that a request wants its answers in, in the fields of OpenAI's API and of vLLM.

response_format       text, json_object, json_schema (OpenAI), structural_tag (vLLM)
structured_outputs    json, json_object, regex, choice, grammar, structural_tag (vLLM)
guided_json, guided_regex, guided_choice, guided_grammar: the same, by vLLM's older names
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from softprompt.engine.constraint import check_depth, json_rule, read_grammar, regex_rule, text_rule
from softprompt.errors import DataError
from softprompt.server.error_responses import from_text, invalid
from softprompt.server.limits import Limits
from softprompt.server.strict import Strict
from softprompt.server.structural_tag import StructuralTag, tag_grammar

JsonSchema = dict[str, object] | bool
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object; `schema` as in llama.cpp."""

    type: Literal["json_object"]
    json_schema: JsonSchema | None = Field(None, alias="schema")


class NamedSchema(Strict):
    """A JSON schema with its name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")
    description: str | None = None
    json_schema: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON of a schema, which holds always: `strict` is allowed and makes no difference."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class TagFormat(StructuralTag):
    """Free text in which marked parts follow a format, as in vLLM."""

    type: Literal["structural_tag"]


class OptionalTag(StructuralTag):
    """The same in a field of its own."""

    type: Literal["structural_tag"] = "structural_tag"


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | TagFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """vLLM's field: one of its values; the last ones are hints that change nothing here."""

    json_schema: JsonSchema | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: OptionalTag | str | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None


class StructuredFields(Strict):
    """The fields of a request that hold its answers to a grammar."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None


@dataclass(frozen=True)
class RequestedGrammar:
    """The grammar of a request.

    Attributes:
        lark: its text for llguidance.
        param: the field that asks for it, for error messages.
        rule: the right side of its one rule; "" for a grammar of several rules.
    """

    lark: str
    param: str
    rule: str = ""


def requested_grammar(fields: StructuredFields, limits: Limits) -> RequestedGrammar | None:
    """The grammar that a request wants its answers in; None for free text. Raises ApiError."""
    asked = [(param, rule) for param, rule in _asked(fields).items() if rule is not None]
    if not asked:
        return None
    if len(asked) > 1:
        raise invalid(f"An answer has one format: give {asked[0][0]} or {asked[1][0]}, not both.", asked[1][0])
    param, rule = asked[0]
    lark = checked_rule(rule, param, limits)
    is_whole = param.endswith(("grammar", "structural_tag")) or isinstance(fields.response_format, TagFormat)
    return RequestedGrammar(lark, param, "" if is_whole else lark.removeprefix("start: "))


def checked_rule(make: Callable[[], str], param: str, limits: Limits) -> str:
    """Lark of a client's grammar. Raises ApiError for one that is too large or that cannot be read."""
    try:
        lark = make()
    except DataError as error:
        raise from_text(error, param) from error
    if len(lark) > limits.grammar_chars:
        what = f"{param} is over the limit of this server: at most {limits.grammar_chars} characters."
        raise invalid(what, param, "over_limit")
    return lark


def schema_rule(schema: object) -> str:
    """Lark for the JSON of a schema, which may be written as JSON text. Raises DataError."""
    if isinstance(schema, str):
        check_depth(schema)
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise DataError("it is not JSON", expected="a JSON schema", got=str(error)) from error
        if not isinstance(schema, dict | bool):
            raise DataError("it is no JSON schema", expected="an object", got=type(schema).__name__)
    return json_rule(schema)


def _asked(fields: StructuredFields) -> dict[str, Callable[[], str] | None]:
    """Lark text, in the making, of each field."""
    vllm = fields.structured_outputs or StructuredOutputs.model_validate({})
    return {
        "response_format": _of_format(fields.response_format),
        "structured_outputs.json": _of_json(vllm.json_schema),
        "structured_outputs.json_object": _of_json({"type": "object"} if vllm.json_object else None),
        "structured_outputs.regex": _of_regex(vllm.regex),
        "structured_outputs.choice": _of_choice(vllm.choice),
        "structured_outputs.grammar": _of_grammar(vllm.grammar),
        "structured_outputs.structural_tag": _of_tag(vllm.structural_tag),
        "guided_json": _of_json(fields.guided_json),
        "guided_regex": _of_regex(fields.guided_regex),
        "guided_choice": _of_choice(fields.guided_choice),
        "guided_grammar": _of_grammar(fields.guided_grammar),
    }


def _of_format(wanted: ResponseFormat | None) -> Callable[[], str] | None:
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if isinstance(wanted, TagFormat):
        return _of_tag(wanted)
    own = wanted.json_schema.json_schema if isinstance(wanted, JsonSchemaFormat) else wanted.json_schema
    return _of_json({"type": "object"} if own is None else own)


def _of_json(schema: JsonSchema | str | None) -> Callable[[], str] | None:
    return None if schema is None else lambda: f"start: {schema_rule(schema)}"


def _of_regex(pattern: str | None) -> Callable[[], str] | None:
    return None if pattern is None else lambda: f"start: {regex_rule(pattern)}"


def _of_choice(texts: list[str] | None) -> Callable[[], str] | None:
    return None if texts is None else lambda: f"start: {text_rule(texts)}"


def _of_grammar(text: str | None) -> Callable[[], str] | None:
    return None if text is None else lambda: read_grammar(text)


def _of_tag(tag: StructuralTag | str | None) -> Callable[[], str] | None:
    return None if tag is None else lambda: tag_grammar(_read_tag(tag) if isinstance(tag, str) else tag)


def _read_tag(text: str) -> StructuralTag:
    """A structural tag in JSON text, as vLLM takes it. Raises DataError."""
    check_depth(text)
    try:
        return OptionalTag.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError("it is no structural tag", got=f"{place}: {first['msg']}" if place else first["msg"]) from error
