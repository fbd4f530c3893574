"""The card is checked data: nothing unknown, nothing out of range, no other version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import FORMAT_VERSION, Card, Layout
from tests.support.artifacts import PLAIN, artifacts, card

GOOD = card().model_dump(mode="json")


@settings(deadline=None, max_examples=60)
@given(artifacts())
def test_round_trip_through_json(made: tuple[SoftPrompt, Card]) -> None:
    text = json.dumps(made[1].model_dump(mode="json"))
    again = Card.model_validate(json.loads(text))
    assert again.model_dump(mode="json") == made[1].model_dump(mode="json")
    assert again.geometry == made[1].geometry
    assert again.layout == made[1].layout


def test_defaults_say_nothing_that_nobody_said() -> None:
    made = card()
    assert made.format_version == FORMAT_VERSION
    assert made.layout == Layout(bos=False, lead="", follow="")
    assert (made.labels, made.template, made.metrics, made.license) == ((), {}, {}, None)
    assert made.geometry == PLAIN


@pytest.mark.parametrize("missing", ["name", "form", "n_tokens", "sha256", "base"])
def test_what_a_prompt_needs_cannot_be_left_out(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        Card.model_validate({key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 2),
        ("format_version", "1"),
        ("format_version", None),
        ("form", "lora"),
        ("n_tokens", 0),
        ("n_tokens", -1),
        ("n_tokens", 1_000_001),
        ("n_tokens", 1.5),
        ("sha256", "0" * 63),
        ("sha256", "0" * 65),
        ("sha256", "A" * 64),
        ("sha256", "0" * 64 + "\n"),
        ("sha256", ""),
        ("name", None),
        ("labels", "positive"),
        ("layout", {"bos": True, "trail": "x"}),
        ("layout", {"lead": None}),
        ("code", "import os"),
        ("license", 3),
        ("versions", {"torch": 2}),
    ],
)
def test_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Card.model_validate(GOOD | {field: value})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", "6"), ("layers", None), ("windows", ["x"]), ("sample", [None]), ("module", "os"), ("base", [])],
)
def test_a_base_that_is_no_geometry_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match="not a base model description"):
        Card.model_validate(GOOD | {"base": GOOD["base"] | {field: value}})


@pytest.mark.parametrize("field", PLAIN.to_dict())
def test_a_base_that_lacks_something_is_refused(field: str) -> None:
    base = {key: value for key, value in GOOD["base"].items() if key != field}
    with pytest.raises(ValidationError, match="not a base model description"):
        Card.model_validate(GOOD | {"base": base})


def test_a_card_cannot_be_changed_in_place() -> None:
    made: Any = card()
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        made.layout.bos = True
