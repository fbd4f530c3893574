"""The command `llm`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients_real.conftest import URL


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"- model_id: own\n  model_name: {model}\n  api_base: {URL}/v1\n  supports_schema: true\n"]
    lines.append(f"- model_id: none\n  model_name: {model}-not\n  api_base: {URL}/v1\n")
    (tmp_path / "extra-openai-models.yaml").write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300, check=False)


def test_chat(model: str) -> None:
    made = run("-m", "own", "-o", "max_tokens", "8", "--no-stream", "-s", "Be brief.", "Say hello.")
    assert made.returncode == 0 and made.stdout.strip(), made.stderr


def test_streaming(model: str) -> None:
    made = run("-m", "own", "-o", "max_tokens", "8", "Say hello.")
    assert made.returncode == 0 and made.stdout.strip(), made.stderr


def test_structured_output(model: str) -> None:
    schema = '{"type":"object","properties":{"city":{"enum":["Rome","Oslo"]}},"required":["city"]}'
    made = run("-m", "own", "-o", "max_tokens", "200", "--schema", schema, "Where?")
    assert made.returncode == 0 and '"city"' in made.stdout, made.stderr


def test_errors(model: str) -> None:
    made = run("-m", "none", "Hi")
    assert made.returncode != 0 and "does not exist" in made.stderr
