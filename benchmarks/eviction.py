"""KV eviction on the questions of a document, by `kvpress_side.py` in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.states import state_scores
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.formatted_prompt import opening_ids
from softprompt.objectives.next_token import learned_positions, supervised

PRESSES = ("none", "SnapKV", "ExpectedAttention", "KVzip", "KVzip-layerwise")
SCRIPT = Path(__file__).with_name("kvpress_side.py")


@dataclass(frozen=True)
class Eviction:
    """An environment with kvpress.

    Attributes:
        python: its interpreter.
        base: folder with the base model and its tokenizer.
        scratch: folder for requests and replies.
    """

    python: str
    base: Path
    scratch: Path
    presses: tuple[str, ...] = PRESSES

    @torch.no_grad()
    def scores(
        self, teacher: Teacher, examples: Sequence[DistillationExample], sizes: Sequence[int]
    ) -> dict[str, dict[str, float]]:
        """Divergence, agreement and log-likelihood of the examples' answers, by press and size."""
        lm, prefix = teacher.lm, teacher.prefix(0)
        rows = [example.example(teacher.template, lm.tokenizer) for example in examples]
        request = {
            "model": str(self.base),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "text": list(prefix.lead),
            "opening": len(opening_ids(lm, teacher.template)),
            "follow": list(prefix.follow),
            "rows": [list(row.ids) for row in rows],
            "presses": list(self.presses),
            "sizes": list(sizes),
        }
        sent, reply = self.scratch / "request.json", self.scratch / "reply.safetensors"
        sent.write_text(json.dumps(request), encoding="utf-8")
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([self.python, str(SCRIPT), str(sent), str(reply)], check=True, env=alone)  # noqa: S603
        found = load_file(reply)
        where, _ = learned_positions(rows)
        states_NH, targets_N = supervised(lm, teacher.prefix_kv(0), rows, None)
        scores = {}
        for name in [name for name in found if not name.endswith(" seconds")]:
            own = state_scores(lm, found[name][where].to(states_NH), states_NH, targets_N)
            scores[name] = own | {"seconds": found[f"{name} seconds"].item()}
        return scores
