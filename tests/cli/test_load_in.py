"""Quantized base models on the command line: `--load-in` of every verb that loads one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softprompt.engine.registry import BaseModelOptions, find_engine
from softprompt.errors import CheckpointError, ConfigError, StoreError, TrainError
from softprompt.prompts import store
from tests.support.rows import labelled, write_jsonl
from tests.support.shell import SHORT, done, json_lines, parsed, refused, softprompt

VERBS = ("train", "sweep", "distill", "generate", "chat", "eval", "serve", "import", "export", "compose", "prune")
VERBS += ("fidelity",)


@pytest.fixture
def command(base: Path, tmp_path: Path) -> tuple[object, ...]:
    rows = write_jsonl(tmp_path / "rows.jsonl", *labelled(8))
    return ("train", "--model", base, "--data", rows, "--name", "tone", *SHORT)


@pytest.mark.parametrize("load_in", ["4bit", "int4"])
def test_a_prompt_of_a_quantized_base(load_in: str, command: tuple[object, ...]) -> None:
    """Trained, used on the same weights in silence and on the full ones with a notice."""
    lines = json_lines(done(*command, "--load-in", load_in, "--json").stdout)
    assert 0 < lines[-1]["weight_bytes"] < lines[-1]["peak_bytes"]
    kind = {"4bit": "bitsandbytes nf4", "int4": "torchao int4"}[load_in]
    assert store.load_card(store.locate("tone")).geometry.quantization == kind
    assert kind in done("show", "tone").stdout and kind in (store.locate("tone") / store.README).read_text()
    ask = ("generate", "tone", "hello", "--max-new-tokens", 4, "--dtype", "float32")
    same = done(*ask, "--load-in", load_in)
    assert "quantized" not in same.stderr and kind in same.stderr, "the base is named with its weights"
    with pytest.warns(UserWarning, match=f"trained on {kind} of its base model and is used on plain weights"):
        done(*ask)
    report = parsed("eval", "tone", "--data", "rows.jsonl", "--dtype", "float32", "--load-in", load_in, "--json")
    assert report["soft_prompt"]["rows"] == 1


def test_the_end_of_a_run_says_what_it_needed(command: tuple[object, ...]) -> None:
    output = done(*command, "--load-in", "int8").stdout
    assert re.search(r"^base model .* MiB of weights, torchao int8\)$", output, re.MULTILINE)
    assert re.search(r"^memory +[\d,]+ MiB of this process at most, [\d.]+ MiB of it weights$", output, re.MULTILINE)


def test_a_run_goes_on_with_the_same_weights_only(command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT__TRAIN__SAVE_EVERY", "1")
    with monkeypatch.context() as patch:
        patch.setattr(store, "save", _full_disk)
        refused(*command, "--load-in", "int8")
    assert isinstance(refused(*command, "--resume"), CheckpointError | TrainError)
    done(*command, "--load-in", "int8", "--resume")


def _full_disk(*_: object, **__: object) -> None:
    raise StoreError("disk full", where="tone")


def test_the_server_runs_it(base: Path, command: tuple[object, ...], tmp_path: Path) -> None:
    done(*command, "--load-in", "8bit")
    serve = ("serve", "--model", base, "--prompts-dir", tmp_path / "prompts", "--dtype", "float32", "--check")
    assert softprompt(*serve, "--load-in", "8bit").exit_code == 0


def test_vllm_quantizes_by_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        find_engine("vllm").prepare_base(BaseModelOptions(load_in="4bit"))
    assert "--engine-option quantization=" in str(caught.value.hint)


def test_names_of_other_libraries_are_answered(command: tuple[object, ...]) -> None:
    assert "did you mean load_in?" in str(refused(*command, "--load_in_4bit", "true").hint)
    assert "4bit" in str(refused(*command, "--load-in", "5bit"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_with_a_base_model_has_it(verb: str) -> None:
    assert "--load-in" in done(verb, "--help").stdout
