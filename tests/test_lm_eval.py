"""lm-evaluation-harness on soft prompts: its HF model class unchanged, our model type, `softprompt eval --tasks`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api import registry
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.tasks import TaskManager

from softprompt import lm_eval as ours
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from tests.laws.oracle import plain_logits
from tests.support.missing import uninstall
from tests.support.prompted import greedy, prompted, saved
from tests.support.rows import write_jsonl
from tests.support.saved import save_tiny
from tests.support.shell import done, parsed, refused
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer

HFLM: Any = huggingface.HFLM  # decorators hide their types
simple_evaluate: Any = lm_eval.simple_evaluate
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:Warning:(lm_eval|transformers|datasets|evaluate)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CHOICE = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WRITE = """
task: words
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["z"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two task files and their documents."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"{i}+{i}=", "choices": [str(2 * i), "no"], "answer": 0} for i in range(6)]
    data = write_jsonl(folder / "rows.jsonl", *rows)
    (folder / "letters.yaml").write_text(CHOICE.format(data=data))
    (folder / "words.yaml").write_text(WRITE.format(data=data))
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base in a folder, and a soft prompt for it."""
    base = save_tiny(tmp_path / "base")
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    lm = FrozenLM(tiny_model("llama"), tiny_tokenizer(), str(base))
    saved(lm, tmp_path / "prompts" / "tone")
    return base


def log_likelihood(model: SoftPromptModel, context: str, continuation: str) -> float:
    """Of a continuation, by concatenation."""
    first, second = model.tokenizer(context).input_ids, model.tokenizer(continuation).input_ids
    with torch.no_grad():
        logits = plain_logits(model.lm, Prefix(model.model.live(), model.model.lead), first + second).log_softmax(-1)
    return float(sum(logits[len(first) + i - 1, token] for i, token in enumerate(second)))


def test_hflm_unchanged() -> None:
    """Log-likelihoods of continuations, of whole texts, and generation are those of concatenation."""
    model = prompted("llama", "kv")
    lm = HFLM(pretrained=model, tokenizer=model.tokenizer, batch_size=2)
    assert lm.max_length == model.config.max_position_embeddings
    pairs = [("1+1=", "2"), ("a longer question:", " no"), ("x", "yes it is")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (value, _), pair in zip(lm.loglikelihood(requests, disable_tqdm=True), pairs, strict=True):
        assert value == pytest.approx(log_likelihood(model, *pair), rel=1e-4)
    (rolling,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("some text",), 0)], disable_tqdm=True)
    assert rolling == pytest.approx(log_likelihood(model, "<s>", "some text"), rel=1e-4)
    options = {"until": ["\x00"], "max_gen_toks": 4}
    asked = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(["1+1=", "and more:"])]
    answers = lm.generate_until(asked, disable_tqdm=True)
    wanted = [greedy(model, model.tokenizer(text).input_ids, 4) for text in ("1+1=", "and more:")]
    assert answers == [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in wanted]


def test_the_model_type(world: Path, tasks: Path) -> None:
    """`simple_evaluate(model="softprompt")` scores as HFLM with the same model does."""
    arguments: dict[str, Any] = {"pretrained": str(world), "prompt": "tone", "dtype": "float32"}
    task, local = str(tasks / "letters.yaml"), TaskManager(include_defaults=False)
    report = simple_evaluate("softprompt", arguments, [task], device="cpu", bootstrap_iters=0, task_manager=local)
    model = SoftPromptModel.from_pretrained(str(world), "tone", dtype="float32", device="cpu")
    plain = HFLM(pretrained=model, tokenizer=model.tokenizer)
    wanted = simple_evaluate(plain, tasks=[task], bootstrap_iters=0, task_manager=local)
    assert report is not None and wanted is not None
    assert report["results"]["letters"]["acc,none"] == wanted["results"]["letters"]["acc,none"]


def test_its_command_knows_the_type(
    world: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python -m softprompt.lm_eval`, in this process, which has imported the harness already."""
    arguments = f"pretrained={world},prompt=tone,dtype=float32"
    line = ["--model", "softprompt", "--model_args", arguments, "--tasks", str(tasks / "letters.yaml"), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["softprompt.lm_eval", "run", *line, "--device", "cpu"])
    monkeypatch.delitem(sys.modules, "softprompt.lm_eval")
    whole = TaskManager.__init__

    def without_index(self: TaskManager, *given: Any, **named: Any) -> None:
        whole(self, *given, **named | {"include_defaults": False})

    monkeypatch.setattr(TaskManager, "__init__", without_index)  # reading the harness's own tasks takes a minute
    known: Any = vars(registry.model_registry)["_objs"]
    monkeypatch.delitem(known, "softprompt")  # it registers itself again
    runpy.run_module("softprompt.lm_eval", run_name="__main__")
    printed = capsys.readouterr().out
    assert "letters" in printed and "|acc" in printed.replace(" ", "")


def test_tasks_beside_the_base(world: Path, tasks: Path) -> None:
    """A file, a folder and their documents; base and soft prompt on the same texts."""
    lm = FrozenLM(tiny_model("llama"), tiny_tokenizer(), str(world))
    comparison = ours.evaluate_tasks(lm, ["tone"], [str(tasks)], limit=4, batch_size=2)
    assert comparison.rows == {"letters": 4, "words": 4}
    assert set(comparison.scores) == {"base", "tone"}
    model = SoftPromptModel.from_pretrained(lm, "tone")
    wins = [log_likelihood(model, f"{i}+{i}=", str(2 * i)) > log_likelihood(model, f"{i}+{i}=", "no") for i in range(4)]
    assert comparison.scores["tone"]["letters"]["acc"][0] == sum(wins) / 4
    assert set(comparison.scores["base"]) == {"letters", "words"}


def test_the_verb(world: Path, tasks: Path) -> None:
    line = ("eval", "tone", "--tasks", f"{tasks / 'letters.yaml'}", "--dtype", "float32", "--limit", 3)
    report = parsed(*line, "--json")
    assert report["rows"] == {"letters": 3}
    assert 0 <= report["base"]["letters"]["acc"] <= 1
    assert report["soft_prompts"]["tone"]["letters"].keys() == {"acc", "acc_stderr"}
    output = done(*line).stdout
    assert output.split()[:4] == ["task", "metric", "base", "tone"]
    assert "documents: letters: 3" in output


def test_mistakes(world: Path, tasks: Path) -> None:
    lm = tiny_lm()
    with pytest.raises(ConfigError, match=r"(?s)unknown task.*arc_eazy.*did you mean.*arc_easy"):
        ours.evaluate_tasks(lm, [], ["arc_eazy"])
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ours.evaluate_tasks(lm, [], [str(tasks / "letters.yaml")])
    assert "--data" in str(refused("eval", "tone"))
    with_tasks, with_data = ("eval", "tone", "--tasks", "x"), ("eval", "tone", "--data", "x")
    assert "--vote" in str(refused(*with_tasks, "--vote"))
    assert "--num-fewshot" in str(refused(*with_data, "--num-fewshot", 2))
    assert "--data" in str(refused("eval", "tone", "--tasks", "arc_easy", "--data", "rows.jsonl"))


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is the command that installs it."""
    uninstall("lm_eval", monkeypatch)
    for module in ("softprompt.lm_eval", "softprompt.cli.evaluate_tasks"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtraError, match=r"(?s)lm_eval is not installed.*softprompt\[eval\]"):
        importlib.import_module("softprompt.cli.evaluate_tasks")
