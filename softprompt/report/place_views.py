"""The sections on which tokens and layers carry the effect: worth, layers, attention."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.inspection.inspection import Inspection
from softprompt.report.blocks import Bars, CurveLine, Curves, DataTable, HeatMap, ReportBlock, filled, labels_of
from softprompt.report.section_view import SectionView, control_curves


def worth_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """Shapley values with their errors, leave-one-out, deletion and insertion curves."""
    if (reading := inspection.worth) is None:
        return ()
    tokens = labels_of((), len(reading.shapley))
    best, random = reading.half
    half = len(tokens) // 2
    insertion = [
        CurveLine("most worthy first", reading.insertion),
        CurveLine("random order", reading.random_insertion, control=True),
    ]
    deletion = [
        CurveLine("most worthy first", reading.deletion),
        CurveLine("random order", reading.random_deletion, control=True),
    ]
    rows = [[i, reading.shapley[i], reading.shapley_error[i], reading.leave_one_out[i]] for i in range(len(tokens))]
    return (
        f"The best {half} tokens alone recover {best:.1%} of the effect, {half} random ones"
        f" {random:.1%}. {reading.orders} random orders were drawn.",
        Bars("Shapley value", "virtual token", tokens, reading.shapley, reading.shapley_error),
        Bars("Lost without it (leave-one-out)", "virtual token", tokens, reading.leave_one_out),
        Curves("Insertion: effect of the tokens kept", "tokens kept", "effect", insertion, reading.sizes),
        Curves("Deletion: effect that is left", "tokens left out", "effect", deletion, reading.sizes),
        DataTable(
            ["virtual token", "Shapley", "±", "lost without it"],
            rows,
            ["", "share", "share", "share"],
            "Worth of each virtual token",
        ),
    )


def layer_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """What is lost without each band of layers."""
    if (bands := inspection.layers) is None:
        return ()
    labels = [str(b.first) if b.first == b.last else f"{b.first}–{b.last}" for b in bands]
    marks = control_curves(inspection, lambda control: [band.lost for band in control.layers or ()])
    title = "Lost when these layers do not see the prompt"
    return (Bars(title, "layers", labels, [b.lost for b in bands], controls=marks),)


def head_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """What is lost without each head of the most read layers."""
    if (heads := inspection.heads) is None:
        return ()
    layers = sorted({head.layer for head in heads})
    rows = [[head.lost for head in heads if head.layer == layer] for layer in layers]
    rank = sorted(heads, key=lambda head: -head.lost)[:8]
    cells = [[f"layer {head.layer}, head {head.head}", head.lost] for head in rank]
    title = "Lost when one head does not see the prompt"
    return (
        HeatMap(title, rows, "layer", "head", list(map(str, layers)), signed=True, unit="share"),
        DataTable(["head", "lost"], cells, ["", "share"], "Largest losses"),
    )


def attention_blocks(inspection: Inspection) -> Sequence[ReportBlock]:
    """Attention by layer, head, virtual token and place in the answer, with the sink apart."""
    if (reading := inspection.attention) is None:
        return ()
    rows, added = filled(reading.by_layer), filled(reading.added)
    sinkless = [[None if i == reading.sink else v for i, v in enumerate(row)] for row in rows]
    has_added = any(row for row in reading.added)
    totals = [
        CurveLine("all virtual tokens", reading.total),
        CurveLine(f"without token {reading.sink} (the sink)", reading.besides_sink),
        *control_curves(inspection, lambda control: control.attention and control.attention.total),
    ]
    places = control_curves(inspection, lambda control: control.attention and control.attention.by_position)
    token, share = "virtual token", "share"
    return (
        f"Virtual token {reading.sink} takes the most attention in most layers (a sink); the second map leaves it out.",
        HeatMap("Attention to each virtual token", rows, "layer", token, unit=share),
        HeatMap("The same without the sink", sinkless, "layer", token, unit=share),
        *([HeatMap("Share of what they add (norm-weighted)", added, "layer", token, unit=share)] if has_added else []),
        HeatMap("Attention of each head to all of them", filled(reading.by_head), "layer", "head", unit=share),
        Curves("Attention to all of them by layer", "layer", "attention", totals),
        Curves(
            "By the token's place in the answer",
            "place",
            "attention",
            [CurveLine("this prompt", reading.by_position), *places],
        ),
    )


WORTH = SectionView(
    "worth",
    "Worth of each virtual token",
    "A long bar is a token that carries much of the effect; the values hold as an order only as far as the insertion"
    " curve runs above the random one and the deletion curve below it.",
    "A token that costs little to leave out is not useless: another one may replace it (compare its Shapley value).",
    worth_blocks,
)
LAYERS = SectionView(
    "layers",
    "Layers",
    "A long bar is a band of layers without which much of the effect is gone.",
    "Losses do not add up to 100%: layers make up for each other, and a loss says nothing about how a layer works.",
    layer_blocks,
)
HEADS = SectionView(
    "heads",
    "Heads",
    "Dark blue cells are heads of the two most read layers without which much of the effect is gone.",
    "Losses do not add up, and other layers' heads were not tried: a pale map does not say that heads do not matter.",
    head_blocks,
)
ATTENTION = SectionView(
    "attention",
    "Attention",
    "Dark cells are virtual tokens that the answers' tokens look at in that layer; norm-weighted, how much of what the"
    " virtual tokens add comes from each.",
    "Attention is no proof of effect: a sink draws much of it and does little. What is lost without a layer or token"
    " stands in the sections on layers and worth.",
    attention_blocks,
)
