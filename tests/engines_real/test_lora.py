"""A LoRA on the input embedding, in PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.export.check import check_export
from softprompt.export.registry import find_target
from tests.engines_real.conftest import Record, SourceOf


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_peft(source_of: SourceOf, record: Record, tmp_path: Path, chat: bool) -> None:
    target, source = find_target("lora"), source_of("embedding", chat=chat)
    folder = target.write(tmp_path / "out", source).folder
    report = check_export(target, folder, source)
    record("lora (PEFT)", "embedding", "float32", report)
    assert report.same == report.rows == 20
    assert report.difference < 1e-4
