"""Every script of examples/ runs on a tiny model, in this process, and prints lines of the form in its README."""

from __future__ import annotations

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from softprompt.models.loading import load_model
from softprompt.prompts import store
from tests.support.saved import save_tiny
from tests.support.shell import done
from tests.support.tiny_gguf import write_gguf

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WITH_SCRIPT = sorted(path.parent.name for path in EXAMPLES.glob("*/*.py") if path.stem == path.parent.name)
LONGEST = 80  # lines of a script, which is to be read from top to bottom
TESTED_ELSEWHERE = ("jobs_with_openai_client",)  # tests/server/test_documented_script.py
pytestmark = [
    # of these libraries, not of ours
    pytest.mark.filterwarnings("ignore::FutureWarning:(trl|transformers|accelerate|datasets|torch|peft)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(trl|transformers|accelerate|datasets|torch|peft)"),
    pytest.mark.filterwarnings("ignore::UserWarning:(trl|transformers|accelerate|datasets|torch|peft)"),
    pytest.mark.filterwarnings("ignore:.*:Warning:(lm_eval|transformers|datasets|evaluate)"),
]
Script = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the context of a real one."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return str(folder)


@pytest.fixture
def script(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    """Runs an example's script by name in an empty folder; commands of ours run in this process, too."""
    for name in [name for name in os.environ if name.startswith("SOFTPROMPT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.setattr(subprocess, "run", run_here_or(subprocess.run))
    started = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **options: started([sys.executable, "-m", *words], **options)
    )

    def run(name: str, *words: object) -> str:
        path = EXAMPLES / name / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--model", base, *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capfd.readouterr().out

    return run


def run_here_or(run: Callable[..., object]) -> Callable[..., object]:
    """`subprocess.run`, but commands of ours stay in this process."""

    def run_here(words: Sequence[str], **options: object) -> object:
        return sys.stdout.write(done(*words[1:]).stdout) if words[0] == "softprompt" else run(words, **options)

    return run_here


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def shape(text: str) -> list[str]:
    """The first word of every line."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def printed(name: str) -> str:
    """The output in an example's README."""
    (block,) = re.findall(r"^```text\n(.*?)^```$", (EXAMPLES / name / "README.md").read_text(), re.M | re.S)
    return block


def test_every_example_is_told_and_tested() -> None:
    """A folder has a README and a line in the index; a script is short, and takes a model."""
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = [path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [name for name in folders if f"]({name}/" not in index] == []
    tests = Path(__file__).read_text(encoding="utf-8")
    for name in WITH_SCRIPT:
        text = (EXAMPLES / name / f"{name}.py").read_text(encoding="utf-8")
        assert 'add_argument("--model", default="smollm2-135m")' in text
        assert len(text.splitlines()) <= LONGEST
        readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
        assert f"python examples/{name}/{name}.py" in readme and "Next:" in readme
        assert f"def test_{name}(" in tests or name in TESTED_ELSEWHERE


def test_classify(script: Script) -> None:
    out = script("classify", "--minutes", 0.01)
    assert "steps of training, saved in prompts/feedback" in out.splitlines()[0]
    assert shape(out)[1:4] == shape(printed("classify"))[1:4] == ["base", "text", "soft"]
    assert all(f" {message}" in out for message in ("You made my day, thank you!", "Where can I see my plan?"))


def test_distill_policy(script: Script, tmp_path: Path) -> None:
    policy = tmp_path / "policy.md"
    policy.write_text("Speak as a pirate. End with Arr!")
    out = script("distill_policy", "--policy", policy, "--steps", 2)
    for text in (out, printed("distill_policy")):
        assert re.search(r"^soft prompt +64 .*%", text, re.M)
        assert re.findall(r"^When are you open\?  \[(.*)\]", text, re.M) == ["no text", "soft prompt", "full text"]


def test_distill_document(script: Script, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(
        "# Boats\n\nThe red boat is Heron. It costs 12 euros.\n\n# Oars\n\nMister Lind repairs oars. " * 3
    )
    out = script("distill_document", "--document", document, "--steps", 2)
    for text in (out, printed("distill_document")):
        assert re.search(r"^soft prompt +64 .*%", text, re.M)
        assert re.search(r"^text .* in \d+ pieces$", text, re.M)
        assert "Who repairs the oars?" in text


def test_serve_many(script: Script) -> None:
    out = script("serve_many", "--port", free_port())
    assert shape(out)[:-2] == shape(printed("serve_many"))[:-2]
    assert out.splitlines()[-1] == printed("serve_many").splitlines()[-1] == "16 of 16 answers are the same"


def test_import_from_peft(script: Script) -> None:
    out = script("import_from_peft", "--steps", 2)
    for text in (out, printed("import_from_peft")):
        assert float(re.findall(r"^largest difference of a logit: (.*)$", text, re.M)[0]) < 1e-3
        assert re.search(r"^accuracy .* base [01]\.\d\d, with the adapter [01]\.\d\d$", text, re.M)


def test_export_to_llama_cpp(script: Script, base: str, tmp_path: Path) -> None:
    """Without llama.cpp, which `make test-engines` has."""
    gguf = write_gguf(tmp_path / "tiny.gguf", load_model(base, dtype="float32", device="cpu"), "llama", tied=True)
    out = script("export_to_llama_cpp", "--gguf", gguf, "--steps", 2)
    for text in (out, printed("export_to_llama_cpp")):
        assert "feedback-embedding is in feedback-gguf for gguf-lora" in text
        assert re.search(r"llama-server -m .*model-untied.gguf --lora feedback-gguf/adapter.gguf", text)
    assert (tmp_path / "feedback-gguf" / "adapter.gguf").is_file()


@pytest.mark.parametrize("loop", ["trainer", "trl"])
def test_trainer_loop(script: Script, loop: str, tmp_path: Path) -> None:
    out = script("trainer_loop", "--loop", loop, "--steps", 6)
    assert "'loss': " in out and "'loss': " in printed("trainer_loop")
    assert store.load_card(tmp_path / "prompts" / "pirate").method["name"] == "prefix-tuning"


def test_evaluate_with_lm_eval(script: Script) -> None:
    out = script("evaluate_with_lm_eval", "--steps", 2)
    for text in (out, printed("evaluate_with_lm_eval")):
        assert re.search(r"^feedback +acc +0\.\d+ ± 0\.\d+ +[01]\.\d+ ± 0\.\d+$", text, re.M)


def test_inspect_a_prompt(script: Script, tmp_path: Path) -> None:
    out = script("inspect_a_prompt", "--steps", 2)
    for text in (out, printed("inspect_a_prompt")):
        assert [section for section in ("behavior", "nearest", "worth", "layers") if f"\n{section}: " not in text] == []
    assert (tmp_path / "feedback-words.inspect.html").is_file()
