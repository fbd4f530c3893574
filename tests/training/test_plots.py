"""The learning curve is a picture, whatever there is to show."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from softprompt.training.plots import learning_curve

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TRAIN, VALIDATION = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.5)], [(0.0, 3.2), (3.0, 1.4)]


def picture(path: Path, train: list[tuple[float, float]], validation: list[tuple[float, float]]) -> bytes:
    learning_curve(path, "tone", train, validation)
    return path.read_bytes()


@pytest.mark.parametrize("train", [[], TRAIN[:1], TRAIN])
@pytest.mark.parametrize("validation", [[], VALIDATION[:1], VALIDATION])
def test_it_is_a_png(train: list[tuple[float, float]], validation: list[tuple[float, float]], tmp_path: Path) -> None:
    raw = picture(tmp_path / "curve.png", train, validation)
    assert raw.startswith(SIGNATURE)
    assert raw.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", raw[16:24])
    assert width > height > 300
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_both_series_are_drawn(tmp_path: Path) -> None:
    made = {picture(tmp_path / "curve.png", t, v) for t in ([], TRAIN) for v in ([], VALIDATION)}
    assert len(made) == 4


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    """No date or version of the software in it."""
    one, two = (picture(tmp_path / name, TRAIN, VALIDATION) for name in ("one.png", "two.png"))
    assert one == two
    assert b"Software" not in one


@pytest.mark.parametrize("name", ["$x^$", "a_b^c", "100%"])
def test_a_name_is_not_read_as_mathematics(name: str, tmp_path: Path) -> None:
    learning_curve(tmp_path / "curve.png", name, TRAIN, VALIDATION)
    assert (tmp_path / "curve.png").stat().st_size > 0
