"""Slot files in a stock llama-server: the real model, and random tiny ones of other layouts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from softprompt.errors import EngineError
from softprompt.export.base import ExportOptions
from softprompt.export.check import check_export
from softprompt.export.llama_server import ServerOptions, llama_server
from softprompt.export.llama_slot import slot_ids
from softprompt.export.registry import find_target
from tests.engines_real.conftest import Record, SourceOf
from tests.engines_real.gguf_models import plain_gguf
from tests.export.source import source_of as tiny_source
from tests.support.tiny import tiny_lm
from tests.support.tiny_gguf import write_gguf

TARGET = find_target("llama-slot")


@pytest.mark.parametrize(("form", "weights"), [("embedding", "f32"), ("kv", "f32"), ("kv", "f16")])
def test_llama_server_goes_on_behind_it(
    source_of: SourceOf, record: Record, tmp_path: Path, form: str, weights: str
) -> None:
    source = source_of(form, options=ExportOptions(gguf=plain_gguf(weights), kv_type="f32"))
    folder = TARGET.write(tmp_path / "out", source).folder
    report = check_export(TARGET, folder, source)
    record("llama-slot (llama.cpp)", form, weights, report)
    assert report.same == report.rows == 20
    assert report.difference < (0.02 if weights == "f32" else report.plain_difference + 0.02)  # f16 rounds weights


def test_the_shipped_quantized_model_needs_no_copy(source_of: SourceOf, record: Record, tmp_path: Path) -> None:
    source = source_of("embedding", chat=True)
    folder = TARGET.write(tmp_path / "out", source).folder
    report = check_export(TARGET, folder, source)
    record("llama-slot (llama.cpp)", "embedding", "Q4_1", report)
    assert report.difference < 2 * report.plain_difference + 0.05


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0"])
def test_other_number_formats_of_keys_and_values(source_of: SourceOf, tmp_path: Path, kv_type: str) -> None:
    source = source_of("kv", options=ExportOptions(gguf=plain_gguf("f16"), kv_type=kv_type))
    folder = TARGET.write(tmp_path / "out", source).folder
    report = check_export(TARGET, folder, source, ["Where is my parcel?", "Why is the sky blue?"])
    assert report.difference < 0.3


@pytest.mark.parametrize("form", ["embedding", "kv"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])  # keys interleaved; two caches, keys as in Transformers
def test_other_layouts(tmp_path: Path, family: str, form: str) -> None:
    made = tiny_source(tiny_lm(family), form, 4)
    file = write_gguf(tmp_path / "model.gguf", made.lm, family)
    made = replace(made, options=ExportOptions(gguf=file, kv_type="f32"))
    folder = TARGET.write(tmp_path / "out", made).folder
    report = check_export(TARGET, folder, made, ["hello", "a"])
    assert report.same == 2 and report.difference < 0.02


def test_the_scripts_of_the_folder(source_of: SourceOf, tmp_path: Path) -> None:
    source = source_of("kv", options=ExportOptions(gguf=plain_gguf("f16")))
    folder = TARGET.write(tmp_path / "out", source).folder
    with llama_server(ServerOptions(plain_gguf("f16"), 1024, "f16", slots=folder, n_slots=3)) as server:

        def run(script: str, *arguments: str) -> str:
            command = [sys.executable, str(folder / script), server.url, *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout

        lines = run("restore_slots.py").splitlines()
        assert lines == [f"slot {i}: {len(slot_ids(folder))} tokens" for i in range(3)]
        answers = {run("ask_slot.py", "Where is my parcel?", str(slot)) for slot in range(3)}
        assert len(answers) == 1 and answers != {"\n"}


def test_a_server_of_another_number_format_refuses(source_of: SourceOf, tmp_path: Path) -> None:
    source = source_of("kv", options=ExportOptions(gguf=plain_gguf("f16")))
    folder = TARGET.write(tmp_path / "out", source).folder
    options = ServerOptions(plain_gguf("f16"), 256, "f32", slots=folder)
    with llama_server(options) as server, pytest.raises(EngineError, match="refuses"):
        server.post("/slots/0?action=restore", {"filename": "prefix.slot"})
