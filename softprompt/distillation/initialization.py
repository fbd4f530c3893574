"""Where a distillation begins: with what its rows look at most in the whole text, fitted to what they get from it.

Shapes as in `attended` and `matching`.
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
from softprompt.methods.registry import KV_METHODS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.prompts.kv_prompt import KVPrompt

ASKING = 768  # tokens of answers about a piece that are asked what they look at
MATCHING = 1536  # and that prompts are fitted on, of all pieces together at least as many as of one
ASKING_ROWS = 16  # where there are no validation rows
STEPS_OF_FORM = {"kv": FIT_STEPS, "embedding": 800}  # 32 embeddings go on learning for longest


def compacted_starts(
    prepared: PreparedDistillation,
    lm: FrozenLM,
    text: tuple[int, ...],
    splits: DistillationSplits,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[int, SoftPrompt]:
    """By size the prompt that training starts from; none for a size that the settings start elsewhere, that takes in
    the whole text, or where the model's keys cannot be moved."""
    sizes = [size for size in prepared.sizes if len(text) > size]
    if prepared.settings.method.init != "attended" or not sizes:
        return {}
    form = (KVPrompt if prepared.settings.method.name in KV_METHODS else EmbeddingPrompt).form
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, form))
    looking = _readings(prepared, lm, splits, ASKING)
    judges = examples(splits.validation or splits.train[:ASKING_ROWS], prepared, lm)
    try:
        found = {size: selected_prompt(lm, form, looking, size, (lead, follow), judges) for size in sizes}
    except UnsupportedModelError:
        return {}
    chosen = prepared.settings.fit_steps
    steps = STEPS_OF_FORM[form] if chosen is None else chosen
    if not steps:
        return found
    try:
        rows = collect_targets(lm, _readings(prepared, lm, splits, max(ASKING, MATCHING // len(looking))))
        for i, (size, prompt) in enumerate(found.items()):

            def told(done: float, before: int = i) -> None:
                progress((before + done) / len(found))

            found[size] = fit_to_attention(lm, prompt, rows, lead, follow, Budget(steps, None), told)
    except UnsupportedModelError:  # it starts unfitted then
        pass
    return found


def examples(part: Sequence[DistillationExample], prepared: PreparedDistillation, lm: FrozenLM) -> list[Example]:
    """Exercises as rows."""
    return [example.example(prepared.template, lm.tokenizer) for example in part]


def _readings(
    prepared: PreparedDistillation, lm: FrozenLM, splits: DistillationSplits, tokens: int
) -> list[SelectionInput]:
    """All pieces, each with exercises about it of so many tokens of answers."""
    opening = opening_ids(lm, prepared.template)
    _, follow = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    rows: dict[int, list[DistillationExample]] = {}
    asking = dict[int, int]()
    for example in splits.train:
        if asking.get(example.chunk, 0) < tokens:
            asking[example.chunk] = asking.get(example.chunk, 0) + len(example.answer)
            rows.setdefault(example.chunk, []).append(example)
    return [
        SelectionInput(
            (*opening, *lm.encode(prepared.chunks[chunk])), follow, examples(own, prepared, lm), len(opening)
        )
        for chunk, own in sorted(rows.items())
    ]
