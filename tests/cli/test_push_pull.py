"""`softprompt push` and `pull`, and names of the Hub and of a bucket in place of a soft prompt's name."""

from __future__ import annotations

from pathlib import Path

import pytest

import softprompt
from softprompt.cli.serve import find_prompts
from softprompt.data.template import Template
from softprompt.prompts import store
from softprompt.server.config import ServerConfig
from tests.support.far_away import URL, FarAway
from tests.support.hub_stand_in import hub_stand_in, use_hub
from tests.support.live_server import save_prompt
from tests.support.rows import write_jsonl
from tests.support.shell import done, parsed, refused


@pytest.mark.filterwarnings("ignore:Use 'content")  # huggingface_hub's own, of httpx
def test_every_verb_takes_a_name_of_elsewhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushed from here, used from there: the same words as from the folder."""
    lm = softprompt.load_model(str(base), dtype="float32")
    for i, name in enumerate(("tone", "legal")):
        save_prompt(store.locate(name), "embedding", Template("text", "Say: {text}"), i, lm)
    FarAway.reset()
    FarAway.put_folder(store.locate("tone"))
    options = ("--model", base, "--dtype", "float32")
    rows = write_jsonl(tmp_path / "rows.jsonl", *({"text": f"row {i}", "label": "AB"[i % 2]} for i in range(4)))
    with hub_stand_in() as running:
        use_hub(running, tmp_path / "hub", monkeypatch)
        pushed = parsed("push", "tone", "org/Tone", "--private", "--message", "first", "--json")
        assert running.control("state")["repositories"]["org/Tone"]["messages"] == ["initial commit", "first"]
        assert pushed["files"] == ["prompt.safetensors", "card.json", "README.md"]
        assert pushed["name"] == "org/Tone" and pushed["commit"] in pushed["url"]
        assert "softprompt generate org/Tone@v1" in done("push", "tone", "org/Tone", "--revision", "v1").stdout
        assert str(refused("pull", "org/Tone", "--name", "tone").hint).startswith("choose another")
        assert parsed("pull", "org/Tone@v1", "--name", "pulled", "--json") == {
            "name": "pulled",
            "files": str(store.locate("pulled")),
        }
        names = ("org/Tone", "org/Tone@v1", "pulled", f"{URL}/tone")
        words = done("generate", "tone", "text", *options, "--max-new-tokens", 4).stdout
        sha256 = parsed("show", "tone", "--json")["sha256"]
        for name in names:
            assert parsed("show", name, "--json")["sha256"] == sha256
            assert done("generate", name, "text", *options, "--max-new-tokens", 4).stdout == words
        done("compose", f"0.5*{URL}/tone + 0.5*org/Tone@v1", "--name", "mixed")
        assert store.load("mixed")[0].n_tokens == store.load("tone")[0].n_tokens
        scores = [parsed("eval", name, "--data", rows, *options, "--shots", 0, "--json") for name in ("tone", names[1])]
        assert scores[0]["soft_prompt"] == scores[1]["soft_prompt"]
        assert {row["name"] for row in parsed("similar", "org/Tone", "--json")["similar"]} >= {"tone", "legal"}
        served = find_prompts(ServerConfig(prompt=("a=org/Tone@v1", f"b={URL}/tone"), prompts_dir=URL))
        assert {name: store.load(path)[1].sha256 for name, path in served.pinned.items()} == {"a": sha256, "b": sha256}
        assert served.urls == {"b": f"{URL}/tone"} and served.folder is not None
    FarAway.reset()
