"""Pack rows of tokens into bins of equal length, so that little is padded and attention stays small.

A bin holds whole rows that share one prefix; tokens attend within their own row. One bin per row is plain padding, one
bin for all rows is full packing: the capacity between the two is chosen by estimated cost. A row may be a tree, for
texts that share a beginning (one question, many candidate answers). Knows nothing of models.

Shapes: G bins, L tokens per bin, T tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

CAPACITIES = (64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
PAIR_COST = 1.3  # a query-key pair costs this much more time per FLOP than a matrix product (fitted on CPU steps)


@dataclass(frozen=True)
class Row:
    """Token ids that follow prefix number `prefix`.

    `parents` makes the row a tree: the index in the row of the token that each one follows, -1 for the prefix. A
    parent comes before its children. None is the plain chain.
    """

    ids: Sequence[int]
    prefix: int = 0
    parents: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Bins:
    """Rows laid out in bins.

    Attributes:
        ids: [G, L] token ids, 0 for padding.
        depth: [G, L] place of a token in its row (its position after the prefix).
        prefix: [G] the prefix that all rows of a bin share.
        visible: [G, L, L] True where query q (second axis) may attend to key k (third).
        flat: [T] where the tokens of the rows, in the order given, stand in the flattened [G·L].
    """

    ids: Tensor
    depth: Tensor
    prefix: Tensor
    visible: Tensor
    flat: Tensor

    def to(self, device: torch.device) -> Bins:
        """The same on this device."""
        return Bins(*(part.to(device) for part in self.parts()))

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in the order above."""
        return self.ids, self.depth, self.prefix, self.visible, self.flat

    def padded(self, count: int, length: int) -> Bins:
        """The same among `count` bins of `length` tokens; padding attends to itself, and no token attends to it."""
        bins, tokens = self.ids.shape
        more, longer = count - bins, length - tokens
        visible = pad(self.visible, (0, longer, 0, longer, 0, more)) | torch.eye(length, dtype=torch.bool)
        return Bins(
            pad(self.ids, (0, longer, 0, more)),
            pad(self.depth, (0, longer, 0, more)),
            pad(self.prefix, (0, more)),
            visible,
            self.flat // tokens * length + self.flat % tokens,
        )


def pack(rows: Sequence[Row], capacity: int) -> Bins:
    """Lay the rows out in bins of about `capacity` tokens (never less than the longest row)."""
    places, fills = _assign(rows, capacity)
    length, count = max(fills), len(fills)
    ids = np.zeros((count, length), dtype=np.int64)
    depth = np.zeros((count, length), dtype=np.int64)
    prefix = np.zeros(count, dtype=np.int64)
    visible = np.zeros((count, length, length), dtype=bool)
    visible[:, np.arange(length), np.arange(length)] = True  # padding attends to itself: no empty softmax
    flat = []
    for row, (g, start) in zip(rows, places, strict=True):
        end = start + len(row.ids)
        ids[g, start:end] = row.ids
        prefix[g] = row.prefix
        if row.parents is None:
            depth[g, start:end] = np.arange(len(row.ids))
            visible[g, start:end, start:end] = np.tri(len(row.ids), dtype=bool)
        else:
            visible[g, start:end, start:end], depth[g, start:end] = _ancestors(row.parents)
        flat.append(np.arange(g * length + start, g * length + end))
    arrays = (ids, depth, prefix, visible, np.concatenate(flat))
    return Bins(*(torch.from_numpy(array) for array in arrays))


def best_capacity(rows: Sequence[Row], prefix_length: int, token_cost: float, pair_cost: float) -> int:
    """The capacity with the least estimated time.

    Args:
        prefix_length: keys that every token attends to besides its bin.
        token_cost: FLOPs of the matrix products for one token.
        pair_cost: FLOPs of attention for one query-key pair.
    """

    def cost(capacity: int) -> float:
        _, fills = _assign(rows, capacity)
        tokens = len(fills) * max(fills)
        return tokens * token_cost + tokens * (prefix_length + max(fills)) * pair_cost * PAIR_COST

    longest = max(len(row.ids) for row in rows)
    return min([longest, *(c for c in CAPACITIES if c > longest)], key=cost)


def by_tokens(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Row numbers, short rows first, in groups of at most `limit` tokens (at least one row each)."""
    group: list[int] = []
    filled = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and filled + lengths[i] > limit:
            yield group
            group, filled = [], 0
        group.append(i)
        filled += lengths[i]
    if group:
        yield group


def _assign(rows: Sequence[Row], capacity: int) -> tuple[list[tuple[int, int]], list[int]]:
    """(bin, start) of each row, and the tokens in each bin: longest row first into the emptiest bin of its prefix."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.prefix, []).append(i)
    places: list[tuple[int, int]] = [(0, 0)] * len(rows)
    fills: list[int] = []
    for members in groups.values():
        lengths = [len(rows[i].ids) for i in members]
        first = len(fills)
        fills += [0] * -(-sum(lengths) // max(capacity, max(lengths)))
        for i in sorted(members, key=lambda i: -len(rows[i].ids)):
            g = min(range(first, len(fills)), key=fills.__getitem__)
            places[i] = (g, fills[g])
            fills[g] += len(rows[i].ids)
    return places, fills


def _ancestors(parents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """[n, n] True where k is q or an ancestor of q, and [n] the depth of each token."""
    n = len(parents)
    seen, depth = np.eye(n, dtype=bool), np.zeros(n, dtype=np.int64)
    for q, parent in enumerate(parents):
        if parent >= 0:
            seen[q] |= seen[parent]
            depth[q] = depth[parent] + 1
    return seen, depth
