"""Figures: colors, places and numbers against their definitions, and the same ones as PNG."""

from __future__ import annotations

import re
import sys

import pytest

from softprompt.errors import MissingExtraError
from softprompt.report.blocks import Bars, CurveLine, Curves, HeatMap, PointMap, numbers_of, shown
from softprompt.report.heat_map_svg import block_size, color_class, reduced
from softprompt.report.pictures import check_drawing, named_figures, png
from softprompt.report.svg import svg
from softprompt.report.svg_parts import Detail, ticks
from tests.report.planted import inspected

MAP = HeatMap("Map", [[0.0, 0.5, None], [-1.0, 1.0, float("nan")]], "layer", "token", signed=True, unit="share")


def test_colors_say_sign_and_size() -> None:
    assert [color_class(value, 1.0, True) for value in (0.0, 0.5, None, -1.0, 1.0, float("nan"))] == [
        "q0",
        "q6",
        "gap",
        "n11",
        "q11",
        "gap",
    ]
    titled = re.findall(r'<rect class="(\w+)"[^>]*><title>([^<]*)</title>', svg(MAP))
    assert titled[1] == ("q6", "layer 0, token 1: 50.0%") and titled[3] == ("n11", "layer 1, token 0: -100.0%")
    plain = svg(MAP, Detail(titled=0))
    assert "<title>" not in plain and 'class="n11" d="M0 1h1v1h-1z"' in plain
    assert "from -100.0% to 100.0% at layer 1, token 1." in plain


def test_large_maps_are_means_of_blocks() -> None:
    values = [[float(i + j) for j in range(6)] for i in range(4)]
    assert block_size(values, 2) == (2, 3) and block_size(values, 6) == (1, 1)
    assert reduced(values, 2, 3) == [[1.5, 4.5], [3.5, 6.5]]


def test_ticks_are_round_and_few() -> None:
    assert ticks((0.0, 1.0), 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks((-0.31, 0.72), 5) == pytest.approx([-0.2, 0, 0.2, 0.4, 0.6]) and len(ticks((0, 12345), 5)) <= 7


def test_a_curve_goes_through_its_points() -> None:
    text = svg(Curves("C", "x", "y", [CurveLine("a", [0.0, 0.5, 1.0]), CurveLine("b", [1.0, 1.0], control=True)]))
    drawn = [[tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'points="([^"]+)"', text)]
    (left, bottom), (middle, half), (right, top) = drawn[0]
    assert middle == pytest.approx((left + right) / 2, abs=0.1) and half == pytest.approx((bottom + top) / 2, abs=0.1)
    assert drawn[1] == [(left, top), (middle, top)] and 'class="line control c0"' in text


def test_numbers_are_those_of_the_figure() -> None:
    assert numbers_of(MAP).rows == [["0", 0.0, 0.5, None], ["1", -1.0, 1.0, MAP.values[1][2]]]
    bars = Bars("B", "token", ["0"], [0.5], [0.1], [CurveLine("random", [0.2])])
    assert (list(numbers_of(bars).columns), numbers_of(bars).rows) == (
        ["token", "value", "±", "random"],
        [["0", 0.5, 0.1, 0.2]],
    )
    assert [shown(x, "share") for x in (0.613, None, float("nan"))] == ["61.3%", "–", "nan"]


@pytest.mark.parametrize(
    "figure",
    [MAP, Bars("B", "words", ["a long label", "b"], [-0.2, 0.4]), PointMap("P", ["a", "(random)"], [(0, 0), (0, 0)])],
    ids=lambda figure: type(figure).__name__,
)
def test_odd_values_are_drawn(figure: HeatMap | Bars | PointMap) -> None:
    assert "nan" not in re.sub("<title>.*?</title>", "", svg(figure))


def test_every_figure_of_a_report_is_a_png() -> None:
    figures = named_figures([inspected("A name/with", tokens=4, layers=6)])
    assert "a-name-with.worth.shapley-value.png" in figures and len(figures) > 8
    assert len(named_figures([inspected(name, tokens=4, layers=6) for name in ("a/b", "a b")])) == 2 * len(figures)
    kinds = {type(figure): figure for figure in figures.values()}
    assert len(kinds) == 4
    for figure in kinds.values():
        assert png(figure).startswith(b"\x89PNG\r\n")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="plot"):
        check_drawing()
