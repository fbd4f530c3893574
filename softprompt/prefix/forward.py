"""One forward pass of the base model with explicit keys, masks and positions.

Shapes: G bins or rows, Q queries, K keys, L tokens, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import Cache

from softprompt.errors import DataError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.runtime import PrefixRuntime

_VERIFY = "call `softprompt.prefix.verify.verify` first"


def forward(
    lm: FrozenLM,
    *,
    positions_GL: Tensor,
    key_positions_GK: Tensor,
    visible_GQK: Tensor,
    cache: Cache,
    ids_GL: Tensor | None = None,
    embeds_GLH: Tensor | None = None,
    embedded_ids_GL: Tensor | None = None,
    attentions: list[Tensor] | None = None,
) -> Tensor:
    """Final hidden states [G, L, H].

    Args:
        positions_GL: position of each token; padding may have any in range.
        key_positions_GK: positions of all keys, those of the cache first.
        visible_GQK: True where a query may attend to a key; sliding windows are applied on top.
        cache: holds the keys and values of the prefix; see `cache.py`.
        ids_GL, embeds_GLH: the tokens, one of the two.
        embedded_ids_GL: the ids of embedded tokens, as in `Backbone.run`.
        attentions: filled with each layer's attention weights [G, heads, Q, K]; needs the model's eager attention.

    Raises UnsupportedModelError for a model that `verify` has not seen.
    """
    runtime = PrefixRuntime.of(lm)
    if runtime.mask_style is None:
        raise UnsupportedModelError("nothing is known yet of how the model takes masks", where=lm.name, hint=_VERIFY)
    distance_GQK = positions_GL[:, :, None] - key_positions_GK[:, None, :]
    masks = {
        window: additive(visible_GQK if window is None else visible_GQK & (distance_GQK < window), lm.dtype)
        for window in set(runtime.windows)
    }
    mask: Tensor | dict[str, Tensor] = masks[runtime.windows[0]]
    if runtime.mask_style == "per layer type":
        mask = {kind: masks[window] for kind, window in zip(lm.layer_types, runtime.windows, strict=True)}
    return lm.backbone.run(
        ids_BL=ids_GL,
        embeds_BLH=embeds_GLH,
        embedded_ids_BL=embedded_ids_GL,
        mask=mask,
        positions_BL=positions_GL,
        cache=cache,
        attentions=attentions,
    )


def check_not_empty(rows: Iterable[Sequence[int]]) -> None:
    """Raise DataError for a row without tokens."""
    if not all(map(len, rows)):
        raise DataError("a row has no tokens", hint="give at least one token of text after the prefix")


def check_fits_context(
    lm: FrozenLM,
    tokens: int,
    what: str = "prefix, text and new tokens do not fit in the model's context",
    hint: str = "shorten the text or ask for fewer new tokens",
    most: int | None = None,
) -> None:
    """Raise DataError with this message and hint if `tokens` exceed the model's context, or `most` if given."""
    most = lm.geometry.max_positions if most is None else most
    if tokens > most:
        raise DataError(what, expected=f"<= {most} tokens", got=tokens, hint=hint)


def additive(visible_GQK: Tensor, dtype: torch.dtype) -> Tensor:
    """[G, 1, Q, K]: zero where visible, the lowest finite number elsewhere.

    A float mask, since SDPA would convert a boolean one anew in every layer (a quarter of a CPU step).
    """
    zeros = torch.zeros(visible_GQK.shape, dtype=dtype, device=visible_GQK.device)
    return zeros.masked_fill_(~visible_GQK, torch.finfo(dtype).min)[:, None]
