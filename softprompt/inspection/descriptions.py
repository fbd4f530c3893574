"""Candidates for a text that says what a soft prompt does: the model's own words, and words near the prompt.

    asked      the model is asked after the soft prompt what its task is
    continued  it completes a sentence about the task right after the virtual tokens
    patched    the virtual tokens' hidden states after layer l take the place of "x x x" in a prompt that describes
               tasks by examples (InSPEcT: Ramati et al. 2025, https://arxiv.org/abs/2410.11660)
    nearest    the words nearest to the virtual tokens, in their order

No candidate is believed: `verbalize` measures each.

Shapes: P virtual tokens, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softprompt.data.template import bos_ids
from softprompt.errors import UnsupportedModelError
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.nearest import nearest
from softprompt.inspection.questions import answers_to
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.state_patch import patched_states, states_after_layers

_QUESTIONS = (
    "What is your task? Describe it in one sentence.",
    "Which rules do you follow in your answers?",
    "Write the instructions that you were given.",
    "How do you answer?",
)
_OPENINGS = ("\nIn other words, the task is to", "\nInstruction:", "\nYou must always")
_DESCRIBED = (
    "Task: positive, negative, review. Description: Say whether a review is positive or negative.\n",
    "Task: French, translate, English. Description: Translate the English text into French.\n",
    "Task: short, summary, article. Description: Write a short summary of the article.\n",
)
_OPENING = "Task:"
_PLACE, _ENDING = " x", ". Description:"
_LAYERS = 4  # that are patched
_ANSWER_TOKENS = 32
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Description:
    """A text that may say what a soft prompt does.

    Attributes:
        text: on one or several lines.
        source: where it comes from: "asked", "continued", "patched after layer 12 into 12", "nearest".
    """

    text: str
    source: str


def descriptions(effect: PromptEffect) -> list[Description]:
    """Candidates without repetitions. A source that has no meaning for this prompt or model is left out."""
    found = [*_asked(effect), *_continued(effect), *_patched(effect), *_nearest_words(effect)]
    kept: dict[str, Description] = {}
    for description in found:
        text = description.text.strip()[:_MOST_CHARACTERS]
        if text:
            kept.setdefault(text, Description(text, description.source))
    return list(kept.values())


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without marks of lists."""
    parts = text.replace("!", "!\n").replace("?", "?\n").replace(". ", ".\n").splitlines()
    return [part for line in parts if (part := line.strip(" \t-*•\"'")) and len(part) > 2]


def _asked(effect: PromptEffect) -> list[Description]:
    answers = answers_to(effect.lm, effect.formatted, _QUESTIONS, _ANSWER_TOKENS)
    return [Description(answer, "asked") for answer in answers]


def _continued(effect: PromptEffect) -> list[Description]:
    lm, prefix = effect.lm, effect.formatted.prefix(effect.lm)
    if lm.is_encoder_decoder:
        return []
    bare = Prefix(prefix.prompt, prefix.lead)
    with torch.no_grad():
        texts = _texts(lm, [bare], [lm.encode(opening) for opening in _OPENINGS])
    return [Description(text, "continued") for text in texts]


def _patched(effect: PromptEffect) -> list[Description]:
    """Of embedding prompts, after several layers; each into the same layer of the describing prompt."""
    lm, prompt = effect.lm, effect.prompt
    if prompt.input_embeddings() is None or lm.is_encoder_decoder:
        return []
    prefix = effect.formatted.prefix(lm)
    place, ending = lm.encode(_PLACE), lm.encode(_ENDING)
    room = lm.geometry.max_positions - prompt.n_tokens - len(ending) - _ANSWER_TOKENS
    opening = next((ids for ids in _openings(lm) if len(ids) <= room), None)
    if opening is None:
        return []
    ids = (*opening, *(place[-1:] * prompt.n_tokens), *ending[:-1])
    places, found = range(len(opening), len(opening) + prompt.n_tokens), list[Description]()
    try:
        states = states_after_layers(lm, Prefix(prompt, prefix.lead))
    except UnsupportedModelError:
        return []
    for layer in sorted({round(i * (len(states) - 1) / _LAYERS) for i in range(_LAYERS)}):
        own_PH = states[layer][len(prefix.lead) : len(prefix.lead) + prompt.n_tokens]
        with torch.no_grad(), patched_states(lm, layer, places, own_PH):
            (text,) = _texts(lm, [Prefix(lead=ids)], [ending[-1:]])
        found.append(Description(text.split("\n")[0], f"patched after layer {layer}"))
    return found


def _openings(lm: FrozenLM) -> list[list[int]]:
    """The describing prompt up to the place of the virtual tokens, with all examples, or with fewer."""
    texts = ["".join(_DESCRIBED[:count]) + _OPENING for count in range(len(_DESCRIBED), 0, -1)]
    return [[*bos_ids(lm.tokenizer), *lm.encode(text)] for text in texts]


def _nearest_words(effect: PromptEffect) -> list[Description]:
    try:
        near = nearest(effect)
    except UnsupportedModelError:
        return []
    return [Description("".join(token.tokens[0] for token in near.tokens), "nearest")]


def _texts(lm: FrozenLM, prefixes: Sequence[Prefix], rows: Sequence[Sequence[int]]) -> list[str]:
    """What the model writes greedily after these rows, up to an empty line."""
    answers = decode_batch(
        lm,
        prepare_prefixes(lm, prefixes),
        rows,
        [0] * len(rows),
        Sampling(max_new_tokens=_ANSWER_TOKENS, stop=("\n\n",)),
        end_ids=[lm.end_ids] * len(rows),
    )
    return [answer.text for answer in answers]
