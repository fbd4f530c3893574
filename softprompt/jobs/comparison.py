"""What a finished job's soft prompt is worth: its scores on validation rows beside base model and text prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from softprompt.data.records import Record
from softprompt.data.sampler import sample
from softprompt.data.targets import without_written_ends
from softprompt.distillation.fidelity import Fidelity
from softprompt.evaluation.compare import EMPTY_TEXT_PROMPT, Comparison, compare
from softprompt.evaluation.held_out import pick_shots
from softprompt.formatting.text_prompt import APART, instruction_for, worked_example
from softprompt.inference.sampling import Sampling
from softprompt.json_types import JSONObject
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.prepare import PreparedTraining

COMPARE_S = 30.0  # seconds that the comparison may take
COMPARE_SHARE = 0.1  # of a longer training's time, which may be more
_ROWS, _PROBE_ROWS = 32, 4  # compared at most, and first, to see how long a row takes
_SHOTS = 3  # examples in the text prompt
_MAX_ANSWER_TOKENS = 64


def compared(prepared: PreparedTraining, lm: FrozenLM, prompt: Path, seconds: float) -> tuple[str, JSONObject]:
    """In words and as data, how a soft prompt compares on validation rows. Raises as `compare`.

    Args:
        seconds: that it may take, about; on a slow machine there are fewer rows.
    """
    (task,) = prepared.tasks
    validation = task.splits.validation
    rows = [validation[i] for i in sample(len(validation), _ROWS, prepared.config.train.seed)]
    answers = [len(lm.encode(text)) for row in rows for text in (row.references or (row.target or "",))]
    sampling = Sampling(max_new_tokens=min(_MAX_ANSWER_TOKENS, max(answers, default=0) + 4))
    shots = pick_shots(task.splits.train, _SHOTS)

    def scores_on(rows: Sequence[Record]) -> Comparison:
        return compare(lm, str(prompt), rows, shots=shots, sampling=sampling, training_rows=True)

    began, first = time.monotonic(), rows[:: -(-len(rows) // _PROBE_ROWS)] if rows else rows
    found = scores_on(first)
    each = (time.monotonic() - began) / len(first)
    count = min(len(rows), math.floor(seconds / max(each, 1e-9)) - len(first))
    if count > len(first):
        rows = [rows[i] for i in sample(len(rows), count, 0)]
        found = scores_on(rows)
    else:
        rows = first
    columns = {"base model": found.base, "text prompt": found.text_prompt, "soft prompt": found.soft_prompt}
    data = found.to_dict()
    if EMPTY_TEXT_PROMPT in found.notes:
        del columns["text prompt"], data["text_prompt"]
    metric = next(iter(found.soft_prompt.scores))
    words = text_prompt_words(prepared, lm, shots) if "text_prompt" in data else ""
    facts = cast(JSONObject, {"comparison": data, "text_prompt": words})
    scores = ", ".join(f"{name} {evaluation.scores[metric].value:.3f}" for name, evaluation in columns.items())
    return f"{metric} on {len(rows)} validation rows: {scores}", facts


def text_prompt_words(prepared: PreparedTraining, lm: FrozenLM, shots: Sequence[Record]) -> str:
    """What the text prompt of a comparison puts before each row: an instruction from the labels, and the examples."""
    (task,) = prepared.tasks
    instruction = [instruction_for(task.classes)] if task.classes else []
    bare = without_written_ends([shot for shot in shots if not shot.messages], task.template, lm.tokenizer)
    examples = [worked_example(task.template, shot) for shot in bare]
    return APART.join([*instruction, *examples])


def fidelity_words(fidelity: Fidelity) -> tuple[str, JSONObject]:
    """In words and as data, how much of its text a distilled prompt keeps."""
    (name,) = fidelity.soft
    share = f"{fidelity.recovered(name):.0%} of the text's effect on {fidelity.rows} held-out queries"
    tokens = f"{fidelity.soft[name].prefix_tokens} tokens in place of {fidelity.full_text.prefix_tokens}"
    return f"The soft prompt keeps {share}: {tokens}", cast(JSONObject, {"fidelity": fidelity.to_dict()})
