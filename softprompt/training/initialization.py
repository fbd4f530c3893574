"""Initialization of a run's virtual tokens from texts, labels and demonstrations made of its rows.

Demonstrations are worked examples drawn from the training rows: training then starts from in-context learning and
improves it by gradient. A row that is one of them does not see itself (as in Lu et al.: Context Tuning for In-Context
Optimization. 2025. https://arxiv.org/abs/2507.04221). With init "selected" the virtual tokens start as those tokens of
many demonstrations, or of a long text, that receive the most attention (`compaction.selection`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from softprompt.compaction.attention_matching import FIT_STEPS, collect_targets, fit_to_attention
from softprompt.compaction.selection import SelectionInput, selected_prompt
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.spans import target_ids
from softprompt.data.template import bos_ids
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import framed_layout, layout_for, layout_ids
from softprompt.formatting.text_prompt import instruction_for, worked_example
from softprompt.methods.base import Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.registry import method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prompts.base import SoftPrompt
from softprompt.training.auto import is_short
from softprompt.training.demonstrations import demonstrations
from softprompt.training.expectation import FIT_SHARE
from softprompt.training.prepare import PreparedTask, PreparedTraining

SELECTION_ROWS = 16  # training rows whose attention selects tokens
TEXT_ROWS = 8  # training rows that a start text is made of
NEUTRAL_TEXT = "You are a helpful assistant."  # where the rows have no answers


def build_start(
    settings: MethodConfig,
    *,
    text: Sequence[int],
    lead: Sequence[int],
    seed: int,
    n_tokens: int | None = None,
    labels: Sequence[Sequence[int]] = (),
    prompt: SoftPrompt | None = None,
) -> Start:
    """The start that the settings of a method describe, in training and in distillation.

    Args:
        text: token ids of the text or demonstrations to start from.
        lead: ids before the virtual tokens; a KV prompt begins with them.
        n_tokens: the number of virtual tokens, if not that of the settings.
        labels: token ids of each class label.
        prompt: the soft prompt to start from, also for init "selected" (without it, that is the text).
    """
    selected = "text" if prompt is None else "prompt"
    return Start(
        n_tokens=settings.n_tokens if n_tokens is None else n_tokens,
        init=selected if settings.init == "selected" else settings.init,
        text=tuple(text),
        labels=tuple(tuple(label) for label in labels),
        prompt=prompt,
        lead=tuple(lead) if method_spec(settings.name).trains_kv else (),
        seed=seed,
    )


def training_start(
    prepared: PreparedTraining,
    lm: FrozenLM,
    prompts: Mapping[str, SoftPrompt] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Start, dict[str, tuple[int, int]]]:
    """The start of a training run, and the virtual tokens that are hidden from single rows, by their `where`.

    Args:
        prompts: the saved soft prompts that the settings name.
        progress: called with the share of the start's fit that is done.
    """
    settings, task = prepared.config.method, prepared.tasks[0]
    seed = prepared.config.train.seed
    bos, masked_spans = [] if lm.is_encoder_decoder else bos_ids(lm.tokenizer), dict[str, tuple[int, int]]()
    text, n_tokens = lm.encode(settings.init_text or start_text(task)), settings.n_tokens
    if settings.init == "demonstrations":
        n_lead = len(bos) if method_spec(settings.name).trains_kv else 0
        shots = demonstrations(task, lm, settings.init_text, n_tokens - n_lead, seed)
        text, n_tokens = list(shots.ids), n_lead + len(shots.ids)
        masked_spans = {where: (n_lead + first, n_lead + last) for where, (first, last) in shots.spans.items()}
    saved = (prompts or {}).get(settings.init_from or "")
    prompt = _selected(prepared, lm, progress) if settings.init == "selected" else saved
    labels = [target_ids(label, task.template, lm.tokenizer) for label in task.classes]
    start = build_start(settings, text=text, lead=bos, seed=seed, n_tokens=n_tokens, labels=labels, prompt=prompt)
    return start, masked_spans


def _selected(prepared: PreparedTraining, lm: FrozenLM, progress: Callable[[float], None]) -> SoftPrompt:
    """The tokens of the text, or of demonstrations, that get most attention from rows that are not part of them."""
    config, task = prepared.config.method, prepared.tasks[0]
    if lm.is_encoder_decoder:
        got, hint = f"{lm.name}: encoder-decoder", "--init text"
        raise ConfigError("init selected is for causal models", where="method.init", got=got, hint=hint)
    ids, shown = lm.encode(config.init_text or ""), set[str]()
    if not config.init_text:
        room = min(config.text_tokens, lm.geometry.max_positions // 2)
        shots = demonstrations(task, lm, None, room, prepared.config.train.seed)
        ids, shown = list(shots.ids), set(shots.spans)
    queries = [row for row in task.train if row.where not in shown] or task.train
    queries = queries[:SELECTION_ROWS]
    form = method_spec(config.name).start_form
    _, follow = layout_ids(lm, layout_for(lm, task.template, "kv"))
    between = layout_ids(lm, framed_layout(lm, task.template, form, task.frame))
    opening = bos_ids(lm.tokenizer)
    source = SelectionInput((*opening, *ids), follow, queries, len(opening))
    prompt = selected_prompt(lm, form, [source], config.n_tokens, between, queries)
    minutes = prepared.config.train.minutes
    if len(task.classes) > SELECTION_ROWS or is_short(prepared.config, prepared.facts):
        return prompt  # no fit unless rows cover every class: a partial fit lowers accuracy (docs/log)
    budget = Budget(FIT_STEPS, minutes * 60 * FIT_SHARE if minutes else None)
    try:
        return fit_to_attention(lm, prompt, collect_targets(lm, [source]), *between, budget, progress)
    except UnsupportedModelError:  # it starts unfitted then
        return prompt


def start_text(task: PreparedTask) -> str:
    """The default text to start from: the labels, the first training rows with their answers, or without any answers
    a sentence that asks for nothing special."""
    if task.classes:
        return instruction_for(task.classes)
    rows = task.splits.train[:TEXT_ROWS]
    if all(row.target is None and shape_of(row).has_answers for row in rows):
        return NEUTRAL_TEXT
    if rows[0].messages:
        return "\n\n".join(message.content for row in rows for message in row.messages)
    return "\n\n".join(worked_example(task.template, row) for row in rows)
