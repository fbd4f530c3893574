"""Where a distillation begins: with what its rows look at most in the whole text, fitted to what they get from it.

Shapes as in `attended` and `matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from softprompt.attach import Prefix, bank
from softprompt.attended import Reading, most_attended, most_attended_ids
from softprompt.data.tokenise import Example
from softprompt.distil.exercises import Exercise, Exercises
from softprompt.distil.source import Prepared
from softprompt.errors import UnsupportedModelError
from softprompt.framing import layout_for, layout_ids, opening_ids
from softprompt.matching import heard, matched
from softprompt.methods import KV_METHODS
from softprompt.model import FrozenLM
from softprompt.objective import token_losses
from softprompt.prompt import EmbeddingPrompt, Prompt

ASKING = 768  # tokens of answers about a piece that are asked what they look at
MATCHING = 1536  # and that prompts are fitted on, of all pieces together at least as many as of one
ASKING_ROWS = 16  # where there are no validation rows
RUNS = (1, 4, 8, 16)  # lengths of neighbours that an embedding prompt may start from


def beginnings(
    prepared: Prepared,
    lm: FrozenLM,
    text: tuple[int, ...],
    exercises: Exercises,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[int, Prompt]:
    """By size the prompt that training starts from; none for a size that the settings start elsewhere, that takes in
    the whole text, or where the model's keys cannot be moved."""
    sizes = [size for size in prepared.sizes if len(text) > size]
    if prepared.settings.method.init != "attended" or not sizes:
        return {}
    form = "kv" if prepared.settings.method.name in KV_METHODS else "embedding"
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, form))
    looking = _readings(prepared, lm, exercises, ASKING)
    try:
        found: dict[int, Prompt] = {size: _chosen(prepared, lm, text, looking, size, exercises) for size in sizes}
    except UnsupportedModelError:
        return {}
    try:
        rows = heard(lm, _readings(prepared, lm, exercises, max(ASKING, MATCHING // len(looking))))
        for i, (size, prompt) in enumerate(found.items()):

            def told(done: float, before: int = i) -> None:
                progress((before + done) / len(found))

            found[size] = matched(lm, prompt, rows, lead, follow, progress=told)
    except UnsupportedModelError:  # it starts unfitted then
        pass
    return found


def examples(part: Sequence[Exercise], prepared: Prepared, lm: FrozenLM) -> list[Example]:
    """Exercises as rows."""
    return [exercise.example(prepared.template, lm.tokenizer) for exercise in part]


def _readings(prepared: Prepared, lm: FrozenLM, exercises: Exercises, tokens: int) -> list[Reading]:
    """All pieces, each with exercises about it of so many tokens of answers."""
    opening = opening_ids(lm, prepared.template)
    _, follow = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    rows: dict[int, list[Exercise]] = {}
    asking = dict[int, int]()
    for exercise in exercises.train:
        if asking.get(exercise.chunk, 0) < tokens:
            asking[exercise.chunk] = asking.get(exercise.chunk, 0) + len(exercise.answer)
            rows.setdefault(exercise.chunk, []).append(exercise)
    return [
        Reading((*opening, *lm.encode(prepared.chunks[chunk])), follow, examples(own, prepared, lm), len(opening))
        for chunk, own in sorted(rows.items())
    ]


def _chosen(
    prepared: Prepared,
    lm: FrozenLM,
    text: tuple[int, ...],
    readings: Sequence[Reading],
    size: int,
    exercises: Exercises,
) -> Prompt:
    """The tokens of all pieces that their exercises look at most."""
    if prepared.settings.method.name in KV_METHODS:
        return most_attended(lm, readings, size)
    ids = _best_ids(prepared, lm, [text[:size], *most_attended_ids(lm, readings, size, RUNS)], exercises)
    return EmbeddingPrompt(lm.embed(torch.tensor(ids)).float())


def _best_ids(
    prepared: Prepared, lm: FrozenLM, starts: Sequence[tuple[int, ...]], exercises: Exercises
) -> tuple[int, ...]:
    """Of these starts of an embedding prompt, which are real tokens, the nearest to the teacher on validation rows."""
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, "embedding"))
    rows = examples(exercises.validation or exercises.train[:ASKING_ROWS], prepared, lm)

    @torch.no_grad()
    def loss(ids: tuple[int, ...]) -> float:
        return token_losses(lm, bank(lm, [Prefix(lead=(*lead, *ids), follow=follow)]), rows).mean().item()

    return min(dict.fromkeys(starts), key=loss)
