"""Initial prompts of a distillation: the text's most-attended tokens, fitted to the attention outputs of its rows.

Shapes as in `selection` and `attention_matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softprompt.compaction.attention_matching import FIT_STEPS, collect_targets, fit_to_attention
from softprompt.compaction.selection import SelectionInput, selected_prompt
from softprompt.data.tokenize import Example
from softprompt.distillation.dataset import DistillationExample, DistillationSplits
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.errors import UnsupportedModelError
from softprompt.formatting.formatted_prompt import layout_for, layout_ids, opening_ids
from softprompt.methods.registry import method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prompts.base import SoftPrompt

SELECTION_TOKENS = 768  # tokens of answers about a chunk whose attention selects
FIT_TOKENS = 1536  # tokens of answers that prompts are fitted on: of all chunks together, at least as for selection
FALLBACK_VALIDATION_ROWS = 16  # training rows that choose an embedding prompt if there are no validation rows
DEFAULT_FIT_STEPS = {"kv": FIT_STEPS, "embedding": 800}  # 32 embeddings keep improving for longest


def compacted_starts(
    prepared: PreparedDistillation,
    lm: FrozenLM,
    text: tuple[int, ...],
    splits: DistillationSplits,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[int, SoftPrompt]:
    """Build the prompt that training starts from, by size.

    A size is missing if the settings choose another start, if it holds the whole text, or if the model's keys cannot
    be moved to other positions.

    Args:
        text: token ids of the whole text.
        progress: called with the fraction of fitting completed.
    """
    sizes = [size for size in prepared.sizes if len(text) > size]
    if prepared.settings.method.init != "selected" or not sizes:
        return {}
    form = method_spec(prepared.settings.method.name).start_form
    between = layout_ids(lm, layout_for(lm, prepared.template, form))
    inputs = _selection_inputs(prepared, lm, splits, SELECTION_TOKENS)
    validation = to_examples(splits.validation or splits.train[:FALLBACK_VALIDATION_ROWS], prepared, lm)
    try:
        prompts = {size: selected_prompt(lm, form, inputs, size, between, validation) for size in sizes}
    except UnsupportedModelError:
        return {}
    steps = prepared.settings.fit_steps
    steps = DEFAULT_FIT_STEPS[form] if steps is None else steps
    if not steps:
        return prompts
    fit_inputs = _selection_inputs(prepared, lm, splits, max(SELECTION_TOKENS, FIT_TOKENS // len(inputs)))
    return _fitted(lm, prompts, fit_inputs, between, steps, progress)


def _fitted(
    lm: FrozenLM,
    prompts: dict[int, SoftPrompt],
    inputs: Sequence[SelectionInput],
    between: tuple[tuple[int, ...], tuple[int, ...]],
    steps: int,
    progress: Callable[[float], None],
) -> dict[int, SoftPrompt]:
    """Fit each prompt to the attention outputs after the text; unfitted if the model's attention cannot be recorded."""
    fitted = dict(prompts)
    try:
        targets = collect_targets(lm, inputs)
        for i, (size, prompt) in enumerate(prompts.items()):

            def report(share: float, earlier: int = i) -> None:
                progress((earlier + share) / len(prompts))

            fitted[size] = fit_to_attention(lm, prompt, targets, *between, Budget(steps, None), report)
    except UnsupportedModelError:
        pass
    return fitted


def to_examples(part: Sequence[DistillationExample], prepared: PreparedDistillation, lm: FrozenLM) -> list[Example]:
    """Distillation examples as token ids with loss masks."""
    return [example.example(prepared.template, lm.tokenizer) for example in part]


def _selection_inputs(
    prepared: PreparedDistillation, lm: FrozenLM, splits: DistillationSplits, answer_tokens: int
) -> list[SelectionInput]:
    """Every chunk with training examples about it that have `answer_tokens` tokens of answers together."""
    opening = opening_ids(lm, prepared.template)
    _, follow = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    by_chunk: dict[int, list[DistillationExample]] = {}
    token_counts = dict[int, int]()
    for example in splits.train:
        count = token_counts.get(example.chunk, 0)
        if count < answer_tokens:
            token_counts[example.chunk] = count + len(example.answer)
            by_chunk.setdefault(example.chunk, []).append(example)
    return [
        SelectionInput(
            (*opening, *lm.encode(prepared.chunks[chunk])), follow, to_examples(part, prepared, lm), len(opening)
        )
        for chunk, part in sorted(by_chunk.items())
    ]
