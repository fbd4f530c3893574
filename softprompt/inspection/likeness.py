"""Section "likeness": a soft prompt beside the other saved ones of its base model and form.

    s(P, Q)    cosine of the average virtual tokens, of keys and values the mean over layers    (`editing.similarity`)
    map        classical scaling (Torgerson 1952, https://doi.org/10.1007/BF02288916): the matrix s, which is one of
               inner products, centered on both sides, B = J s J with J = I − 1/N; the two eigenvectors of its largest
               eigenvalues λ, each times √λ. Distances in all N dimensions are √(2 − 2s); `shown` says how much of
               Σ λ the two hold.

Likeness is of vectors, not of behavior: prompts that do the same may be unlike, since many prompts do the same (prompt
waywardness, Khashabi et al. 2022, https://arxiv.org/abs/2112.08348). So a random prompt of equal norms stands in the
matrix, and the start of training if it is known.

Shapes: N prompts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from softprompt.editing.similarity import similarity
from softprompt.errors import PromptError
from softprompt.inspection.controls import random_like
from softprompt.prompts.base import SoftPrompt

RANDOM, START = "(random)", "(start)"  # parentheses: no saved prompt has such a name
_MOST = 24  # prompts in the matrix


@dataclass(frozen=True)
class Likeness:
    """Similarities of N soft prompts: the one that is inspected first, then the most similar ones, then the controls.

    Attributes:
        names: of the prompts; "(random)" and "(start)" are controls.
        average: [N, N] cosines of the average virtual tokens.
        per_token: [N, N] mean cosines of all pairs of virtual tokens.
        map: [N, 2] places whose distances approximate √(2 − 2·average).
        shown: share of the spread that the two axes of the map hold.
        left_out: how many others are not among the N: less similar ones, and those with other layers.
    """

    names: tuple[str, ...]
    average: tuple[tuple[float, ...], ...]
    per_token: tuple[tuple[float, ...], ...]
    map: tuple[tuple[float, float], ...]
    shown: float
    left_out: int


def likeness(
    prompt: SoftPrompt, others: Iterable[tuple[str, SoftPrompt]], name: str = "", start: SoftPrompt | None = None
) -> Likeness | None:
    """Compare a soft prompt with others of its base model and form; None if there is none.

    Args:
        others: names and prompts, taken one at a time; the 24 most similar ones with the same layers are kept.
        name: of the soft prompt itself.
        start: the prompt that training began from.
    """
    heap: list[tuple[float, int, str, SoftPrompt]] = []
    count = 0
    for other_name, other in others:
        count += 1
        try:
            entry = (similarity(prompt, other).average, -count, other_name, other)
        except PromptError:  # of other layers
            continue
        (heapq.heappush if len(heap) < _MOST else heapq.heappushpop)(heap, entry)
    if not heap:
        return None
    kept = [(entry[2], entry[3]) for entry in sorted(heap, reverse=True)]
    controls = [(RANDOM, random_like(prompt)), *([(START, start)] if start is not None else [])]
    everything = [(name or "this prompt", prompt), *kept, *controls]
    pairs = [[similarity(prompt, other) for _, other in everything] for _, prompt in everything]
    average = tuple(tuple(pair.average for pair in row) for row in pairs)
    places, shown = scaling_map(average)
    return Likeness(
        names=tuple(label for label, _ in everything),
        average=average,
        per_token=tuple(tuple(pair.per_token for pair in row) for row in pairs),
        map=places,
        shown=shown,
        left_out=count - len(kept),
    )


def scaling_map(similarities: Sequence[Sequence[float]]) -> tuple[tuple[tuple[float, float], ...], float]:
    """Places [N, 2] by classical scaling of a matrix of cosines, and the share of the spread that they hold.

    Signs are fixed so that the first prompt's coordinates are not negative.
    """
    cosines_NN = torch.tensor(similarities, dtype=torch.float64)
    cosines_NN = (cosines_NN + cosines_NN.T) / 2
    centered_NN = cosines_NN - cosines_NN.mean(0) - cosines_NN.mean(1, keepdim=True) + cosines_NN.mean()
    values_N, vectors_NN = torch.linalg.eigh(centered_NN)
    largest = values_N.flip(0)[:2].clamp_min(0.0)
    places_N2 = vectors_NN.flip(1)[:, :2] * largest.sqrt()
    places_N2 = places_N2 * torch.where(places_N2[0] < 0, -1.0, 1.0)
    shown = (largest.sum() / values_N.clamp_min(0.0).sum().clamp_min(1e-12)).item()
    return tuple((x, y) for x, y in places_N2.tolist()), shown
