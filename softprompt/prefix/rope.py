"""Moving the keys of a KV prompt to other positions.

A rotary model rotates each key by an angle that grows with its position (Su et al.: RoFormer. 2021.
https://arxiv.org/abs/2104.09864), and rotations add up: R(p + d) k = R(d) R(p) k. So a key at position p is moved by d
with the model's own angles at d. Values carry no position.

How a model lays the pairs of a rotation out in a key differs between families, and some layers do not rotate at all.
The first move tries the known layouts, layer by layer, on the loaded model's own keys of a text at two places. A model
that none explains (learned positions, or positions mixed into the values) is refused.

Shapes: K key/value heads, P virtual tokens, D head size, R = 2 F rotated numbers of a key, F frequencies.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.errors import FOREIGN_ERRORS, GeometryError, UnsupportedModelError, first_line
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV, PrefixCache
from softprompt.prefix.forward import forward
from softprompt.prefix.proof import probe_ids
from softprompt.prefix.runtime import PrefixRuntime, RopeLayout
from softprompt.prefix.tolerance import tolerance
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import KVPrompt

LAYOUTS: tuple[RopeLayout, ...] = ("halves", "pairs", "still")
_TOKENS = 6  # of the trial
_DISTANCE = 13  # positions by which the trial moves them


def shift_positions(lm: FrozenLM, prompt: KVPrompt, by: Sequence[int]) -> KVPrompt:
    """The prompt with the key of token i moved by `by[i]` positions, right if positive. In float32, values as given.

    Gradients flow through.

    Raises:
        GeometryError: a move as long as the context. Within it every kind of scaled rotation ("longrope", "dynamic")
            keeps one set of frequencies, so the move is exact; beyond it there is none.
        UnsupportedModelError: the keys of this model cannot be moved.
        ValueError: not one distance for each token.
    """
    if len(by) != prompt.n_tokens:
        raise ValueError(f"{len(by)} distances for {prompt.n_tokens} virtual tokens")
    if (farthest := max(map(abs, by))) >= lm.geometry.max_positions:
        raise GeometryError(
            "the keys would leave the model's context",
            expected=f"moves of less than {lm.geometry.max_positions} positions",
            got=farthest,
        )
    if not any(by):
        return prompt
    layouts = rope_layouts(lm)
    distances = torch.tensor(by, device=lm.device)
    layers: list[KV] = []
    for i, (kv, layout) in enumerate(zip(prompt.layers, layouts, strict=True)):
        if kv is None or layout is None:
            layers.append(kv)
        else:
            layers.append((_rotate(kv[0].to(lm.device), *_angles(lm, i, distances), layout), kv[1]))
    return KVPrompt(tuple(layers))


@torch.no_grad()
def rotate_keys(lm: FrozenLM, layer: int, vectors_XTD: Tensor, by: Sequence[int]) -> Tensor:
    """Keys or queries of a layer, rotated as if token t were `by[t]` positions further right. In float32.

    Raises UnsupportedModelError as `shift_positions`, and ValueError for a layer without keys.
    """
    layout = rope_layouts(lm)[layer]
    if layout is None:
        raise ValueError(f"layer {layer} has no keys")
    return _rotate(vectors_XTD, *_angles(lm, layer, torch.tensor(by, device=lm.device)), layout)


def uses_rope(lm: FrozenLM) -> bool:
    """Whether the model rotates keys by their position; in any other a key is the same wherever it stands."""
    return _rotary(lm) is not None


@torch.no_grad()
def rope_layouts(lm: FrozenLM) -> tuple[RopeLayout | None, ...]:
    """For each layer with keys, the layout that rotates a text's keys at 0 into those of the same text further on.

    Raises UnsupportedModelError if none does.
    """
    runtime = PrefixRuntime.of(lm)
    if runtime.rope_layouts is None:
        verify(lm)
        runtime.rope_layouts = _try_layouts(lm)
    return runtime.rope_layouts


def _try_layouts(lm: FrozenLM) -> tuple[RopeLayout | None, ...]:
    if _rotary(lm) is None:
        raise _unmovable(lm, "no rotary module")
    try:
        return _layouts_by_trial(lm)
    except FOREIGN_ERRORS as error:  # complex angles, angles by another rule
        raise _unmovable(lm, f"{type(error).__name__}: {first_line(error)}") from error


def _layouts_by_trial(lm: FrozenLM) -> tuple[RopeLayout | None, ...]:
    here, there = _keys(lm, 0), _keys(lm, _DISTANCE)
    distances = torch.full((_TOKENS,), _DISTANCE, device=lm.device)
    layouts: list[RopeLayout | None] = [None] * len(lm.geometry.layers)
    for i, (keys, values) in here.items():
        angles = _angles(lm, i, distances)
        errors = {layout: _difference(_rotate(keys, *angles, layout), there[i][0]) for layout in LAYOUTS}
        layouts[i] = min(LAYOUTS, key=errors.__getitem__)
        worst = max(min(errors.values()), _difference(values, there[i][1]))
        if worst > tolerance(lm):
            raise _unmovable(lm, f"layer {i} is off by {worst:.1%}")
    return tuple(layouts)


def _unmovable(lm: FrozenLM, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the keys of {lm.geometry.architecture} models cannot be moved to other positions",
        where=lm.name,
        expected="keys rotated by their position, and positions nowhere else",
        got=reason,
        hint="embedding prompts can be joined, resized and pruned on any model",
    )


def _keys(lm: FrozenLM, start: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Per layer the keys and values [K, _TOKENS, D] of a short text that starts at this position."""
    positions = torch.arange(start, start + _TOKENS, device=lm.device)[None]
    cache = PrefixCache((None,) * len(lm.geometry.layers), 0, record=True)
    ids = torch.tensor([probe_ids(lm, _TOKENS)], device=lm.device)
    forward(
        lm,
        ids_GL=ids,
        positions_GL=positions,
        key_positions_GK=positions,
        visible_GQK=positions[:, None, :] <= positions[:, :, None],
        cache=cache,
    )
    return {i: (k[0].float().to(lm.device), v[0].float().to(lm.device)) for i, (k, v) in cache.seen.items()}


