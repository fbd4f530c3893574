"""The sections of a report in their order; a section without a view of its own is shown as a table of its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from softprompt.inspection.inspection import Inspection
from softprompt.report.place_views import ATTENTION, HEADS, LAYERS, WORTH
from softprompt.report.prompt_views import BEHAVIOR, DRIFT, LENS, NEAREST
from softprompt.report.section_view import SectionView
from softprompt.report.text_views import LEAK, LIKENESS, WORDS, other_blocks

SECTION_VIEWS = {
    view.name: view for view in (BEHAVIOR, NEAREST, DRIFT, WORTH, LAYERS, HEADS, ATTENTION, LENS, LEAK, LIKENESS, WORDS)
}
_NO_SECTIONS = ("rows", "effect", "recovered", "left_out", "controls")  # fields of an Inspection that are none


def views_of(inspections: Sequence[Inspection]) -> list[SectionView]:
    """The views of all sections that at least one inspection has, or gives a reason for not having."""
    names = [field.name for field in fields(Inspection) if field.name not in _NO_SECTIONS]
    ordered = [*SECTION_VIEWS, *(name for name in names if name not in SECTION_VIEWS)]
    return [
        SECTION_VIEWS.get(name) or _other(name)
        for name in ordered
        if any(getattr(inspection, name, None) is not None or name in inspection.left_out for inspection in inspections)
    ]


def _other(name: str) -> SectionView:
    return SectionView(name, name.replace("_", " ").capitalize(), "", "", partial(other_blocks, name))
