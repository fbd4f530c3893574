"""Inspections made of numbers, without any model: every section, with hostile names and tokens."""

from __future__ import annotations

import math
from dataclasses import replace

from softprompt.inspection.attention import AttentionReading
from softprompt.inspection.behavior import Behavior, TokenShift
from softprompt.inspection.drift import Drift
from softprompt.inspection.inspection import Inspection
from softprompt.inspection.layers import HeadLoss, LayerBand
from softprompt.inspection.leak import Leak
from softprompt.inspection.lens import LensLayer
from softprompt.inspection.likeness import Likeness
from softprompt.inspection.nearest import Nearest, NearTokens
from softprompt.inspection.verbalize import JudgedText, Verbalization
from softprompt.inspection.worth import TokenWorth
from softprompt.report.page import InspectedPrompt

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&\u202e"


def inspected(name: str = "tone", tokens: int = 16, layers: int = 30, text: str = HOSTILE) -> InspectedPrompt:
    return InspectedPrompt(name, {"base model": "smollm2-135m", "note": text}, inspection(tokens, layers, text))


def inspection(tokens: int = 16, layers: int = 30, text: str = HOSTILE) -> Inspection:
    """Smooth waves for every number, `text` for every text."""
    each = [_wave(i) for i in range(tokens)]
    curve = [i / tokens for i in range(tokens + 1)]
    early = [math.sqrt(share) for share in curve]
    names = ("tone", text, "warm", "(random)")
    shift = TokenShift(text, 1.5, 0.4, 0.1)
    found = Inspection(
        rows=12,
        effect=1.234,
        recovered=1.0,
        behavior=Behavior((shift, shift), (shift,), 1.2, 2.3, 1.234, 0.4),
        nearest=Nearest(tuple(NearTokens((1, 2), (text, " warm"), (0.5, 0.4), 3 * x) for x in each), 0.2, 0.05, 0.1),
        drift=Drift(tuple(each), tuple(each), tuple(each), (float(tokens) / 2,), _matrix(tokens, tokens)),
        worth=TokenWorth(
            tuple(each),
            tuple(each),
            (0.05,) * tokens,
            4,
            tuple(range(tokens + 1)),
            *map(tuple, (curve[::-1], early, curve[::-1], curve)),
        ),
        layers=tuple(LayerBand(i, i + 2, _wave(i)) for i in range(0, layers, 3)),
        heads=tuple(HeadLoss(layer, head, _wave(head)) for layer in (4, 5) for head in range(9)),
        attention=AttentionReading(
            by_layer=(*_matrix(layers - 1, tokens), ()),
            sink=0,
            total=(0.3,) * layers,
            besides_sink=(0.1,) * layers,
            by_head=_matrix(layers, 9),
            added=_matrix(layers, tokens),
            by_position=(0.3, 0.2, 0.1),
        ),
        lens=tuple(LensLayer(layer, (text,) * tokens, (0.5,) * tokens, 0.2, 0.1) for layer in (0, 15, 29)),
        leak=Leak(text, (text, "be warm"), 0.25, "be"),
        likeness=Likeness(
            names, _matrix(4, 4), _matrix(4, 4), ((0.5, 0.1), (0.2, 0.4), (-0.4, 0.0), (0.0, -0.6)), 0.8, 2
        ),
        words=Verbalization(
            JudgedText(text, "words", 0.4), 0.35, {"start": 0.1}, (JudgedText(text, "words", 0.4),), 12
        ),
        left_out={},
    )
    control = replace(found, recovered=0.07, nearest=None, worth=None, heads=None, lens=None, leak=None, likeness=None)
    control = replace(control, words=None)
    return replace(found, controls={"start": control, "random": control})


def _wave(i: float) -> float:
    return 0.2 + 0.3 * math.sin(i * 1.7)


def _matrix(rows: int, columns: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1.0 if i == j else math.cos(i - j) * _wave(i + j) for j in range(columns)) for i in range(rows))
