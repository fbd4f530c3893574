"""lm-evaluation-harness: generation, choices and perplexity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from tests.clients_real.conftest import BASE, PLAIN, SOFT, URL

TASK = """
task: own
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: {output}
doc_to_text: "{text}"
doc_to_target: "{target}"
{rest}
metric_list:
  - metric: {metric}
"""
CHOICES = 'doc_to_choice: ["Rome", "Oslo"]'
WRITE = 'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 4'


def score(folder: Path, model: str, task: dict[str, str], *, chat: bool = False) -> Any:
    """The result of a task of three rows."""
    data = folder / "rows.jsonl"
    rows = [{"q": f"{i} The parcel is in", "a": "Rome"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "own.yaml").write_text(TASK.format(data=data, **task), encoding="utf-8")
    kind = "local-chat-completions" if chat else "local-completions"
    path = "chat/completions" if chat else "completions"
    arguments: dict[str, Any] = {"model": model, "base_url": f"{URL}/v1/{path}", "num_concurrent": 2}
    plain = {"tokenizer": os.environ["SOFTPROMPT_CLIENT_TOKENIZER"]}
    arguments |= {"tokenized_requests": False, "tokenizer_backend": None} if chat else plain
    manager = TaskManager(include_defaults=False)
    simple_evaluate: Any = lm_eval.simple_evaluate
    tasks = [str(folder / "own.yaml")]
    found = simple_evaluate(
        kind, arguments, tasks=tasks, task_manager=manager, bootstrap_iters=0, apply_chat_template=chat
    )
    return found["results"]["own"]


@pytest.mark.parametrize("name", [BASE, PLAIN])
def test_given_text(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices and perplexity."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    choice = {"output": "multiple_choice", "text": "{{q}}", "target": "a", "rest": CHOICES, "metric": "acc"}
    assert 0 <= score(tmp_path, name, choice)["acc,none"] <= 1
    rolling = {
        "output": "loglikelihood_rolling",
        "text": "",
        "target": "{{q}}",
        "rest": "",
        "metric": "byte_perplexity",
    }
    assert score(tmp_path, name, rolling)["byte_perplexity,none"] > 1


@pytest.mark.parametrize("name", [BASE, SOFT])
def test_chat(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = {"output": "generate_until", "text": "{{q}}", "target": "{{a}}", "rest": WRITE, "metric": "exact_match"}
    found = score(tmp_path, name, task, chat=True)
    assert 0 <= found["exact_match,none"] <= 1
