"""Decoding in the model's own cache: rows that grow by one token a step, each after its own prefix.

Rows of one prefix and one length begin together, so nothing is padded. Then all rows share a cache in which padding
stands before the keys of shorter ones; a model for which that is not exact keeps a cache for each length. One whose
cache is not exact step by step gets its whole text again at every step.

Shapes: B rows, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from transformers import Cache

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import check_fits_context, check_not_empty
from softprompt.prefix.model_cache import for_decoding, joined_caches, mapped, new_cache, own_copy
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.state import StatePrefixes, run_group


@dataclass(eq=False)
class _Group:
    """Rows that take their steps together: of equal length after one prefix, or any rows in one cache.

    Attributes:
        members: [b] their numbers in the session.
        cache: holds prefix and rows; None if the whole text is run again at every step.
        mask: [b, S] whether a key in the cache is the row's own; None if all are.
        ids: [b, L] the rows so far, where there is no cache.
    """

    prefix: int
    members: Tensor
    cache: Cache | None
    mask: Tensor | None = None
    ids: Tensor = field(default_factory=lambda: torch.empty(0))


@final
class StateDecodingSession:
    """B rows in the middle of decoding. Without gradient.

    Args:
        rows: token ids of each row, at least one each.
        prefix_ids: the number of each row's prefix.
        room: the most steps that will be taken.

    Attributes:
        hidden: [B, H] final hidden state of each row's last token.

    Raises DataError for an empty row, or no room for it in the model's context.
    """

    @torch.no_grad()
    def __init__(
        self, lm: FrozenLM, prefixes: StatePrefixes, rows: Sequence[Sequence[int]], prefix_ids: Sequence[int], room: int
    ) -> None:
        check_not_empty(rows)
        check_fits_context(
            lm, max(prefixes.lengths[i] + len(row) for row, i in zip(rows, prefix_ids, strict=True)) + room
        )
        self.lm, self._prefixes = lm, prefixes
        self.hidden = torch.empty(len(rows), lm.geometry.hidden, device=lm.device, dtype=lm.dtype)
        together: dict[tuple[int, int], list[int]] = {}
        for number, (row, prefix) in enumerate(zip(rows, prefix_ids, strict=True)):
            together.setdefault((prefix, len(row)), []).append(number)
        self._groups = [
            self._begin(prefix, [rows[i] for i in members], members) for (prefix, _), members in together.items()
        ]
        if PrefixRuntime.of(lm).merges and len(self._groups) > 1:
            sizes = [prefixes.lengths[prefix] + length for prefix, length in together]
            self._groups = [_merged(self._groups, sizes)]

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each row; returns the new `hidden` [B, H]."""
        self.hidden = self.hidden.clone()
        for group in self._groups:
            ids_B1 = ids_B[group.members][:, None]
            if group.cache is not None:
                states = self._run(group, ids_B1)
            else:
                group.ids = torch.cat([group.ids, ids_B1], dim=1)
                states = run_group(self.lm, self._prefixes, group.ids.tolist(), group.prefix)
            self.hidden[group.members] = states[:, -1]
        return self.hidden

    def _run(self, group: _Group, ids_B1: Tensor) -> Tensor:
        """Final hidden states [b, 1, H] of one token more for each row of a group with a cache."""
        backbone = self.lm.backbone
        if group.mask is None or not any(self.lm.geometry.layers):
            return backbone.run(ids_BL=ids_B1, cache=group.cache)
        group.mask = torch.cat([group.mask, group.mask.new_ones(len(ids_B1), 1)], dim=1)
        positions_B1 = group.mask.sum(1, keepdim=True) - 1 if backbone.takes_positions else None
        return backbone.run(ids_BL=ids_B1, cache=group.cache, mask=group.mask, positions_BL=positions_B1)

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only, so that finished rows cost nothing."""
        self.hidden = self.hidden[index]
        self._groups = [group for group in (_kept(group, index) for group in self._groups) if len(group.members)]

    def _begin(self, prefix: int, rows: Sequence[Sequence[int]], members: Sequence[int]) -> _Group:
        """Run the rows of a group, and keep what its steps need."""
        numbers = torch.tensor(members, device=self.lm.device)
        cache = self._cache(prefix, len(rows))
        states = run_group(self.lm, self._prefixes, rows, prefix, cache)
        self.hidden[numbers] = states[:, -1]
        if cache is None:
            ids_BL = torch.tensor([list(row) for row in rows], device=self.lm.device)
            return _Group(prefix, numbers, None, ids=ids_BL)
        return _Group(prefix, numbers, for_decoding(cache))

    def _cache(self, prefix: int, rows: int) -> Cache | None:
        """A cache for rows that follow a prefix, which holds the prefix if that was run."""
        if not PrefixRuntime.of(self.lm).steps:
            return None
        state = self._prefixes.states[prefix] if self._prefixes.states else None
        return new_cache(self.lm.backbone) if state is None else own_copy(state, rows)


def _merged(groups: Sequence[_Group], sizes: Sequence[int]) -> _Group:
    """All rows in one cache; `sizes` are the tokens of the rows of each group, with their prefix."""
    cache = joined_caches([group.cache for group in groups if group.cache is not None])
    members = torch.cat([group.members for group in groups])
    places_S = torch.arange(max(sizes), device=members.device)
    starts_B = torch.cat(
        [torch.full_like(group.members, max(sizes) - n) for group, n in zip(groups, sizes, strict=True)]
    )
    return _Group(groups[0].prefix, members, cache, (places_S >= starts_B[:, None]).long())


def _kept(group: _Group, index: Tensor) -> _Group:
    """The rows of a group that are in `index`, with their new numbers."""
    found_BN = index[:, None] == group.members
    numbers, places = found_BN.nonzero(as_tuple=True)
    cache = None if group.cache is None else mapped(group.cache, lambda tensor: tensor[places.to(tensor.device)])
    mask = None if group.mask is None else group.mask[places]
    return _Group(group.prefix, numbers, cache, mask, group.ids[places] if group.cache is None else group.ids)
