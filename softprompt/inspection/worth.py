"""Section "worth of each token": how much of a soft prompt's effect each virtual token carries.

    v(S)           R of the prompt of the tokens S alone, 0 for none, 1 for all         (`effect`)
    leave-one-out  v(all) − v(all without i): hides tokens that another one can replace
    Shapley        mean over random orders of v(those before i, and i) − v(those before i)
                   Shapley 1953; sampled as by Castro, Gómez, Tejada 2009 (https://doi.org/10.1016/j.cor.2008.04.004)

v is a sum over rows, and the Shapley value of a sum is the sum of Shapley values. So each row has random orders of its
own: as many more orders as there are rows, for the same row tokens. In every order the values of a row add up to what
the row is of v(all), so sampling errors cancel in the sum. Deletion and insertion curves (Petsiuk et al. 2018,
https://arxiv.org/abs/1806.07421) judge the order that the values give beside random ones: where redundancy is high,
both look alike. They are measured at some sizes.

A token is left out as it would be if the shorter prompt were saved: later tokens move up.

Shapes: P virtual tokens, C points of a curve, R rows, M pairs of orders, O orders, S = P + 1 sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.editing.compose import select
from softprompt.inspection.effect import PromptEffect

_PASS_TOKENS = 8_000  # of prefixes and rows that are run in all, about
_MOST_ORDERS = 8  # for each row
_SIZES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the curves, in parts of all tokens
_FEW_TOKENS = 8  # virtual tokens whose curves are measured at every size


@dataclass(frozen=True)
class TokenWorth:
    """The worth of every virtual token, in shares of the whole effect.

    Attributes:
        leave_one_out: [P] what is lost without each.
        shapley: [P] mean contribution over random orders; they add up to 1.
        shapley_error: [P] standard error of each mean.
        orders: how many orders were drawn in all.
        sizes: [C] numbers of tokens that the curves are measured at, from 0 to P.
        deletion: [C] share left after so many of the most worthy tokens are left out.
        insertion: [C] share reached by so many of the most worthy tokens alone.
        random_deletion, random_insertion: the same in the random orders, their mean.
    """

    leave_one_out: tuple[float, ...]
    shapley: tuple[float, ...]
    shapley_error: tuple[float, ...]
    orders: int
    sizes: tuple[int, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]

    @property
    def half(self) -> tuple[float, float]:
        """Shares that half of the tokens reach: the most worthy ones, and random ones."""
        place = self.sizes.index(len(self.shapley) // 2)
        return self.insertion[place], self.random_insertion[place]


def token_worth(effect: PromptEffect, orders: int | None = None, seed: int = 0) -> TokenWorth:
    """Measure the worth of every virtual token.

    Orders are drawn in pairs, each with its reverse, whose errors partly cancel (Mitchell et al. 2022,
    https://arxiv.org/abs/2104.12199). With one order for each row the next row has the reverse.

    Args:
        effect: of few rows: each is run after some P · (orders + 1) prompts.
        orders: random orders for each row, 1 or an even number; by the length of prompt and rows if None.
        seed: of the orders.

    Raises UnsupportedModelError for keys and values of a model whose keys cannot be moved.
    """
    count, sizes = effect.prompt.n_tokens, _sizes(effect.prompt.n_tokens)
    rows = effect.by_row()
    orders = _affordable_orders(effect) if orders is None else orders
    drawn = _draw_orders(count, len(rows), orders, torch.Generator().manual_seed(seed))
    sampled = [_sample(row, part, own) for (part, row), own in zip(rows, drawn, strict=True)]
    gains_ROP = torch.stack([gains for gains, _ in sampled])
    random = torch.stack([reached for _, reached in sampled]).sum(0)[list(sizes)]
    shapley_P = gains_ROP.mean(1).sum(0)
    best = sorted(range(count), key=lambda i: -shapley_P[i].item())
    values = _Values(effect)
    without = [[j for j in range(count) if j != i] for i in range(count)]
    first, last = [best[:size] for size in sizes], [best[size:] for size in sizes]
    values.measure([*without, *first, *last])
    return TokenWorth(
        leave_one_out=tuple(1 - values[kept] for kept in without),
        shapley=tuple(shapley_P.tolist()),
        shapley_error=_errors(gains_ROP),
        orders=sum(map(len, drawn)),
        sizes=sizes,
        deletion=tuple(values[kept] for kept in last),
        insertion=tuple(values[kept] for kept in first),
        random_deletion=tuple(random[:, 1].tolist()),
        random_insertion=tuple(random[:, 0].tolist()),
    )


def _draw_orders(count: int, rows: int, orders: int, draw: torch.Generator) -> list[list[list[int]]]:
    """For each row its random orders of so many tokens."""
    alone = orders < 2 and rows > 1
    number = -(-rows // 2) if alone else rows * max(1, (orders + 1) // 2)
    half = [torch.randperm(count, generator=draw).tolist() for _ in range(number)]
    drawn = [order for one in half for order in (one, one[::-1])]
    each = 1 if alone else len(drawn) // rows
    return [drawn[row * each : (row + 1) * each] for row in range(rows)]


def _sample(row: PromptEffect, part: float, orders: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """In random orders for one row, whose effect is this part of the whole.

    Returns each order's gain by every token [O, P], and mean values after insertions, and after deletions [P + 1, 2].
    """
    values, count = _Values(row), row.prompt.n_tokens
    chains = [[order[:i] for i in range(count + 1)] for order in orders]
    values.measure([kept for chain in chains for kept in chain])
    reached_OS = torch.tensor([[values[kept] for kept in chain] for chain in chains]) * part
    gains_OP = torch.zeros(len(orders), count).scatter(1, torch.tensor(orders), reached_OS.diff(dim=1))
    mean_S = reached_OS.mean(0)
    return gains_OP, torch.stack([mean_S, mean_S.flip(0)], 1)


def _sizes(count: int) -> tuple[int, ...]:
    """Numbers of tokens that the curves are measured at."""
    if count <= _FEW_TOKENS:
        return tuple(range(count + 1))
    return tuple(sorted({0, 1, count // 2, count} | {round(part * count) for part in _SIZES}))


def _affordable_orders(effect: PromptEffect) -> int:
    """Orders for each row, as many as `_PASS_TOKENS` allow beside the other prompts: 1, 2, 4, 6 or 8."""
    rows, count = [len(example.ids) for example in effect.examples], effect.prompt.n_tokens
    follow = len(effect.formatted.prefix(effect.lm).follow)
    run = 0 if effect.prompt.begins_the_sequence else count
    others = count * (run + follow + sum(rows)) + 2 * len(_SIZES) * (run // 2 + follow + sum(rows))
    order = sum(count * (run // 2 + follow + row) for row in rows)
    orders = min(_MOST_ORDERS, max(1, (_PASS_TOKENS - others) // order))
    return orders if orders == 1 else orders - orders % 2


def _errors(gains_ROP: Tensor) -> tuple[float, ...]:
    """Standard errors of Σ over rows of the mean over orders; the two orders of a pair count as one draw.

    With one order or pair a row, the spread over rows stands for that over draws, which it exceeds: rows differ, too.
    """
    rows, orders = gains_ROP.shape[:2]
    if orders > 2:
        gains_RMP = gains_ROP.unflatten(1, (orders // 2, 2)).mean(2)
        return tuple((gains_RMP.var(1).sum(0) / (orders // 2)).sqrt().tolist())
    if rows > 1:
        return tuple((gains_ROP.mean(1).var(0) * rows).sqrt().tolist())
    return tuple((gains_ROP[0].std(0) / math.sqrt(2)).tolist())


class _Values:
    """v(S) of sets of virtual tokens, each measured once."""

    def __init__(self, effect: PromptEffect) -> None:
        self.effect = effect
        whole = frozenset(range(effect.prompt.n_tokens))
        self.known = {frozenset[int](): 0.0, whole: 1.0}

    def measure(self, sets: Sequence[Sequence[int]]) -> None:
        """Measure the sets that are not known yet, together."""
        new = list({frozenset(kept): None for kept in sets if frozenset(kept) not in self.known})
        prompts = [select(self.effect.prompt, sorted(kept), self.effect.lm) for kept in new]
        self.known |= zip(new, self.effect.recovered(prompts), strict=True)

    def __getitem__(self, kept: Sequence[int]) -> float:
        return self.known[frozenset(kept)]
