"""Soft prompts in lm-evaluation-harness: its model type `softprompt`, and its tasks beside the base model.

    python -m softprompt.lm_eval --model softprompt --model_args pretrained=Qwen/Qwen3-0.6B,prompt=tone --tasks arc_easy

is the command `lm_eval` with the model type registered. In Python importing this module registers it, and
`evaluate_tasks` is `softprompt eval --tasks`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from softprompt.errors import ConfigError, first_line, missing_extra
from softprompt.modeling.prompts import load_prompt
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.frozen_lm import FrozenLM

try:
    import lm_eval
    from lm_eval.api.registry import register_model
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise missing_extra("lm_eval", "eval", where="softprompt.lm_eval") from error

_HFLM: Any = huggingface.HFLM  # decorators hide the types of these two
_simple_evaluate: Any = lm_eval.simple_evaluate
BASE = "base"  # the base model's name in a `TaskComparison`
_STDERR = "_stderr"
TaskScores = dict[str, dict[str, tuple[float, float | None]]]  # by task, by metric: value and standard error


@register_model("softprompt")
@final
class SoftPromptLM(_HFLM):
    """A base model with a saved soft prompt, as `HFLM` is a base model.

    Args:
        pretrained: the base model's Hub id, folder, GGUF file or built-in name.
        prompt: the soft prompt's name in the prompts folder, or its folder.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        load_in: quantization of the base on load, as in `softprompt.load_model`.
        device_map: as of `softprompt.load_model`.

    The others are those of `HFLM`.
    """

    def __init__(
        self,
        pretrained: str,
        prompt: str,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        load_in: str | None = None,
    ) -> None:
        model = SoftPromptModel.from_pretrained(
            pretrained,
            prompt,
            dtype=dtype,
            device=device or "auto",
            load_in=load_in,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=model.lm.tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
        )


@dataclass(frozen=True)
class TaskComparison:
    """Scores of the base model and of soft prompts on lm-evaluation-harness' tasks.

    Attributes:
        scores: by model ("base", then the soft prompts' names), by task, by metric (value, standard error or None).
        rows: number of documents of each task.
    """

    scores: dict[str, TaskScores]
    rows: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        """{"rows": {task: n}, "base": {task: {metric: value, metric_stderr: …}}, "soft_prompts": {name: …}}"""
        plain = {
            model: {task: _with_errors(metrics) for task, metrics in by_task.items()}
            for model, by_task in self.scores.items()
        }
        return {"rows": self.rows, BASE: plain.pop(BASE), "soft_prompts": plain}


def evaluate_tasks(
    lm: FrozenLM,
    names: Sequence[str],
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 8,
) -> TaskComparison:
    """Run tasks on the base model and on each soft prompt, with the same texts.

    Args:
        names: of saved soft prompts.
        tasks: names of tasks, groups and tags, task files (.yaml) and folders of them. A task's file may name Python
            code, which is run.
        num_fewshot: worked examples before each question, if not as many as the task says.
        limit: only the first documents of each task.
        apply_chat_template: write the texts as conversations.
        batch_size: texts run at once.

    Raises:
        ConfigError: a task that does not exist or cannot be loaded.
        StoreError, WrongBaseError: a soft prompt that cannot be used.
    """
    prompts = {name: load_prompt(lm, name, is_trainable=False) for name in names}
    manager, chosen = _find_tasks(tasks)
    scores, rows = dict[str, TaskScores](), dict[str, int]()
    for name in (BASE, *prompts):
        model = lm.hf_model if name == BASE else SoftPromptModel(lm, prompts[name])
        report = _simple_evaluate(
            _HFLM(pretrained=model, backend="causal", tokenizer=lm.tokenizer, batch_size=batch_size),
            tasks=list(chosen),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
        assert report is not None, "this is the only process"
        scores[name] = {task: _metrics(values) for task, values in report["results"].items()}
        rows = {task: count["effective"] for task, count in report.get("n-samples", {}).items()}
    return TaskComparison(scores, rows)


def _find_tasks(tasks: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """A manager that knows these tasks, and their names or files. Raises ConfigError for an unknown one.

    The harness' own thousands of task files are read only if one of them is named, here or in a task's file.
    """
    files = {task: _files(task) for task in tasks if Path(task).is_dir() or task.endswith((".yaml", ".yml"))}
    chosen = [part for task in tasks for part in files.get(task, [task])]
    folders: list[str | Path] = [task for task in files if Path(task).is_dir()]
    if len(files) == len(tasks):
        manager = TaskManager(include_path=folders or None, include_defaults=False)
        with contextlib.suppress(KeyError, ValueError):  # so a group's file names tasks of the harness
            return _loaded(manager, chosen), chosen
    manager = TaskManager(include_path=folders or None)
    for task in tasks:
        if task not in files and task not in manager.all_tasks:
            close = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "lm_eval ls tasks shows all of them"
            raise ConfigError("unknown task", where="--tasks", got=task, hint=hint)
    try:
        return _loaded(manager, chosen), chosen
    except (KeyError, ValueError) as error:
        raise _unloadable(chosen, error) from error


def _loaded(manager: TaskManager, chosen: list[str]) -> TaskManager:
    """The manager, once it has loaded these tasks. Raises ConfigError, or KeyError and ValueError for unknown names."""
    try:
        manager.load(chosen)
    except (KeyError, ValueError):
        raise
    except Exception as error:  # task files and data sets of others
        raise _unloadable(chosen, error) from error
    return manager


def _unloadable(chosen: Sequence[str], error: Exception) -> ConfigError:
    got = f"{type(error).__name__}: {first_line(error)}"
    return ConfigError("a task cannot be loaded", where=", ".join(chosen), got=got)


def _files(task: str) -> list[str]:
    """The task files of a folder, or this one. Raises ConfigError if there are none."""
    path = Path(task)
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    chosen = [str(file) for file in files if file.is_file() and not file.name.startswith("_")]
    if not chosen:
        raise ConfigError("there are no task files", where="--tasks", got=task, expected="*.yaml")
    return chosen


def _metrics(values: Mapping[str, object]) -> dict[str, tuple[float, float | None]]:
    """{"acc,none": 0.5, "acc_stderr,none": 0.1} as {"acc": (0.5, 0.1)}; a filter's name stays in the metric's."""
    metrics = dict[str, tuple[float, float | None]]()
    for key, value in values.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and kind and not name.endswith(_STDERR):
            error = values.get(f"{name}{_STDERR},{kind}")
            shown = name if kind == "none" else f"{name} ({kind})"
            metrics[shown] = (float(value), float(error) if isinstance(error, int | float) else None)
    return metrics


def _with_errors(metrics: dict[str, tuple[float, float | None]]) -> dict[str, float | None]:
    flat = dict[str, float | None]()
    for name, (value, error) in metrics.items():
        flat[name] = value
        flat[f"{name}{_STDERR}"] = error
    return flat


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
