"""Reading and writing single files: JSON and tensors, bounded and checked."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from softprompt import files
from softprompt.errors import StoreError
from softprompt.files import check_writable, read_json, read_tensors, write_json


def test_json_round_trip(tmp_path: Path) -> None:
    data = {"é": [1, -0.0, 1e-300, 2**70, None, True, "\u2028 日本"], "b": {"a": {}}}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data
    assert "日本" in (tmp_path / "a.json").read_bytes().decode()


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "\ud800", object()])
def test_what_json_cannot_hold_is_refused_before_it_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"a": value})
    assert not (tmp_path / "a.json").exists()


BROKEN_JSON = {
    "cut off": b'{"a": 1',
    "twice": b'{"a": {"b": 1, "c": 2, "b": 3}}',
    "NaN": b'{"a": NaN}',
    "infinite": b"[-Infinity]",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 200_000,
    "deep and closed": b"[" * 200_000 + b"]" * 200_000,
    "long number": b"1" * 10_000,
    "two values": b"{} {}",
    "nothing": b"",
    "pickle": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("broken", BROKEN_JSON)
def test_broken_json_is_refused(tmp_path: Path, broken: str) -> None:
    (tmp_path / "a.json").write_bytes(BROKEN_JSON[broken])
    with pytest.raises(StoreError, match="not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.where == tmp_path / "a.json"


def test_a_key_given_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(BROKEN_JSON["twice"])
    with pytest.raises(StoreError, match="duplicate key 'b'"):
        read_json(tmp_path / "a.json")


def write_any(path: Path) -> None:
    path.write_text(json.dumps({})) if path.suffix == ".json" else save_file({"a": torch.zeros(2)}, path)


@pytest.mark.parametrize(("read", "name"), [(read_json, "a.json"), (read_tensors, "a.safetensors")])
def test_only_plain_files_of_modest_size_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], name: str
) -> None:
    path, link = tmp_path / name, tmp_path / f"link-{name}"
    write_any(path)
    read(path)
    link.symlink_to(path)
    os.mkfifo(tmp_path / f"pipe-{name}")
    for odd, message in ((link, "not a plain file"), (tmp_path, "not a plain file"), (tmp_path / "x", "no such file")):
        with pytest.raises(StoreError, match=message):
            read(odd)
    with pytest.raises(StoreError, match="not a plain file"):  # opened, it would wait for ever
        read(tmp_path / f"pipe-{name}")
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        read(link)
    write_any(path)
    limit = "MAX_JSON_BYTES" if read is read_json else "MAX_TENSOR_BYTES"
    monkeypatch.setattr(files, limit, path.stat().st_size)
    read(path)
    monkeypatch.setattr(files, limit, path.stat().st_size - 1)
    with pytest.raises(StoreError, match="too large"):
        read(path)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    write_json(tmp_path / "a.json", {})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match="cannot be read: Permission denied"):
        read_json(tmp_path / "a.json")


def test_tensors_are_checked_before_any_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.safetensors", files.safe_open
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    seen, loaded = [], []

    class Watched:
        def __init__(self, *given: Any, **named: Any) -> None:
            self.file = real(*given, **named)

        def __enter__(self) -> Watched:
            self.open = self.file.__enter__()
            return self

        def __exit__(self, *what: Any) -> None:
            self.file.__exit__(*what)

        def get_tensor(self, name: str) -> torch.Tensor:
            loaded.append((name, len(seen)))
            return self.open.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.open, name)

    monkeypatch.setattr(files, "safe_open", Watched)
    tensors = read_tensors(path, seen.append)
    assert seen == [{"a": ((2, 3), "F32"), "b": ((4,), "BF16")}]
    assert sorted(loaded) == [("a", 1), ("b", 1)]
    assert torch.equal(tensors["b"], torch.ones(4, dtype=torch.bfloat16))
    monkeypatch.setattr(files, "MAX_TENSORS", 1)
    with pytest.raises(StoreError, match="too many tensors"):
        read_tensors(path)
    assert len(loaded) == 2


def test_what_may_not_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists(), "nothing is made"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"(?s)file: not a folder"):
        check_writable(tmp_path / "file" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(StoreError, match="may not be written to"):
        check_writable(tmp_path / "a")
