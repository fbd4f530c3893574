"""The learning curve is a picture, whatever there is to show."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from softprompt.errors import MissingExtraError
from softprompt.prompts import store
from softprompt.training.plots import can_plot, fidelity_by_size, learning_curve
from softprompt.training.run import fit, prepare
from tests.support.missing import uninstall
from tests.support.saved import save_tiny, settings
from tests.support.tiny import tiny_lm

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


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_plot()
    uninstall("matplotlib", monkeypatch)
    with pytest.raises(MissingExtraError, match=r"(?s)matplotlib is not installed.*pip install 'softprompt\[plot\]'"):
        learning_curve(tmp_path / "curve.png", "tone", TRAIN, VALIDATION)
    with pytest.raises(MissingExtraError):
        fidelity_by_size(tmp_path / "fidelity.png", "tone", [(4, 0.5)])
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_run_is_saved_without_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    base = save_tiny(tmp_path / "llama", bos=True)
    prepared = prepare(settings(base, tmp_path, name="tone", train__steps=2))
    uninstall("matplotlib", monkeypatch)
    with pytest.warns(UserWarning, match=r"no plots: pip install 'softprompt\[plot\]'") as caught:
        fit(prepared, tiny_lm("llama", bos=True))
    assert len(caught) == 1
    folder = tmp_path / "prompts" / "tone"
    assert store.load_card(folder).metrics["steps"] == 2
    assert not list(folder.glob("*.png"))
    assert ".png" not in (folder / "README.md").read_text(encoding="utf-8")
