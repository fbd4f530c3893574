"""All or nothing: whenever the power fails or the disk refuses, a folder is the old one or the new one."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from softprompt.errors import StoreError
from softprompt.files import recover_all, recover_folder, write_folder

OLD, NEW, NEXT = ({"a": f"{word} a", "b": f"{word} b" * 99} for word in ("old", "new", "next"))


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


class Disk:
    """Makes every call that touches the disk count, and the one at number `at` and all after it fail.

    Dead calls after the first matter: a process without power cannot clean up after itself either.
    """

    def __init__(self, at: int, failure: BaseException, *, stays: bool) -> None:
        self.at, self.failure, self.stays, self.count = at, failure, stays, 0

    @property
    def failed(self) -> bool:
        return self.count > self.at

    def step(self) -> None:
        self.count += 1
        if self.count - 1 == self.at or (self.stays and self.failed):
            raise self.failure

    def fill(self, content: dict[str, str]) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            for name, text in content.items():
                self.step()
                (folder / name).write_text(text[: len(text) // 2])
                self.step()
                (folder / name).write_text(text)

        return fill

    def under(self, patch: pytest.MonkeyPatch) -> None:
        def counted(module: Any, name: str) -> None:
            real = getattr(module, name)

            def call(*given: Any, **named: Any) -> Any:
                self.step()
                return real(*given, **named)

            patch.setattr(module, name, call)

        for module, name in ((tempfile, "mkdtemp"), (os, "fsync"), (os, "rename"), (os, "chmod")):
            counted(module, name)
        patch.setattr(shutil, "rmtree", self._rmtree(shutil.rmtree))

    def _rmtree(self, real: Callable[..., None]) -> Callable[..., None]:
        def rmtree(path: Path, ignore_errors: bool = False) -> None:
            if Path(path).is_dir():
                try:
                    self.step()
                    for one in sorted(Path(path).iterdir())[:1]:
                        one.unlink()  # the power may fail in the middle of it
                    self.step()
                    real(path)
                except OSError:
                    if not ignore_errors:
                        raise

        return rmtree


def content(folder: Path) -> dict[str, str] | None:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None


def writer(text: dict[str, str]) -> Callable[[Path], None]:
    return Disk(10**9, PowerCut(), stays=True).fill(text)


def attempt(target: Path, disk: Disk, expected: type[BaseException], *, old: bool) -> None:
    """Write NEW over OLD, or over nothing, on a disk that fails."""
    if old:
        write_folder(target, writer(OLD))
    with pytest.MonkeyPatch.context() as patch:
        disk.under(patch)
        try:
            write_folder(target, disk.fill(NEW), overwrite=old)
        except expected:
            assert disk.failed
    if not disk.failed:
        assert content(target) == NEW


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "over nothing"])
def test_a_power_cut_at_any_step_leaves_old_or_new(tmp_path: Path, old: bool) -> None:
    before = OLD if old else None
    seen = []
    at = 0
    for at in range(100):
        target, disk = tmp_path / str(at) / "prompt", Disk(at, PowerCut(), stays=True)
        attempt(target, disk, PowerCut, old=old)
        if not disk.failed:
            break
        recover_folder(target)
        seen.append(content(target))
        assert seen[-1] in (before, NEW), f"half a folder after step {at}"
        write_folder(target, writer(NEXT), overwrite=True)  # what is left lying about must not be in the way
        assert content(target) == NEXT
        assert not target.with_name(".prompt.old").exists()
    assert at >= 11  # else steps are not seen
    assert seen[0] == before
    assert seen[-1] == NEW
    assert sorted(seen, key=lambda one: one == NEW) == seen, "new, and then old again"


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "over nothing"])
def test_a_full_disk_at_any_step_leaves_old_or_new_and_no_litter(tmp_path: Path, old: bool) -> None:
    before = OLD if old else None
    at = 0
    for at in range(100):
        target = tmp_path / str(at) / "prompt"
        disk = Disk(at, OSError(errno.ENOSPC, "No space left on device"), stays=False)
        attempt(target, disk, StoreError, old=old)
        if not disk.failed:
            break
        assert content(target) in (before, NEW), f"half a folder after step {at}"
        assert not list(target.parent.glob(".prompt.tmp-*"))
    assert at >= 11  # else steps are not seen


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="cannot write: No space left on device") as caught:
        write_folder(tmp_path / "a", fill)
    assert caught.value.where == tmp_path / "a"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_under_safetensors_is_told(tmp_path: Path) -> None:
    """safetensors raises an error of its own, which is no OSError."""

    def fill(folder: Path) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # Python ignores the signal that comes with it
        try:
            save_file({"a": torch.zeros(10_000)}, folder / "a.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with pytest.raises(StoreError, match=r"cannot write: .*File too large"):
        write_folder(tmp_path / "a", fill)
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    missing: list[list[str]] = []
    sync, rename = os.fsync, os.rename

    def remember(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        sync(handle)

    def check(source: Path, target: Path) -> None:
        missing.append([p.name for p in (source, *source.iterdir()) if p.stat().st_ino not in synced])
        synced.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "rename", check)
    write_folder(tmp_path / "a", writer(NEW))
    assert missing == [[]]
    assert tmp_path.stat().st_ino in synced, "the new name itself"


def test_any_failure_of_the_filler_leaves_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", writer(OLD))

    def fill(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / name, fill, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert content(tmp_path / "a") == OLD


def test_without_overwrite_what_is_there_stays(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", writer(OLD))
    with pytest.raises(StoreError, match="already there") as caught:
        write_folder(tmp_path / "a", writer(NEW))
    assert "--overwrite" in str(caught.value)
    assert content(tmp_path / "a") == OLD
    write_folder(tmp_path / "a", writer(NEW), overwrite=True)
    assert content(tmp_path / "a") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_folder_is_made_with_its_parents_and_for_others_to_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "b" / "c", writer(NEW))
    assert content(tmp_path / "b" / "c") == NEW
    assert (tmp_path / "b" / "c").stat().st_mode & 0o777 == 0o755
    write_folder(tmp_path / "d", lambda scratch: save_file({"a": torch.zeros(1)}, scratch / "a.safetensors"))
    assert (tmp_path / "d" / "a.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to nothing"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_only_a_folder_is_ever_replaced(tmp_path: Path, kind: str, overwrite: bool) -> None:
    target, other = tmp_path / "a", tmp_path / "other"
    if kind == "file":
        target.write_text("precious")
    else:
        target.symlink_to(other)
        if kind == "link to a folder":
            write_folder(other, writer(OLD))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreError, match="nothing was written"):
        write_folder(target, writer(NEW), overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert content(other) == (OLD if other.exists() else None)


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_folders_without_a_name_are_never_replaced(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(StoreError):
        write_folder(Path(path), lambda folder: None)
    recover_folder(Path(path))
    assert list(Path().iterdir()) == []


def stranded(folder: Path, name: str) -> None:
    """As a power cut between the two renames leaves it."""
    write_folder(folder / f".{name}.old", writer(OLD))


def test_recovery_puts_back_only_what_is_gone(tmp_path: Path) -> None:
    stranded(tmp_path, "a")
    recover_folder(tmp_path / "a")
    assert content(tmp_path / "a") == OLD
    stranded(tmp_path, "b")
    write_folder(tmp_path / "kept", writer(NEW))
    os.rename(tmp_path / "kept", tmp_path / "b")
    recover_folder(tmp_path / "b")
    assert content(tmp_path / "b") == NEW
    stranded(tmp_path, "empty")
    (tmp_path / "empty").mkdir()
    recover_folder(tmp_path / "empty")
    assert content(tmp_path / "empty") == {}
    recover_folder(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_recovery_where_nothing_may_be_written_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    stranded(tmp_path, "a")
    monkeypatch.setattr(os, "rename", refuse)
    recover_folder(tmp_path / "a")
    assert content(tmp_path / ".a.old") == OLD


def test_recovery_of_a_whole_folder_touches_only_what_holds_the_file(tmp_path: Path) -> None:
    stranded(tmp_path, "one")
    stranded(tmp_path, "two")
    (tmp_path / ".mine.old").mkdir()
    recover_all(tmp_path, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.old", "one", "two"]
    recover_all(tmp_path / "nowhere", "b")
