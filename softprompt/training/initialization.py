"""Where the virtual tokens of a run start: texts, labels and demonstrations made from its rows.

Demonstrations are worked examples drawn from the training rows: training then starts from in-context learning and
improves it by gradient. A row that is one of them does not see itself (as in Lu et al.: Context Tuning for In-Context
Optimization. 2025. https://arxiv.org/abs/2507.04221). With init "attended" a few virtual tokens begin as what rows look
at most in many demonstrations, or in a long text (`attended`).
"""

from __future__ import annotations

from collections.abc import Mapping

from softprompt.compaction.attention_matching import FIT_STEPS, collect_targets, fit_to_attention
from softprompt.compaction.selection import SelectionInput, selected_prompt
from softprompt.data.spans import target_ids
from softprompt.data.template import bos_ids
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import layout_for, layout_ids
from softprompt.formatting.text_prompt import instruction_for, worked_example
from softprompt.methods.base import Start
from softprompt.methods.registry import KV_METHODS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.prompts.kv_prompt import KVPrompt
from softprompt.training.auto import SHORT_RUN
from softprompt.training.demonstrations import demonstrations
from softprompt.training.prepare import PreparedTask, PreparedTraining

ASKING = 16  # training rows that are asked what they look at
FITTING = 0.1  # of the minutes of a run, at most, go into fitting what it starts from
INIT_ROWS = 8  # training rows that a made-up start text is drawn from


def build_start(
    prepared: PreparedTraining, lm: FrozenLM, prompts: Mapping[str, SoftPrompt] | None = None
) -> tuple[Start, dict[str, tuple[int, int]]]:
    """What the settings say to start from, and the virtual tokens that rows may not see, by their `where`.

    Args:
        prompts: those that `method.init_from` and `method.sources` name.
    """
    config, task, known = prepared.config.method, prepared.tasks[0], prompts or {}
    kv = config.name in KV_METHODS
    text, n_tokens = tuple(lm.encode(config.init_text or start_text(task))), config.n_tokens
    lead, masked_span = tuple(bos_ids(lm.tokenizer)) if kv else (), dict[str, tuple[int, int]]()
    if config.init == "demonstrations":
        found = demonstrations(task, lm, config.init_text, n_tokens - len(lead), prepared.config.train.seed)
        text, n_tokens = found.ids, len(lead) + len(found.ids)
        masked_span = {where: (len(lead) + first, len(lead) + last) for where, (first, last) in found.spans.items()}
    start = Start(
        n_tokens=n_tokens,
        init="prompt" if config.init == "attended" else config.init,
        text=text,
        labels=tuple(tuple(target_ids(label, task.template, lm.tokenizer)) for label in task.classes),
        prompt=_attended(prepared, lm) if config.init == "attended" else known.get(config.init_from or ""),
        lead=lead,
        frozen_tokens=config.frozen_tokens if kv else 0,
        hidden=config.hidden,
        sites=tuple(site.strip() for site in config.sites.split(",")) if config.sites else (),
        rank=config.rank,
        sources=tuple(known[name] for name in config.sources),
        n_tasks=len(prepared.tasks),
        n_prompts=config.n_prompts,
        seed=prepared.config.train.seed,
    )
    return start, masked_span


def _attended(prepared: PreparedTraining, lm: FrozenLM) -> SoftPrompt:
    """The virtual tokens of the text, or of demonstrations, that rows look at most: rows that are not shown in it."""
    config, task = prepared.config.method, prepared.tasks[0]
    if lm.is_encoder_decoder:
        got, hint = f"{lm.name}: encoder-decoder", "--init text"
        raise ConfigError("init attended is for causal models", where="method.init", got=got, hint=hint)
    ids, shown = lm.encode(config.init_text or ""), set[str]()
    if not config.init_text:
        room = min(config.text_tokens, lm.geometry.max_positions // 2)
        found = demonstrations(task, lm, None, room, prepared.config.train.seed)
        ids, shown = list(found.ids), set(found.spans)
    asking = [row for row in task.train if row.where not in shown] or task.train
    form = (KVPrompt if config.name in KV_METHODS else EmbeddingPrompt).form
    (_, behind), between = (layout_ids(lm, layout_for(lm, task.template, kind)) for kind in ("kv", form))
    opening = bos_ids(lm.tokenizer)
    reading = SelectionInput((*opening, *ids), behind, asking[:ASKING], len(opening))
    prompt = selected_prompt(lm, form, [reading], config.n_tokens, between, asking[:ASKING])
    minutes = prepared.config.train.minutes
    if len(task.classes) > ASKING or (minutes is not None and minutes < SHORT_RUN):
        return prompt  # rows speak only for the classes that they have; half a fit is worse than none (docs/log)
    budget = Budget(FIT_STEPS, minutes * 60 * FITTING if minutes else None)
    try:
        return fit_to_attention(lm, prompt, collect_targets(lm, [reading]), *between, budget)
    except UnsupportedModelError:  # it starts unfitted then
        return prompt


def start_text(task: PreparedTask) -> str:
    """A text to start from when the user gives none: the labels, or the first training rows with their answers."""
    if task.classes:
        return instruction_for(task.classes)
    rows = task.splits.train[:INIT_ROWS]
    if rows[0].messages:
        return "\n\n".join(message.content for row in rows for message in row.messages)
    return "\n\n".join(worked_example(task.template, row) for row in rows)