def _rotary(lm: FrozenLM) -> Any:
    """The text decoder's module that computes the angles, or None."""
    named = (module for module in lm.backbone.module.modules() if type(module).__name__.endswith("RotaryEmbedding"))
    return next(named, None)


@torch.no_grad()
def _angles(lm: FrozenLM, layer: int, distances_P: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [P, F] of this layer's rotations over these distances, in float32.

    Models write the F numbers once, twice in a row or each one twice. They also scale them (`attention_scaling`); the
    factor is divided out, since the keys have it already.
    """
    rotary = _rotary(lm)
    like = torch.zeros(1, dtype=torch.float32, device=lm.device)
    per_type = "layer_type" in inspect.signature(rotary.forward).parameters
    kind = (lm.layer_types[layer],) if per_type else ()
    cos, sin = (part[0].float().to(lm.device) for part in rotary(like, distances_P.abs()[None], *kind))
    half = cos.shape[-1] // 2
    doubled = torch.stack([cos, sin])
    if torch.equal(doubled[..., :half], doubled[..., half:]):
        cos, sin = cos[..., :half], sin[..., :half]
    elif torch.equal(doubled[..., 0::2], doubled[..., 1::2]):
        cos, sin = cos[..., 0::2], sin[..., 0::2]
    size = (cos.square() + sin.square()).sqrt()
    return cos / size, sin / size * distances_P.sign()[:, None]


def _rotate(keys_KPD: Tensor, cos_PF: Tensor, sin_PF: Tensor, layout: RopeLayout) -> Tensor:
    """The keys with their first R numbers rotated, in float32."""
    keys_KPD = keys_KPD.float()
    rotated_KPR, rest = keys_KPD[..., : 2 * cos_PF.shape[1]], keys_KPD[..., 2 * cos_PF.shape[1] :]
    if layout == "still" or rotated_KPR.shape[-1] < 2 * cos_PF.shape[1]:  # still, or keys shorter than a rotation
        return keys_KPD
    if layout == "halves":
        x, y = rotated_KPR.chunk(2, dim=-1)
        rotated_KPR = torch.cat([x * cos_PF - y * sin_PF, y * cos_PF + x * sin_PF], dim=-1)
    else:
        x, y = rotated_KPR[..., 0::2], rotated_KPR[..., 1::2]
        rotated_KPR = torch.stack([x * cos_PF - y * sin_PF, y * cos_PF + x * sin_PF], dim=-1).flatten(-2)
    return torch.cat([rotated_KPR, rest], dim=-1)


def _difference(ours: Tensor, wanted: Tensor) -> float:
    """Relative to the size of what is wanted."""
    return ((ours - wanted).norm() / wanted.norm().clamp_min(1e-6)).item()
