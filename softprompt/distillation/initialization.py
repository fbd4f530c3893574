"""Initial prompts of a distillation: the text's most-attended tokens, fitted to the attention outputs of its rows.

Shapes as in `selection` and `attention_matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softprompt.compaction.attention_matching import (
    FIT_STEPS,
    AttentionTargets,
    collect_targets,
    fit_to_attention,
)
from softprompt.compaction.selection import SelectionInput, select_by_attention, selected_prompt
from softprompt.data.tokenize import Example
from softprompt.distillation.dataset import DistillationExample, DistillationSplits
from softprompt.distillation.prepare import RESERVED_TOKENS, PreparedDistillation
from softprompt.distillation.repetition import SHORTEST_PART, repetitions
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import layout_for, layout_ids, opening_ids
from softprompt.methods.registry import method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prompts.base import SoftPrompt

SELECTION_TOKENS = 768  # tokens of answers about a chunk whose attention selects
FIT_TOKENS = 1536  # tokens of answers that prompts are fitted on: of all chunks together, at least as for selection
REPEAT_FIT_STEPS = 300  # of a document's KV prompt: a tenth of a second each, and they keep helping (docs/log)
MAX_WEIGHTS = 2**28  # attention weights of the longest row that repeats a text: 1 GB
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

    Raises ConfigError if the settings need a repetition of the text, and the model has no room for it or cannot be
    recorded.
    """
    sizes = [size for size in prepared.sizes if len(text) > size]
    if prepared.settings.method.init != "selected" or not sizes:
        return {}
    form = method_spec(prepared.settings.method.name).start_form
    if prepared.settings.repeats:
        if repeated := _repeated_starts(prepared, lm, sizes, progress):
            return repeated
        if prepared.settings.repeat or prepared.settings.only_starts:
            hint = "--no-repeat, which fits it to answers about the text"
            raise ConfigError("this model cannot repeat the text, to fit the start to that", where="repeat", hint=hint)
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


def _repeated_starts(
    prepared: PreparedDistillation, lm: FrozenLM, sizes: Sequence[int], progress: Callable[[float], None]
) -> dict[int, SoftPrompt]:
    """KV prompts that are selected and fitted for the text's own repetition; none if attention cannot be recorded."""
    longest = [_longest_part(lm, text) for text in prepared.chunks]
    if min(longest) < SHORTEST_PART:
        return {}
    inputs = [
        _text_input(prepared, lm, chunk, repetitions(chunk, text, longest[chunk], prepared.template, lm.tokenizer))
        for chunk, text in enumerate(prepared.chunks)
    ]
    between = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    try:
        targets = collect_targets(lm, inputs)
        traces = [layers for _, layers in targets.traces]
        prompts: dict[int, SoftPrompt] = {size: select_by_attention(lm, inputs, size, traces) for size in sizes}
        steps = prepared.settings.fit_steps
        return _fitted_to(lm, prompts, targets, between, REPEAT_FIT_STEPS if steps is None else steps, progress)
    except UnsupportedModelError:
        return {}


def _longest_part(lm: FrozenLM, text: str) -> int:
    """Tokens of a row that repeats a part of the text, so that it fits in the context and its attention in memory."""
    tokens, room = len(lm.encode(text)), MAX_WEIGHTS // (lm.geometry.n_heads * len(lm.geometry.layers))
    in_memory = int(((tokens * tokens + 4 * room) ** 0.5 - tokens) / 2)  # x · (tokens + x) = room
    in_context = lm.geometry.max_positions - tokens - RESERVED_TOKENS
    return min(max(in_memory, SHORTEST_PART), in_context)


def _fitted(
    lm: FrozenLM,
    prompts: dict[int, SoftPrompt],
    inputs: Sequence[SelectionInput],
    between: tuple[tuple[int, ...], tuple[int, ...]],
    steps: int,
    progress: Callable[[float], None],
) -> dict[int, SoftPrompt]:
    """Fit each prompt to the attention outputs after the text; unfitted if the model's attention cannot be recorded."""
    try:
        return _fitted_to(lm, prompts, collect_targets(lm, inputs), between, steps, progress)
    except UnsupportedModelError:
        return prompts


def _fitted_to(
    lm: FrozenLM,
    prompts: dict[int, SoftPrompt],
    targets: AttentionTargets,
    between: tuple[tuple[int, ...], tuple[int, ...]],
    steps: int,
    progress: Callable[[float], None],
) -> dict[int, SoftPrompt]:
    """Fit each prompt to recorded attention. Raises UnsupportedModelError."""
    fitted = dict[int, SoftPrompt]()
    for i, (size, prompt) in enumerate(prompts.items()):

        def report(share: float, earlier: int = i) -> None:
            progress((earlier + share) / len(prompts))

        fitted[size] = fit_to_attention(lm, prompt, targets, *between, Budget(steps, None), report) if steps else prompt
    return fitted


def to_examples(part: Sequence[DistillationExample], prepared: PreparedDistillation, lm: FrozenLM) -> list[Example]:
    """Distillation examples as token ids with loss masks."""
    return [example.example(prepared.template, lm.tokenizer) for example in part]


def _selection_inputs(
    prepared: PreparedDistillation, lm: FrozenLM, splits: DistillationSplits, answer_tokens: int
) -> list[SelectionInput]:
    """Every chunk with training examples about it that have `answer_tokens` tokens of answers together."""
    by_chunk: dict[int, list[DistillationExample]] = {}
    token_counts = dict[int, int]()
    for example in splits.train:
        count = token_counts.get(example.chunk, 0)
        if count < answer_tokens:
            token_counts[example.chunk] = count + len(example.answer)
            by_chunk.setdefault(example.chunk, []).append(example)
    return [_text_input(prepared, lm, chunk, part) for chunk, part in sorted(by_chunk.items())]


def _text_input(
    prepared: PreparedDistillation, lm: FrozenLM, chunk: int, rows: Sequence[DistillationExample]
) -> SelectionInput:
    """A chunk with rows about it."""
    opening = opening_ids(lm, prepared.template)
    _, follow = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    ids = (*opening, *lm.encode(prepared.chunks[chunk]))
    return SelectionInput(ids, follow, to_examples(rows, prepared, lm), len(opening))
