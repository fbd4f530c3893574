"""The sections that compare a soft prompt with texts and with other prompts: leak, likeness, words; and any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass

from softprompt.inspection.inspection import Inspection
from softprompt.report.blocks import Cell, DataTable, HeatMap, PointMap, ReportBlock
from softprompt.report.section_view import SectionView

_ENTRIES = 400  # rows of a table of a section without a view of its own


def leak_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """The longest repeated run of words, and all verbatim spans."""
    if (reading := inspection.leak) is None:
        return ()
    rows = [
        ["with the prompt", len(reading.longest.split()), reading.longest],
        ["base alone", len(reading.base_longest.split()), reading.base_longest],
    ]
    spans = [[len(span.split()), span] for span in reading.spans]
    return (
        f"{reading.share:.1%} of the text's words were repeated in {len(spans)} spans of at least eight words.",
        DataTable(["", "words", "longest run"], rows, title="Longest run of the text's words"),
        *([DataTable(["words", "text"], spans, title="Verbatim spans")] if spans else []),
    )


def likeness_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """The matrix of similarities and the map."""
    if (reading := inspection.likeness) is None:
        return ()
    pairs = zip(reading.names, reading.average[0], reading.per_token[0], strict=True)
    names = reading.names
    left_out = f" {reading.left_out} less similar ones are left out." if reading.left_out else ""
    return (
        f"Names in parentheses are controls.{left_out} The map's two axes hold {reading.shown:.1%} of the spread.",
        HeatMap("Similarity (average tokens)", reading.average, "prompt", "prompt", names, names, signed=True),
        PointMap("Map", names, reading.map),
        DataTable(["prompt", "average tokens", "all pairs"], list(map(list, pairs))[1:], title="Similarity to it"),
    )


def words_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """The best text with its share and its controls', and all candidates."""
    if (reading := inspection.words) is None:
        return ()
    shares = [["the best text", reading.recovered], *([label, share] for label, share in reading.controls.items())]
    candidates = [[text.recovered, text.source, text.text] for text in reading.candidates]
    verdict = "The best text" if reading.says_it else "No text was found that says what the prompt does. The best"
    return (
        f"{verdict} recovers {reading.recovered:.0%} of the effect: “{reading.best.text}”",
        DataTable(["text of", "recovered"], shares, title="Share of the effect, on rows that it was not chosen on"),
        DataTable(["recovered", "source", "text"], candidates, title="Candidates, on the rows that they are chosen on"),
    )


def other_blocks(name: str, inspection: Inspection) -> Sequence[ReportBlock]:
    """Every value of a section that has no view of its own."""
    reading: object = getattr(inspection, name, None)
    rows: list[list[Cell]] = [[path, value] for path, value in _leaves(reading, "")]
    more = f"{len(rows) - _ENTRIES} further values stand in the JSON file." if len(rows) > _ENTRIES else ""
    return (DataTable(["", "value"], rows[:_ENTRIES]), *([more] if more else [])) if rows else ()


def _leaves(value: object, path: str) -> Iterator[tuple[str, Cell]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    elif value is not None:
        yield path, value if isinstance(value, str | int | float) else str(value)


LEAK = SectionView(
    "leak",
    "Leak",
    "Words of the training text that the model wrote when it was asked to repeat it, beside what the base writes by"
    " itself; long runs that only the prompt brings are a leak.",
    "Nothing found is no proof that nothing leaks: only a handful of questions were asked.",
    leak_blocks,
)
LIKENESS = SectionView(
    "likeness",
    "Likeness to other prompts",
    "Prompts close to each other have similar vectors, and are good starts for each other; compare the random one.",
    "Unlike vectors may do the same, and the map shows only part of the spread.",
    likeness_blocks,
)
WORDS = SectionView(
    "words",
    "In words",
    "The text that comes nearest to the soft prompt when it stands in its place; compare the texts found for the"
    " untrained start and the random prompt.",
    "A text with a small share is no description, however well it reads, and small models often find none.",
    words_blocks,
)
