"""The page as text: nothing in it but what we wrote, whatever the names and tokens are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from softprompt.inspection.inspection import READINGS
from softprompt.report import sections
from softprompt.report.page import MAX_REPORT_BYTES, InspectedPrompt, numbers, page
from tests.report.planted import HOSTILE, inspected, inspection

NOTHING = replace(
    inspection(),
    **dict.fromkeys(READINGS),
    controls={},
    left_out={"nearest": "no <b>words</b>"},
)


class Parsed(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("count", [1, 3])
def test_planted_markup_stays_text(count: int) -> None:
    text = page([inspected(f"{HOSTILE}{i}") for i in range(count)])
    parsed = Parsed(text)
    assert parsed.elements.count("script") == parsed.elements.count("style") == 1
    assert "img" not in parsed.elements
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "style"]
    assert {value[:1] for name, value in parsed.attributes if name in ("href", "src")} == {"#"}
    assert "</script><script>alert('x')</script>" in parsed.text and "\u202e" not in text


def test_the_policy_allows_this_style_and_script_alone() -> None:
    text = page([inspected()])
    policy = re.search(r'Policy" content="([^"]+)"', text)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    for element in ("style", "script"):
        content = re.search(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in allowed
    assert allowed.startswith("default-src 'none';") and "unsafe" not in allowed


def test_it_is_small_and_always_the_same() -> None:
    assert page([inspected()]) == page([inspected()])
    large = inspected(tokens=256, layers=96, text="word")
    for prompts in ([large], [large] * 3):
        assert len(page(prompts).encode()) < MAX_REPORT_BYTES


def test_missing_sections_are_left_out_with_their_reason() -> None:
    text = page([InspectedPrompt("none", {}, NOTHING)])
    assert "Left out: no &lt;b&gt;words&lt;/b&gt;." in text and 'id="worth"' not in text
    both = page([InspectedPrompt("none", {}, NOTHING), inspected("whole")])
    assert 'id="worth"' in both and "comparison-title" in both


def test_a_section_without_a_view_is_a_table_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sections.SECTION_VIEWS, "leak")
    text = page([inspected(text="plain")])
    assert 'id="leak"' in text and "spans[1]" in text and "be warm" in text


def test_numbers_of_one_and_of_several() -> None:
    one, several = numbers([inspected("a")]), numbers([inspected("a"), inspected("b")])
    assert one == json.loads(json.dumps({"name": "a", **inspection().to_dict()}))
    assert several["prompts"] == [one, {**one, "name": "b"}]
    rows = json.loads(json.dumps(several))["comparison"]
    broken = numbers([InspectedPrompt("a", {}, replace(inspection(), effect=float("nan")))])
    assert broken["effect"] is None and json.loads(json.dumps(broken, allow_nan=False)) == broken
    assert {"section": "nearest", "label": "nearest words recover", "unit": "share", "values": [0.2, 0.2]} in rows
