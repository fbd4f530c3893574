"""Section "lens": the words that the model would predict from a virtual token after each layer.

    p_l(v) = softmax( head( norm( h_l ) ) )      h_l the hidden state at a virtual token after layer l

The logit lens (nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru). It is weak: middle layers do
not speak the head's language, and a virtual token need not predict its successor. So the words of each layer are put in
the prompt's place, and the share of its effect that they recover is printed beside that of a random prompt's words.

Shapes: P virtual tokens, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.tokenizer import decode
from softprompt.errors import UnsupportedModelError
from softprompt.inspection.controls import random_like
from softprompt.inspection.effect import PromptEffect
from softprompt.prefix.layer_states import normed_layer_states
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt

_LAYERS = 4  # that are shown


@dataclass(frozen=True)
class LensLayer:
    """The words after one layer.

    Attributes:
        layer: its number.
        tokens: of each virtual token the most likely word.
        probabilities: their probabilities.
        recovered: share of the effect that these words have in the prompt's place.
        random_recovered: the same of a random prompt's words.
    """

    layer: int
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    recovered: float
    random_recovered: float


@torch.no_grad()
def lens(effect: PromptEffect, layers: int = _LAYERS) -> tuple[LensLayer, ...]:
    """Read the virtual tokens through the head, after some layers from the first to the last.

    Raises UnsupportedModelError: keys and values, which have no hidden states, or a model without a known final norm.
    """
    prompt, lm = effect.prompt, effect.lm
    if prompt.input_embeddings() is None:
        raise UnsupportedModelError("keys and values have no hidden states that a lens could read", where=lm.name)
    own, control = _readings(effect, prompt, layers), _readings(effect, random_like(prompt), layers)
    words = [EmbeddingPrompt(lm.embed(ids).detach()) for reading in (own, control) for ids, _ in reading.values()]
    shares = effect.recovered(words)
    return tuple(
        LensLayer(
            layer,
            tuple(decode([word], lm.tokenizer) for word in ids.tolist()),
            tuple(probabilities.tolist()),
            shares[i],
            shares[len(own) + i],
        )
        for i, (layer, (ids, probabilities)) in enumerate(own.items())
    )


def _readings(effect: PromptEffect, prompt: SoftPrompt, layers: int) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer, from the first to the last: each virtual token's most likely word [P] and its probability [P]."""
    lm, prefix = effect.lm, effect.prefix_of(prompt)
    virtual = slice(len(prefix.lead), len(prefix.lead) + prompt.n_tokens)
    states, found = normed_layer_states(lm, prefix), dict[int, tuple[Tensor, Tensor]]()
    for layer in sorted({round(i * (len(states) - 1) / max(1, layers - 1)) for i in range(layers)}):
        top = lm.logits(states[layer][virtual]).float().softmax(-1).max(-1)
        found[layer] = (top.indices, top.values)
    return found
