"""Greedy answers of plain Transformers in a process of its own, in which nothing of softprompt is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, cast

from softprompt.errors import EngineError, UnsupportedModelError
from softprompt.export.base import EngineAnswer, EngineRow
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import find_source

_TIMEOUT_S = 3600.0
_LISTED = 20  # likeliest tokens of a step: ours are among them unless the engine is far off
_DRIVER = """
import importlib.util
import json
import sys

import torch
from transformers import AutoModelForCausalLM

job = json.load(open(sys.argv[1], encoding="utf-8"))
use = None
if job["script"]:
    spec = importlib.util.spec_from_file_location("use", job["script"])
    use = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(use)
model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"]))
model = model.to(job["device"]).eval()
answers = []
for row in job["rows"]:
    options = {"max_new_tokens": row["max_tokens"], "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    if row["with_prompt"] and use is not None:
        out = use.answer(model, row["ids"], **options)
    else:
        ids = torch.tensor([row["ids"]], device=model.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    steps = [logits[0].float().log_softmax(-1).topk(min(job["listed"], logits.shape[-1])) for logits in out.logits]
    said = out.sequences[0, -len(steps) :].tolist()
    tops = [[step.indices.tolist(), step.values.tolist()] for step in steps]
    answers.append({"ids": said, "tops": tops})
ours = sorted(name for name in sys.modules if name.split(".")[0] == "softprompt")
json.dump({"answers": answers, "ours": ours}, open(sys.argv[2], "w", encoding="utf-8"))
"""


class _Said(TypedDict):
    ids: list[int]
    tops: list[tuple[list[int], list[float]]]


class _Result(TypedDict):
    answers: list[_Said]
    ours: list[str]


def base_path(lm: FrozenLM) -> str:
    """The folder or Hub id from which another engine loads this base model.

    Raises UnsupportedModelError for a base with an adapter merged into it, which is in no folder.
    """
    source = find_source(lm.name)
    if source.adapter:
        what = "the engine would load the base model without its adapter"
        hint = "save the merged model to a folder (merge_and_unload, save_pretrained), and give that with --model"
        raise UnsupportedModelError(what, where=lm.name, hint=hint)
    return source.path


def transformers_answers(
    base: str, dtype: str, device: str, rows: Sequence[EngineRow], script: Path | None = None
) -> list[EngineAnswer]:
    """Greedy answers by `generate`.

    Args:
        base: folder or Hub id of the model.
        dtype: torch's name of it, such as "float32".
        script: Python file whose `answer(model, ids, **options)` runs the rows with a soft prompt.

    Raises EngineError if the process fails.
    """
    job = {"base": base, "dtype": dtype, "device": device, "rows": [asdict(row) for row in rows], "listed": _LISTED}
    with tempfile.TemporaryDirectory(prefix="softprompt-") as scratch:
        files = [Path(scratch) / name for name in ("driver.py", "job.json", "result.json")]
        files[0].write_text(_DRIVER, encoding="utf-8")
        files[1].write_text(json.dumps(job | {"script": str(script) if script else ""}), encoding="utf-8")
        run_python(files[0], files[1:], "Transformers")
        result = cast("_Result", json.loads(files[2].read_bytes()))
    assert not result["ours"], "the exported lines need nothing of softprompt"
    return [_answer(said) for said in result["answers"]]


def run_python(script: Path, arguments: Sequence[Path], engine: str) -> None:
    """Run a script with this Python. Raises EngineError with the last line of what it printed if it fails."""
    command = [sys.executable, str(script), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603 - no shell
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{engine} did not end in {_TIMEOUT_S:.0f} seconds", where="--check") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        raise EngineError(f"{engine} failed", where="--check", got=last[:300])


def _answer(said: _Said) -> EngineAnswer:
    steps = tuple(dict(zip(ids, values, strict=True)) for ids, values in said["tops"])
    return EngineAnswer(tuple(said["ids"]), steps)
