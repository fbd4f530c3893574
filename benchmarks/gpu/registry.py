"""The cases of the GPU benchmark: each is a function that a decorator enters, with its place in the order and its cost.

@case(rank=10, seconds=20, variants=[{"dtype": "float32"}, {"dtype": "bfloat16"}])
def laws(bench: Bench, dtype: str) -> dict[str, Any]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench


class Skip(Exception):  # noqa: N818
    """A case that does not apply here; its message is the reason."""


@dataclass(frozen=True)
class Case:
    """One entry of the report.

    Attributes:
        rank: the order of value; smaller ones run first.
        seconds: estimated on an H100 or H200.
    """

    name: str
    rank: float
    seconds: float
    run: Callable[[Bench], dict[str, Any]]


CASES: list[Case] = []


def case(
    *, rank: float, seconds: float, variants: Sequence[dict[str, Any]] = ({},)
) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Enter a function as cases, one for each variant; "rank" and "seconds" in a variant replace these."""

    def enter(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        for variant in variants:
            given = {name: value for name, value in variant.items() if name not in ("rank", "seconds")}
            label = " ".join([function.__name__.replace("_", " "), *filter(None, map(str, given.values()))])
            own_rank, own_seconds = variant.get("rank", rank), variant.get("seconds", seconds)
            CASES.append(Case(label, own_rank, own_seconds, partial(function, **given)))
        return function

    return enter


def in_order() -> list[Case]:
    """All cases, the most valuable first; equals in the order in which they were entered."""
    from benchmarks.gpu import cases_checks, cases_serving, cases_steps  # noqa: F401  # enter themselves

    return sorted(CASES, key=lambda one: one.rank)
