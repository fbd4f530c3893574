"""The sections on what a soft prompt does and where it lies: behavior, nearest, drift."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.inspection.behavior import TokenShift
from softprompt.inspection.inspection import Inspection
from softprompt.report.blocks import Bars, Cell, CurveLine, DataTable, HeatMap, ReportBlock, VocabularyTokens, labels_of
from softprompt.report.section_view import SectionView, control_curves, control_lines, in_parentheses


def behavior_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """Promoted and demoted tokens, entropy, divergences."""
    if (reading := inspection.behavior) is None:
        return ()
    controls = {
        label: control.behavior for label, control in inspection.controls.items() if control.behavior is not None
    }
    every = {"this prompt": reading, **controls}
    rows: list[list[Cell]] = [
        [
            "entropy at the answer's first token",
            reading.base_entropy,
            *(behavior.entropy for behavior in every.values()),
        ],
        [
            "divergence from the base on the rows, a token",
            0.0,
            *(behavior.own_divergence for behavior in every.values()),
        ],
    ]
    if reading.foreign_divergence is not None:
        foreign = [behavior.foreign_divergence for behavior in every.values()]
        rows.append(["divergence from the base on neutral texts, a token", 0.0, *foreign])
    shares = ", ".join(f"{label} {control.recovered:.1%}" for label, control in inspection.controls.items())
    sentence = f"Share of this effect that a control has in its place: {shares}." if shares else ""
    columns = ["nats", "base", *every]
    return (
        *([sentence] if sentence else []),
        _shifts("Promoted tokens", reading.promoted),
        _shifts("Demoted tokens", reading.demoted),
        DataTable(columns, rows, ["", *["nats"] * (len(columns) - 1)], "Entropy and divergence"),
    )


def _shifts(title: str, shifts: Sequence[TokenShift]) -> ReportBlock:
    if not shifts:
        return f"{title}: none."
    rows = [[VocabularyTokens((s.token,)), s.change, s.base_probability, s.probability] for s in shifts]
    return DataTable(["token", "change", "base", "with the prompt"], rows, ["", "nats", "share", "share"], title)


def nearest_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """The words near each virtual token, and the share of the effect that they have."""
    if (reading := inspection.nearest) is None:
        return ()
    shares = [
        ("these words", reading.recovered),
        ("words near the start", reading.start_recovered),
        ("words near a random prompt", reading.random_recovered),
    ]
    known = [(name, value) for name, value in shares if value is not None]
    rows = [[i, near.z, near.cosines[0], VocabularyTokens(near.tokens)] for i, near in enumerate(reading.tokens)]
    return (
        control_lines(shares, "Recovered share of the effect with these words in the prompt's place"),
        Bars("Recovered by the nearest words", "words", [n for n, _ in known], [v for _, v in known]),
        Bars(
            "How far the nearest word stands out (z)",
            "virtual token",
            labels_of((), len(reading.tokens)),
            [near.z for near in reading.tokens],
            unit="",
        ),
        DataTable(["virtual token", "z", "cosine", "nearest words"], rows, title="Nearest words"),
    )


def drift_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """Norms, distances from the start, effective rank, cosines."""
    if (reading := inspection.drift) is None:
        return ()
    tokens = labels_of((), len(reading.norms))
    columns: list[tuple[str, Sequence[float] | None, str]] = [
        ("norm", reading.norms, ""),
        ("longer than this share of the words", reading.norm_quantiles, "share"),
        ("distance from the start", reading.distances, "share"),
    ]
    known = [(name, values, unit) for name, values, unit in columns if values is not None]
    rows = [[int(token), *(values[i] for _, values, _ in known)] for i, token in enumerate(tokens)]
    ranks = reading.effective_rank
    many = len(ranks) > 1
    figures: list[ReportBlock] = [
        HeatMap("Cosines between virtual tokens", reading.cosines, "virtual token", "virtual token", signed=True)
    ]
    if reading.distances is not None:
        title = "Distance from the start, in its norm"
        figures.append(Bars(title, "virtual token", tokens, reading.distances))
    if many:
        marks = control_curves(inspection, lambda control: control.drift and control.drift.effective_rank)
        layers = labels_of((), len(ranks))
        figures.append(Bars("Effective rank by layer", "layer", layers, ranks, controls=marks, unit=""))
    controls = [(label, c.drift.effective_rank) for label, c in inspection.controls.items() if c.drift is not None]
    means = in_parentheses([(label, f"{sum(values) / len(values):.1f}") for label, values in controls])
    rank = f"{min(ranks):.1f} to {max(ranks):.1f} by layer" if many else f"{min(ranks):.1f}"
    return (
        f"Effective rank: {rank}{means}, of {len(tokens)} virtual tokens.",
        *figures,
        DataTable(
            ["virtual token", *(name for name, _, _ in known)],
            rows,
            ["", *(unit for _, _, unit in known)],
            "Virtual tokens",
        ),
    )


def lens_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """The words after some layers, and the share of the effect that they have."""
    if (layers := inspection.lens) is None:
        return ()
    rows = [[layer.layer, layer.recovered, layer.random_recovered, VocabularyTokens(layer.tokens)] for layer in layers]
    random = CurveLine("random prompt's words", [layer.random_recovered for layer in layers], control=True)
    labels = [str(layer.layer) for layer in layers]
    shares = [layer.recovered for layer in layers]
    return (
        Bars("Recovered by the words of a layer", "layer", labels, shares, controls=[random]),
        DataTable(
            ["layer", "recovered", "random", "most likely word at each virtual token"],
            rows,
            ["", "share", "share", ""],
            "Words by layer",
        ),
    )


BEHAVIOR = SectionView(
    "behavior",
    "What it does",
    "Tokens whose probability at the answer's first place the soft prompt raises or lowers most, on average over the"
    " rows; the divergence says how far it moves the predictions there and on texts that it was not made for.",
    "An average hides single rows, and a small divergence on neutral texts does not make a prompt safe.",
    behavior_blocks,
)
NEAREST = SectionView(
    "nearest",
    "Nearest words",
    "Read the recovered share first: only if the words in the prompt's place keep much of its effect, and more than"
    " the words near a random prompt, do they say something about it.",
    "Do not read the words as the prompt's meaning: prompts that work equally well can lie near any text.",
    nearest_blocks,
)
DRIFT = SectionView(
    "drift",
    "Where it lies",
    "Long distances and norms mean that training left the words; an effective rank far below the number of virtual"
    " tokens, or bright blocks off the diagonal, mean that tokens resemble each other.",
    "This describes vectors, not what they do: a token that moved far may have no effect.",
    drift_blocks,
)
LENS = SectionView(
    "lens",
    "Lens",
    "The words that the model would predict from each virtual token after a layer; compare the share of the effect that"
    " they recover with that of a random prompt's words.",
    "This is the weakest reading: middle layers do not speak the head's language, and most of the words mean nothing.",
    lens_blocks,
)
