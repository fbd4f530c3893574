"""Rows after a soft prompt that chosen layers, or chosen heads of them, do not see.

What is below the first such layer does not depend on the choice. It is computed once, for all choices, and so are the
virtual tokens' own keys and values.

Shapes: G bins, L tokens per bin, N counted tokens, H width, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, run_prefixes
from softprompt.prefix.layer_start import LayerStart, recorded_layers, started_at_layer
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Bins, Row, by_tokens
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify

_TREE_TOKENS = 256  # of rows that share one copy of the tokens between the virtual tokens and them
_PASS_TOKENS = 2048  # in one pass, about


@dataclass(frozen=True)
class Ablation:
    """Where the virtual tokens are hidden.

    Attributes:
        layers: their numbers.
        heads: only from these query heads of theirs; from all if None.
    """

    layers: Sequence[int]
    heads: Sequence[int] | None = None


@final
class AblatedRows:
    """Rows after one prefix of a causal model, ready to be run without chosen layers or heads.

    What comes after the virtual tokens does not see them there; the virtual tokens see each other in every layer.

    Args:
        prefix: with a soft prompt.
        rows: token ids.
        counted: for each row which of its tokens' states are wanted.

    Raises UnsupportedModelError for a model that is not exact with a prefix, has no list of layers, or whose attention
    cannot be switched.
    """

    @torch.no_grad()
    def __init__(
        self, lm: FrozenLM, prefix: Prefix, rows: Sequence[Sequence[int]], counted: Sequence[Sequence[bool]]
    ) -> None:
        verify(lm)
        if not PrefixRuntime.of(lm).can_switch_attention:
            raise UnsupportedModelError("this model's attention cannot be told what not to see", where=lm.name)
        self.lm = lm
        virtual = prefix.prompt.n_tokens if prefix.prompt is not None else 0
        self.slots = slice(len(prefix.lead), len(prefix.lead) + virtual)
        self.prefix_kv = run_prefixes(lm, [replace(prefix, follow=())])
        trees, self.where_N = _trees(prefix.follow, rows, counted)
        self.bins = pack_rows(lm, self.prefix_kv, trees, 1)
        self.where_N = self.bins.flat[self.where_N]
        self.starts = not lm.extension(LayerStart).reason
        with recorded_layers(lm) as self.below:
            run_packed(lm, self.prefix_kv, self.bins)

    @torch.no_grad()
    def states(self, ablations: Sequence[Ablation]) -> list[Tensor]:
        """Of each ablation the final hidden states [N, H] of the counted tokens, in the order of the rows."""
        first = [min(ablation.layers) if self.starts else 0 for ablation in ablations]
        found: dict[int, Tensor] = {}
        most = max(1, _PASS_TOKENS // self.bins.ids.numel())
        for layer in sorted(set(first)):
            here = [i for i, start in enumerate(first) if start == layer]
            for begin in range(0, len(here), most):
                part = here[begin : begin + most]
                states_MNH = self._from_layer(layer, [ablations[i] for i in part])
                found |= zip(part, states_MNH, strict=True)
        return [found[i] for i in range(len(ablations))]

    def _from_layer(self, layer: int, ablations: Sequence[Ablation]) -> Tensor:
        """[M, N, H] of M ablations of layers from this one on."""
        count, bins = len(ablations), len(self.bins.ids)
        repeated = Bins(*(part.repeat(count, *[1] * (part.ndim - 1)) for part in self.bins.parts()))
        runtime, below = PrefixRuntime.of(self.lm), self.below[max(0, layer - 1)]
        switch = runtime.switch

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
        ) -> object:
            number = getattr(module, "layer_idx", None)
            hidden = [(i, ablation) for i, ablation in enumerate(ablations) if number in ablation.layers]
            if hidden and mask is not None:
                some_heads = any(ablation.heads is not None for _, ablation in hidden)
                mask = mask.expand(-1, query.shape[1] if some_heads else -1, -1, -1).clone()
                for i, ablation in hidden:
                    heads = slice(None) if ablation.heads is None else list(ablation.heads)
                    mask[i * bins : (i + 1) * bins, heads, :, self.slots] = torch.finfo(mask.dtype).min
            return switch.plain_function(module)(module, query, key, value, mask, **options)

        with runtime.use_attention(attend), started_at_layer(self.lm, layer, below, count):
            states_GLH = run_packed(self.lm, self.prefix_kv, repeated)
        return states_GLH.unflatten(0, (count, bins)).flatten(1, 2)[:, self.where_N.to(states_GLH.device)]


def _trees(
    follow: Sequence[int], rows: Sequence[Sequence[int]], counted: Sequence[Sequence[bool]]
) -> tuple[list[Row], Tensor]:
    """The rows as branches that follow one copy of `follow`, and the places of the counted tokens among all tokens."""
    groups = [sorted(group) for group in by_tokens([len(row) for row in rows], _TREE_TOKENS)]
    trees, places = list[Row](), dict[int, list[int]]()
    offset = 0
    for group in groups:
        ids, parents = list(follow), list(range(-1, len(follow) - 1))
        for i in group:
            places[i] = [offset + len(ids) + t for t, on in enumerate(counted[i]) if on]
            parents += [len(follow) - 1, *range(len(ids), len(ids) + len(rows[i]) - 1)]
            ids += rows[i]
        trees.append(Row(ids, parents=parents))
        offset += len(ids)
    return trees, torch.tensor([place for i in range(len(rows)) for place in places[i]], dtype=torch.long)
