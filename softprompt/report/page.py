"""Inspections as one self-contained HTML file: no network, a strict content security policy, inline SVG.

The policy allows the one style sheet and the one script (buttons that copy tables) by their hashes, and nothing else
(https://www.w3.org/TR/CSP3/). Jinja2 escapes every value; control characters, also bidirectional ones, are written as
escapes. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from numbers import Number

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from softprompt.inspection.inspection import Inspection
from softprompt.inspection.summary import compare_inspections
from softprompt.report.blocks import DataTable, Figure, ReportBlock, VocabularyTokens, numbers_of, shown, visible
from softprompt.report.section_view import SectionView
from softprompt.report.sections import views_of
from softprompt.report.svg import svg
from softprompt.report.svg_parts import DETAIL, Detail

MAX_REPORT_BYTES = 2_000_000
# Less and less detail, until a report of many or large prompts is small enough.
_DETAILS = (DETAIL, Detail(titled=0, numbers=0), Detail(48, 0, 0, 40), Detail(24, 0, 0, 12))
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


@dataclass(frozen=True)
class InspectedPrompt:
    """A soft prompt in a report.

    Attributes:
        name: of the soft prompt.
        facts: lines for the head of the page, e.g. its base model, by name.
        inspection: its readings.
    """

    name: str
    facts: Mapping[str, str]
    inspection: Inspection


@dataclass(frozen=True)
class _Part:
    """One soft prompt's content of one section."""

    name: str
    blocks: Sequence[ReportBlock]
    reason: str


@dataclass(frozen=True)
class _SectionParts:
    view: SectionView
    parts: Sequence[_Part]


def page(prompts: Sequence[InspectedPrompt], numbers_file: str = "") -> str:
    """The HTML file of one or several inspections.

    Args:
        prompts: the soft prompts, shown side by side if they are several.
        numbers_file: name of the file with all numbers, see `numbers`.
    """
    inspections = [prompt.inspection for prompt in prompts]
    sections = [_section(view, prompts) for view in views_of(inspections)]
    contents = [(section.view.name, section.view.title) for section in sections]
    if len(prompts) > 1:
        contents = [("comparison", "Comparison"), *contents]
    style, script = _resource("page.css"), _resource("copy.js")
    template = _environment().get_template("page.html")
    values: dict[str, object] = {
        "title": ", ".join(prompt.name for prompt in prompts),
        "lead": _lead(prompts),
        "facts": _facts(prompts),
        "prompts": prompts,
        "comparison": comparison_table(prompts) if len(prompts) > 1 else None,
        "sections": sections,
        "contents": contents,
        "policy": content_policy(style, script),
        "style": _verbatim(style),
        "script": _verbatim(script),
        "numbers_file": numbers_file,
        "version": version("softprompt"),
    }
    texts = (template.render(values, detail=detail) for detail in _DETAILS)
    text = next((text for text in texts if len(text.encode("utf-8", "replace")) < MAX_REPORT_BYTES), None)
    text = text or template.render(values, detail=_DETAILS[-1])
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def numbers(prompts: Sequence[InspectedPrompt]) -> dict[str, object]:
    """All numbers of a report, as JSON: of one soft prompt, or of several with their comparison. NaN becomes null."""
    each = [{"name": prompt.name} | _finite_values(prompt.inspection.to_dict()) for prompt in prompts]
    if len(each) == 1:
        return each[0]
    rows = compare_inspections([prompt.inspection for prompt in prompts])
    return {"prompts": each, "comparison": [_finite_values(asdict(row)) for row in rows]}


def _finite_values(values: Mapping[str, object]) -> dict[str, object]:
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: object) -> object:
    """A value as strict JSON has it."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def comparison_table(prompts: Sequence[InspectedPrompt]) -> DataTable:
    """The readings' main numbers, a column for each soft prompt."""
    rows = compare_inspections([prompt.inspection for prompt in prompts])
    cells = [[row.label, *row.values] for row in rows]
    return DataTable(["", *(prompt.name for prompt in prompts)], cells, row_units=[row.unit for row in rows])


def content_policy(style: str, script: str) -> str:
    """A content security policy that allows this style sheet and this script, and nothing else."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def page_hashes() -> tuple[str, str]:
    """The hashes, as a content policy writes them, of the style sheet and the script of every report."""
    return _hash(_resource("page.css")), _hash(_resource("copy.js"))


def grouped(blocks: Sequence[ReportBlock]) -> list[list[ReportBlock]]:
    """Neighboring sentences, tables and figures together."""
    kinds = itertools.groupby(blocks, lambda block: type(block) if isinstance(block, str | DataTable) else None)
    return [list(group) for _, group in kinds]


def _section(view: SectionView, prompts: Sequence[InspectedPrompt]) -> _SectionParts:
    parts = [
        _Part(prompt.name, view.blocks(prompt.inspection), prompt.inspection.left_out.get(view.name, ""))
        for prompt in prompts
    ]
    return _SectionParts(view, parts)


def _lead(prompts: Sequence[InspectedPrompt]) -> str:
    if len(prompts) > 1:
        return f"{len(prompts)} soft prompts beside each other."
    inspection = prompts[0].inspection
    return (
        f"Its predictions are {inspection.effect:.3f} nats an answer token away from the base model's, over"
        f" {inspection.rows} rows. This is the effect that the readings below are shares of."
    )


def _facts(prompts: Sequence[InspectedPrompt]) -> list[tuple[str, str]]:
    """Facts of the prompts; what is the same for all stands once."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.facts))
    return [(name, " · ".join(dict.fromkeys(prompt.facts.get(name, "–") for prompt in prompts))) for name in names]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("softprompt.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "full": _full,
        "grouped": grouped,
        "numbers": _few_numbers,
        "shown": shown,
        "svg": svg,
        "visible": visible,
    }
    environment.tests |= {
        "data_table": lambda value: isinstance(value, DataTable),
        "number": lambda value: isinstance(value, Number) and not isinstance(value, bool),
        "tokens": lambda value: isinstance(value, VocabularyTokens),
    }
    return environment


def _few_numbers(figure: Figure, detail: Detail) -> DataTable | None:
    table = numbers_of(figure)
    return table if sum(map(len, table.rows)) <= detail.numbers else None


def _full(value: object) -> str:
    """A number as it is copied."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _resource(name: str) -> str:
    return importlib.resources.files("softprompt.report").joinpath("templates", name).read_text(encoding="utf-8")


def _verbatim(text: str) -> Markup:
    """A file of this package, which must not be escaped inside <style> and <script>."""
    assert "</" not in text, "it would end the element"
    return Markup("{}").format(Markup(text))  # noqa: S704 - our own file


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
