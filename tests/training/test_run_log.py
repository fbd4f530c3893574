"""metrics.jsonl: appended line by line, readable at any moment, cut back to a checkpoint on resume."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from softprompt.errors import StoreError
from softprompt.training.run_log import RunLog, read_log


def event(step: int, **numbers: float) -> dict[str, Any]:
    return {"event": "step", "step": step, **numbers}


def written(path: Path, *steps: int, keep_until: int | None = None) -> RunLog:
    log = RunLog(path, keep_until)
    for step in steps:
        log.write(event(step))
    return log


def steps(path: Path) -> list[int]:
    lines: list[Any] = read_log(path)
    return [line["step"] for line in lines]


def test_one_object_a_line_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "metrics.jsonl"
    log = RunLog(path)
    log.write(event(1, loss=0.25))
    log.write({"event": "end", "step": 1, "why": "zwei\u2028Zeilen"})
    log.close()
    wanted = [event(1, loss=0.25), {"event": "end", "step": 1, "why": "zwei\u2028Zeilen"}]
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == wanted
    assert read_log(path) == wanted
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    """A line is on disk when `write` returns: a killed run loses none."""
    log = written(tmp_path / "m.jsonl", 1, 2)
    assert steps(tmp_path / "m.jsonl") == [1, 2]
    log.close()


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 1, 2, 3).close()
    written(tmp_path / "m.jsonl", 7).close()
    assert steps(tmp_path / "m.jsonl") == [7]


@pytest.mark.parametrize(("kept", "left"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_resumed_run_is_cut_back_to_its_checkpoint(kept: int, left: list[int], tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 1, 2, 3).close()
    written(tmp_path / "m.jsonl", 30, 31, keep_until=kept).close()
    assert steps(tmp_path / "m.jsonl") == [*left, 30, 31]


def test_resuming_without_a_file(tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 4, keep_until=3).close()
    assert steps(tmp_path / "m.jsonl") == [4]


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    """At whatever byte, and a resumed run writes its first line on a line of its own."""
    path = tmp_path / "m.jsonl"
    written(path, 1, 2).close()
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert steps(path) == [1]
    written(path, 2, 3, keep_until=1).close()
    assert steps(path) == [1, 2, 3]
    assert len(path.read_text().splitlines()) == 3


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert read_log(tmp_path / "missing.jsonl") == []


def test_what_came_behind_a_checkpoint_comes_again(tmp_path: Path) -> None:
    """A validation at the checkpoint's step, logged after it, must not stand there twice."""
    log = written(tmp_path / "m.jsonl", 1)
    log.write({"event": "checkpoint", "step": 1})
    log.write({"event": "validation", "step": 1})
    log.close()
    RunLog(tmp_path / "m.jsonl", keep_until=1).close()
    assert [line["event"] for line in read_log(tmp_path / "m.jsonl")] == ["step", "checkpoint"]


class FullDisk:
    """A file on a disk that takes no more, not even what was kept for the end."""

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.write("")


def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "m.jsonl")
    log.close()
    monkeypatch.setattr(log, "_file", FullDisk())
    for call in (lambda: log.write({"event": "step", "step": 1}), log.close):
        with pytest.raises(StoreError, match=r"(?s)m\.jsonl: cannot write: No space left"):
            call()


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write: (Not a directory|File exists)"):
        RunLog(tmp_path / "file" / "m.jsonl")
