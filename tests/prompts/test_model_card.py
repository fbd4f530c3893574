"""README.md of an artifact: what a stranger or the Hub reads in it is what the card says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from softprompt.prompts.card import Card
from softprompt.prompts.model_card import model_card
from tests.support.artifacts import card, geometry

FACTS: dict[str, Any] = {
    "n_tokens": 12,
    "method": {"name": "prefix-tuning", "n_tokens": 12},
    "metrics": {"steps": 40, "stopped": "patience", "validation_loss": 0.123456, "seconds": 9.5},
    "data": {"train_rows": 486, "validation_rows": 72},
}


def parts(made: Card, *, size: int = 20_480, curve: str | None = "curve.png") -> tuple[dict[str, Any], str]:
    """YAML header and Markdown."""
    text = model_card(made, bytes_on_disk=size, curve=curve)
    empty, header, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(header), body


def test_the_header_is_what_the_hub_reads() -> None:
    header, _ = parts(card(geometry(base="owner/base: a #1"), **FACTS))
    assert header == {
        "base_model": "owner/base: a #1",
        "library_name": "softprompt",
        "tags": ["softprompt", "soft-prompt", "prefix-tuning"],
    }


@pytest.mark.parametrize("license", ["apache-2.0", None])
def test_a_licence_only_if_there_is_one(license: str | None) -> None:  # noqa: A002
    header, _ = parts(card(license=license))
    assert header.get("license") == license
    assert ("license" in header) == (license is not None)


def test_the_facts_are_there() -> None:
    base = geometry(base="owner/base")
    _, body = parts(card(base, **FACTS))
    assert body.startswith("\n# tone\n") or "\n# tone\n" in body
    assert "12 virtual tokens (kv form, 20 KiB)" in body
    assert f"`owner/base` (fingerprint `{base.fingerprint}`)" in body
    assert 'softprompt generate tone --model owner/base "your text"' in body
    assert "Method: prefix-tuning. Training rows: 486." in body
    assert "![learning curve](curve.png)" in body


def test_scores_are_a_table_and_counts_are_not() -> None:
    _, body = parts(card(**FACTS))
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert rows == ["| result | value |", "|---|---|", "| validation_loss | 0.1235 |", "| seconds | 9.5000 |"]


def test_without_results_or_picture_there_is_no_trace_of_them() -> None:
    header, body = parts(card(), curve=None)
    assert "|" not in body
    assert "![" not in body
    assert "Training rows: unknown" in body
    assert header["tags"][-1] == "kv", "a card without a method is tagged with its form"
    assert "\n\n\n" not in body


@pytest.mark.parametrize("base", ["/home/ada/models/small", "./models/small", "~/models/small", "a/b/small"])
def test_no_place_on_this_machine(base: str) -> None:
    header, body = parts(card(geometry(base=base), **FACTS))
    assert header["base_model"] == "small"
    assert "models" not in body.replace("base model", "")
