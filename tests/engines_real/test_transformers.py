"""Transformers in a process of its own: the exported lines, and a copy of the model with more tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.export.check import check_export
from softprompt.export.registry import find_target
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.sources import PUBLISHED_AS, find_source
from tests.engines_real.conftest import Record, SourceOf

CASES = [("transformers", "embedding"), ("transformers", "kv"), ("vocabulary", "embedding")]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_transformers_answers_as_we_do(
    name: str, form: str, source_of: SourceOf, record: Record, tmp_path: Path
) -> None:
    target, source = find_target(name), source_of(form)
    folder = target.write(tmp_path / "out", source).folder
    report = check_export(target, folder, source)
    record(name, form, "float32", report)
    assert report.same == report.rows == 20
    assert report.difference <= 1e-4 and report.plain_difference <= 1e-4


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_the_file_runs_as_it_is(form: str, source_of: SourceOf, tmp_path: Path) -> None:
    """From another folder, for a base that is a folder here: it says what `softprompt generate` says."""
    source = source_of(form, chat=True)
    script = find_target("transformers").write(tmp_path / "out", source).folder / "use.py"
    here = find_source("smollm2-135m").path  # the published one is not on this machine
    script.write_text(script.read_text().replace(PUBLISHED_AS["smollm2-135m"], here))
    command = [sys.executable, "-P", str(script), "Where is my parcel?"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    requests, sampling = [Request("Where is my parcel?")], Sampling(max_new_tokens=64)
    (wanted,) = generate(source.lm, {"tone": source.formatted}, requests, sampling)
    assert done.stdout.strip() == wanted.text.strip()
