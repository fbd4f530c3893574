"""How much of a text a soft prompt holds: teacher (full text), student and no text at all, on held-out inputs.

Shapes: N answer tokens, H width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from softprompt.data.spans import prompt_ids
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.teacher import Teacher
from softprompt.evaluation.custom_metrics import Metric, scores_of
from softprompt.evaluation.metrics import generation_scores, token_f1
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, no_prompt
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.device import wait_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import CHUNK, cross_entropies, divergences
from softprompt.objectives.next_token import supervised
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes

TOKENS = 4096  # text tokens run at once
TIMES = 3  # a prefill is timed


@dataclass(frozen=True)
class FidelityScores:
    """One way to answer.

    Attributes:
        divergence: KL(teacher ‖ it) of the next token, nats per token of the teacher's answers.
        agreement: share of these tokens at which its likeliest next token is the teacher's.
        log_likelihood: of the teacher's answers, nats per token.
        scores: exact match, F1 and so on of its greedy answers, where the rows have answers; the user's metrics.
        prefix_tokens: in front of every row.
        prefill_seconds: to compute them once, the median of three.
        kv_bytes: that their keys and values take in a request's cache, in the model's dtype.
    """

    divergence: float
    agreement: float
    log_likelihood: float
    scores: dict[str, float]
    prefix_tokens: int
    prefill_seconds: float
    kv_bytes: int


@dataclass(frozen=True)
class Fidelity:
    """Soft prompts beside the text that they stand for, on inputs that were not trained on.

    Attributes:
        soft: by name.
        tokens: of the whole text.
        rows: held-out inputs.
    """

    no_text: FidelityScores
    full_text: FidelityScores
    soft: dict[str, FidelityScores]
    tokens: int
    rows: int

    def recovered(self, name: str) -> float:
        """Share of the divergence between no text and full text that is gone."""
        return 1 - self.soft[name].divergence / self.no_text.divergence if self.no_text.divergence else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        soft = {name: asdict(one) | {"recovered": self.recovered(name)} for name, one in self.soft.items()}
        both = {"no_text": asdict(self.no_text), "full_text": asdict(self.full_text)}
        return {"rows": self.rows, "text_tokens": self.tokens, **both, "soft": soft}


@torch.no_grad()
def fidelity(
    teacher: Teacher,
    splits: Sequence[DistillationExample],
    students: Mapping[str, FormattedPrompt],
    tokens: int,
    own: Mapping[str, Metric] | None = None,
) -> Fidelity:
    """Measure all on the same held-out exercises.

    Args:
        students: soft prompts in their frames.
        tokens: of the whole text.
        own: further metrics of the greedy answers.
    """
    lm = teacher.lm
    chunks = {example.chunk: teacher.formatted(example.chunk) for example in splits}
    full = [chunks[example.chunk] for example in splits]
    alone = no_prompt(lm, teacher.template)
    taught, _ = _states(lm, full, splits)

    def measured(formatted_prompts: Sequence[FormattedPrompt]) -> FidelityScores:
        scores = _scores(lm, formatted_prompts, splits, own or {})
        return _measured(lm, formatted_prompts, splits, taught, scores)

    soft = {name: measured([one] * len(splits)) for name, one in students.items()}
    return Fidelity(measured([alone] * len(splits)), measured(full), soft, tokens, len(splits))


def _measured(
    lm: FrozenLM,
    formatted_prompts: Sequence[FormattedPrompt],
    splits: Sequence[DistillationExample],
    taught_NH: Tensor,
    scores: dict[str, float],
) -> FidelityScores:
    """One way to answer, each exercise with its own subject, against the teacher's states and answers."""
    states_NH, targets_N = _states(lm, formatted_prompts, splits)
    pairs = zip(states_NH.split(CHUNK), taught_NH.split(CHUNK), strict=True)
    agreed = [lm.logits(own).argmax(-1) == lm.logits(taught).argmax(-1) for own, taught in pairs]
    distinct = {id(formatted): formatted for formatted in formatted_prompts}
    prefix = max((formatted.prefix(lm) for formatted in distinct.values()), key=_length)
    return FidelityScores(
        divergence=divergences(states_NH, taught_NH, lm.logits).mean().item(),
        agreement=torch.cat(agreed).float().mean().item(),
        log_likelihood=-cross_entropies(states_NH, targets_N, lm.logits).mean().item(),
        scores=scores,
        prefix_tokens=_length(prefix),
        prefill_seconds=_seconds(lm, lambda: prepare_prefixes(lm, [prefix])) if _length(prefix) else 0.0,
        kv_bytes=_length(prefix) * lm.geometry.kv_bytes_per_token(lm.dtype.itemsize),
    )


def _states(
    lm: FrozenLM, formatted_prompts: Sequence[FormattedPrompt], splits: Sequence[DistillationExample]
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] before each answer token behind each exercise's own subject, and the tokens [N]."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for prefixes, formatted, own in _by_subject(formatted_prompts, lm):
        examples = {i: splits[i].example(formatted.template, lm.tokenizer) for i in own}
        for part in by_tokens([len(examples[i].ids) for i in own], TOKENS):
            numbers = [own[j] for j in part]
            states, targets = supervised(lm, prefixes, [examples[i] for i in numbers], None)
            sizes = [len(splits[i].answer) for i in numbers]
            found |= dict(zip(numbers, zip(states.split(sizes), targets.split(sizes), strict=True), strict=True))
    parts = [found[i] for i in range(len(splits))]
    return torch.cat([states for states, _ in parts]), torch.cat([targets for _, targets in parts])


def _scores(
    lm: FrozenLM,
    formatted_prompts: Sequence[FormattedPrompt],
    splits: Sequence[DistillationExample],
    further: Mapping[str, Metric],
) -> dict[str, float]:
    """Scores of greedy answers: those that need references where all rows have some, and the user's own."""
    references = [example.record.references for example in splits]
    compared = all(references)
    if not compared and not further:
        return {}
    right = [len(lm.encode(text)) for texts in references for text in texts]
    sampling = Sampling(2 * max(right or [len(example.answer) for example in splits]) + 8)
    answers = [""] * len(splits)
    for prefixes, formatted, own in _by_subject(formatted_prompts, lm):
        rows, ends = (
            [prompt_ids(splits[i].record, formatted.template, lm.tokenizer) for i in own],
            end_ids(lm, formatted.template),
        )
        found = decode_batch(lm, prefixes, rows, [0] * len(own), sampling, end_ids=[ends] * len(own))
        for i, answer in zip(own, found, strict=True):
            answers[i] = answer.text
    usual = generation_scores(answers, references) | {"f1": token_f1(answers, references)} if compared else {}
    scores = usual | scores_of(further, answers, references)
    return {name: score.value for name, score in scores.items()}


def _by_subject(
    formatted_prompts: Sequence[FormattedPrompt], lm: FrozenLM
) -> Iterator[tuple[PrefixKV, FormattedPrompt, list[int]]]:
    """Each subject's prefix, run once, with the numbers of its exercises."""
    groups: dict[int, list[int]] = {}
    for i, formatted in enumerate(formatted_prompts):
        groups.setdefault(id(formatted), []).append(i)
    for own in groups.values():
        formatted = formatted_prompts[own[0]]
        yield prepare_prefixes(lm, [formatted.prefix(lm)]), formatted, own


def _length(prefix: Prefix) -> int:
    return len(prefix.lead) + (prefix.prompt.n_tokens if prefix.prompt else 0) + len(prefix.follow)


def _seconds(lm: FrozenLM, call: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        call()
        wait_for(lm.device)
        times.append(time.perf_counter() - begin)
    return median(times)
