"""lm-evaluation-harness over HTTP says what it says over the library, and what `softprompt eval` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models import huggingface
from lm_eval.tasks import TaskManager

from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.data.tokenizer import bos_ids
from softprompt.evaluation.label_ranking import rank_choices
from softprompt.formatting.formatted_prompt import from_card
from softprompt.modeling.prompts import load_prompt
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.prompts import store
from tests.support.live_server import BASE, USER, Live, live, save_prompt
from tests.support.rows import write_jsonl
from tests.support.tiny import tiny_lm
from tests.test_lm_eval import CHOICE

HFLM: Any = huggingface.HFLM  # decorators hide their types
simple_evaluate: Any = lm_eval.simple_evaluate
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:Warning:(lm_eval|transformers|datasets|evaluate|tenacity)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: byte_perplexity
"""
ROWS = [{"question": f"{i}+{i}=", "choices": [str(2 * i), "no"], "answer": 0} for i in range(5)]
BARE = Template("text", "{prompt}")
CHAT = Template("chat", "{prompt}")
PROMPTS = {"plain": ("embedding", BARE), "keys": ("kv", BARE), "chatty": ("embedding", CHAT)}
LM = tiny_lm("llama", bos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval") / "prompts"
    for seed, (name, (form, template)) in enumerate(PROMPTS.items(), 30):
        save_prompt(folder / name, form, template, seed)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Live]:
    with live(folder) as server:
        yield server


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A multiple-choice task and one of perplexity."""
    pytest.importorskip("tenacity", reason="the harness' clients need it; it is in the group dev")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", USER)
    data = write_jsonl(tmp_path / "rows.jsonl", *ROWS)
    for name, text in {"letters": CHOICE, "rolling": ROLLING}.items():
        (tmp_path / f"{name}.yaml").write_text(text.format(data=data))
    return [str(tmp_path / "letters.yaml"), str(tmp_path / "rolling.yaml")]


def scores(model: Any, tasks: list[str], arguments: dict[str, Any] | None = None, *, chat: bool = False) -> Any:
    """Every metric, and every log-likelihood by task."""
    local = TaskManager(include_defaults=False)
    report = simple_evaluate(
        model, arguments, tasks=tasks, bootstrap_iters=0, task_manager=local, apply_chat_template=chat
    )
    assert report is not None
    found = {task: [row["resps"] for row in rows] for task, rows in report["samples"].items()}
    return report["results"], found


def arguments_for(server: Live, name: str, folder: Path) -> dict[str, Any]:
    """The harness' model arguments, with the tokenizer in this folder."""
    LM.tokenizer.save_pretrained(folder / "tokenizer")
    return {"model": name, "base_url": f"{server.url}/v1/completions", "tokenizer": str(folder / "tokenizer")}


def flat(values: Any) -> list[float]:
    """All numbers of nested lists."""
    if isinstance(values, list | tuple):
        return [number for value in values for number in flat(value)]
    return [float(values)]


@pytest.mark.parametrize("name", [BASE, "plain", "keys", "chatty"])
def test_over_http_as_over_the_library(name: str, server: Live, folder: Path, tasks: list[str], tmp_path: Path) -> None:
    """Log-likelihoods of choices and of whole texts; token ids are sent, which is the harness' default."""
    chat = name == "chatty"
    tasks = tasks[:1] if chat else tasks
    arguments = arguments_for(server, name, tmp_path) | {"max_length": LM.geometry.max_positions - 20}
    results, found = scores("local-completions", tasks, arguments, chat=chat)
    model = LM.hf_model if name == BASE else SoftPromptModel(LM, load_prompt(LM, folder / name, is_trainable=False))
    library = HFLM(pretrained=model, tokenizer=LM.tokenizer, batch_size=2, add_bos_token=False)
    wanted_results, wanted = scores(library, tasks, chat=chat)
    for task, values in wanted.items():
        assert flat(found[task]) == pytest.approx(flat(values), abs=1e-3)
    for task, metrics in wanted_results.items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        assert numbers and {key: results[task][key] for key in numbers} == pytest.approx(numbers, abs=1e-3)


@pytest.mark.parametrize("name", ["plain", "keys"])
def test_as_eval_ranks(name: str, server: Live, folder: Path, tasks: list[str], tmp_path: Path) -> None:
    """The texts themselves, several a request: each choice has the log-likelihood that `softprompt eval` ranks by."""
    arguments = arguments_for(server, name, tmp_path) | {"batch_size": 4, "tokenized_requests": False}
    _, found = scores("local-completions", tasks[:1], arguments)
    prompt, card = store.load(folder / name, LM.geometry)
    records = [Record({"prompt": row["question"]}, None, "choice", choices=tuple(row["choices"])) for row in ROWS]
    ranked = rank_choices(LM, from_card(prompt, card), records)
    ours = [[resp[0][0] for resp in row] for row in found["letters"]]
    assert flat(ours) == pytest.approx([float(value) for totals, _ in ranked for value in totals], abs=1e-3)
    assert bos_ids(LM.tokenizer), "a BOS that texts do not bring"
