"""Measures the similarity of soft prompts, to choose a saved one as the start for a new task.

Vu et al.: SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer. ACL 2022. https://arxiv.org/abs/2110.07904
takes a prompt that was trained briefly on a task as the embedding of the task, and starts from the nearest prompts of
other tasks. Its two measures, for embedding prompts e [P, H]:

    average tokens     cos(mean_i e1_i, mean_j e2_j)
    per token          mean_ij cos(e1_i, e2_j)

For KV prompts the same on values: in each layer a token's vector is its values of all heads, and the measure is the
mean over the layers. Keys are left out, since equal tokens at different positions have different keys. The paper has
embedding prompts only; the measure for KV prompts is this project's.

Shapes: P virtual tokens, H embedding width, K key/value heads, D value size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from softprompt.errors import PromptError
from softprompt.prompts.base import SoftPrompt


@dataclass(frozen=True)
class Similarity:
    """Both measures, each in -1…1."""

    average: float
    per_token: float


def similarity(one: SoftPrompt, other: SoftPrompt) -> Similarity:
    """Both measures for two prompts of the same base model; lengths may differ.

    Raises PromptError for different forms, layers or widths.
    """
    mine, theirs = _vectors(one), _vectors(other)
    if one.form != other.form or [x.shape[1] for x in mine] != [x.shape[1] for x in theirs]:
        raise PromptError(
            "soft prompts of different forms or base models cannot be compared",
            got=f"{one.form} and {other.form}",
            hint="train both with the same form on the same base model",
        )
    pairs = list(zip(mine, theirs, strict=True))

    def mean(measure: Callable[[Tensor, Tensor], Tensor]) -> float:
        return sum(measure(a, b).item() for a, b in pairs) / len(pairs)

    return Similarity(
        mean(lambda a, b: cosine_similarity(a.mean(0), b.mean(0), dim=0)),
        mean(lambda a, b: (normalize(a, dim=1) @ normalize(b, dim=1).T).mean()),
    )


def rank_by_similarity(prompt: SoftPrompt, trials: Mapping[str, SoftPrompt]) -> list[tuple[str, Similarity]]:
    """Names and similarities sorted by `average`, most similar first; ties keep their order."""
    ranked = [(name, similarity(prompt, other)) for name, other in trials.items()]
    return sorted(ranked, key=lambda pair: -pair[1].average)


def _vectors(prompt: SoftPrompt) -> list[Tensor]:
    """[P, width] of every layer that is compared."""
    return [vectors.detach().float().cpu() for vectors in prompt.similarity_vectors()]
