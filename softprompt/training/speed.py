"""Measures how fast this machine trains, before a timed run chooses its settings.

    prepared = on_this_machine(prepared, lm)          # a few short passes; `auto` chooses again

The passes have the layout and the path of a training step, with a few tokens of rows. A resumed run takes what was
measured at its start, so that it chooses the same and goes on bit for bit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from softprompt.data.tokenize import Example
from softprompt.formatting.formatted_prompt import framed_layout, layout_ids
from softprompt.methods.registry import method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.training import auto
from softprompt.training.batched_losses import memory_advice
from softprompt.training.pace import Pace, read_pace
from softprompt.training.prepare import PreparedTraining

_FEW_TOKENS, _MANY_TOKENS = 12, 96  # of rows, in the two passes that are timed
_MOST_REPEATS = 3
_LONG_S = 1.0  # passes that take longer are repeated once
_VERY_LONG_S = 20.0  # passes that take longer are not repeated


def on_this_machine(prepared: PreparedTraining, lm: FrozenLM, *, resume: bool = False) -> PreparedTraining:
    """The run with the speed of this machine among its facts, and with the choices that `auto` makes by it.

    Settings that were changed since `auto` chose stay, unless the choice itself is another one now. A step of another
    objective than the next token, with pairs or generated answers, is not what is measured: such a run stays as it is.
    """
    if prepared.facts.pace is not None or prepared.config.objective.name != "next-token":
        return prepared
    pace = read_pace(prepared.run) if resume else measured_pace(prepared, lm)
    if pace is None:
        return prepared
    facts = replace(prepared.facts, pace=pace)
    if not prepared.choices:
        return replace(prepared, facts=facts)
    before = {choice.setting: choice.value for choice in prepared.choices}
    _, choices = auto.choose(prepared.given, facts)
    changed = [choice for choice in choices if before.get(choice.setting) != choice.value]
    return replace(prepared, facts=facts, choices=choices, config=auto.with_choices(prepared.config, changed))


def measured_pace(prepared: PreparedTraining, lm: FrozenLM, clock: Callable[[], float] = time.monotonic) -> Pace:
    """Seconds of a forward and backward pass by its tokens; the same in all processes of a run."""
    task, spec = prepared.tasks[0], method_spec(prepared.config.method.name)
    n_tokens = 1 if spec.trains_kv else prepared.config.method.n_tokens
    ids = list(itertools.islice(itertools.cycle(task.train[0].ids), n_tokens))
    embeddings = lm.embed(torch.tensor(ids)).detach().float().requires_grad_()
    lead, follow = layout_ids(lm, framed_layout(lm, task.template, "embedding", task.frame))

    def seconds(rows: Sequence[Example]) -> float:
        began = clock()
        prefixes = prepare_prefixes(lm, [Prefix(EmbeddingPrompt(embeddings), lead, follow)])
        loss = token_losses(lm, prefixes, rows, [0] * len(rows)).mean()
        (gradient,) = torch.autograd.grad(loss, [embeddings])
        gradient.sum().item()  # waits for a GPU
        return clock() - began

    few, many = (list(_some_rows(task.train, tokens, cut=not lm.is_encoder_decoder)) for tokens in _SIZES)
    checkpointing = prepared.config.train.gradient_checkpointing or lm.is_offloaded
    with memory_advice("the first pass"), lm.checkpoint_layers(checkpointing):
        seconds(few)  # proves the model's path and fills caches
        times = [(seconds(few), seconds(many))]
        while len(times) < _repeats(sum(times[0])):  # something else may have run beside the first ones
            times.append((seconds(few), seconds(many)))
    quickest = [min(each) for each in zip(*times, strict=True)]
    measured = [(_tokens(rows), each) for rows, each in zip((few, many), quickest, strict=True)]
    pace = Pace.between(*measured)
    if PartialState(cpu=lm.device.type == "cpu").num_processes > 1:
        pace = gather_object([pace])[0]
    return pace


_SIZES = (_FEW_TOKENS, _MANY_TOKENS)


def _repeats(seconds: float) -> int:
    """How often passes that took so long are timed."""
    if seconds < _LONG_S:
        return _MOST_REPEATS
    return 2 if seconds < _VERY_LONG_S else 1


def _some_rows(rows: Sequence[Example], tokens: int, *, cut: bool) -> Iterator[Example]:
    """Rows of about so many tokens together, again and again the same if there are few.

    Args:
        cut: whether a row may be shortened; its last token is learned then.
    """
    for row in itertools.cycle(rows):
        if not cut:
            yield row
        elif tokens >= 2:
            ids = row.ids[:tokens]
            yield Example(ids, (*[False] * (len(ids) - 1), True), row.where)
        tokens -= len(row.ids)
        if tokens < 2:
            return


def _tokens(rows: Sequence[Example]) -> float:
    return float(sum(len(row.ids) for row in rows))
