"""Section "worth of each token": how much of a soft prompt's effect each virtual token carries.

    v(S)           R of the prompt of the tokens S alone, 0 for none, 1 for all         (`effect`)
    leave-one-out  v(all) − v(all without i): hides tokens that another one can replace
    Shapley        mean over random orders of v(those before i, and i) − v(those before i)
                   Shapley 1953; sampled as by Castro, Gómez, Tejada 2009 (https://doi.org/10.1016/j.cor.2008.04.004)

Shapley values add up to v(all) − v(none) in every single order, so sampling errors cancel in their sum. Deletion and
insertion curves (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421) judge the order that the values give beside
random ones: where redundancy is high, both look alike.

A token is left out as it would be if the shorter prompt were saved: later tokens move up.

Shapes: P virtual tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softprompt.editing.compose import select
from softprompt.inspection.effect import PromptEffect

_RANDOM_ORDERS = 2  # that curves are compared with


@dataclass(frozen=True)
class TokenWorth:
    """The worth of every virtual token, in shares of the whole effect.

    Attributes:
        leave_one_out: [P] what is lost without each.
        shapley: [P] mean contribution over random orders; they add up to 1.
        shapley_error: [P] standard error of each mean; 0 where one order was drawn.
        orders: how many orders were drawn.
        deletion: [P + 1] share left after the most worthy tokens are left out one by one.
        insertion: [P + 1] share reached by the most worthy tokens alone.
        random_deletion, random_insertion: the same in random orders, their mean.
    """

    leave_one_out: tuple[float, ...]
    shapley: tuple[float, ...]
    shapley_error: tuple[float, ...]
    orders: int
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]


def token_worth(effect: PromptEffect, orders: int = 4, seed: int = 0) -> TokenWorth:
    """Measure the worth of every virtual token.

    Args:
        effect: of few rows: each is run after some P · (orders + 6) prompts.
        orders: random orders for the Shapley values.
        seed: of the orders.

    Raises UnsupportedModelError for keys and values of a model whose keys cannot be moved.
    """
    values = _Values(effect)
    everything = range(effect.prompt.n_tokens)
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(everything), generator=draw).tolist() for _ in range(max(orders, _RANDOM_ORDERS))]
    chains = [[order[:i] for i in range(len(order) + 1)] for order in drawn]
    without = [[j for j in everything if j != i] for i in everything]
    values.measure([*without, *(kept for chain in chains for kept in chain)])
    gains_OP = torch.zeros(orders, len(everything))
    for number, order in enumerate(drawn[:orders]):
        reached = [values[kept] for kept in chains[number]]
        for place, token in enumerate(order):
            gains_OP[number, token] = reached[place + 1] - reached[place]
    shapley_P = gains_OP.mean(0)
    best = sorted(everything, key=lambda i: -shapley_P[i].item())
    ranked = [best[:i] for i in range(len(best) + 1)], [best[i:] for i in range(len(best) + 1)]
    others = [[order[i:] for i in range(len(order) + 1)] for order in drawn[:_RANDOM_ORDERS]]
    values.measure([*ranked[0], *ranked[1], *(kept for chain in others for kept in chain)])
    error_P = gains_OP.std(0) / math.sqrt(orders) if orders > 1 else torch.zeros(len(everything))
    return TokenWorth(
        leave_one_out=tuple(1 - values[kept] for kept in without),
        shapley=tuple(shapley_P.tolist()),
        shapley_error=tuple(error_P.tolist()),
        orders=orders,
        deletion=tuple(values[kept] for kept in ranked[1]),
        insertion=tuple(values[kept] for kept in ranked[0]),
        random_deletion=_mean_curve([[values[kept] for kept in chain] for chain in others]),
        random_insertion=_mean_curve([[values[kept] for kept in chain] for chain in chains[:_RANDOM_ORDERS]]),
    )


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


def _mean_curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(torch.tensor(curves).mean(0).tolist())
