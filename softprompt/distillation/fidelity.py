"""Fidelity of a soft prompt to its text: teacher (full text), student and no text at all on held-out queries.

Shapes: N answer tokens, H width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

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

_SAME_ANSWER_ROWS = 16  # queries whose greedy answers are compared
_BATCH_TOKENS = 4096  # tokens of rows in one forward pass
_PREFILL_REPEATS = 3  # timed runs, of which the median counts


@dataclass(frozen=True)
class FidelityScores:
    """Scores of one prompt (a soft prompt, the full text, or none).

    Attributes:
        divergence: KL(teacher ‖ student) of the next token, nats per token of the teacher's answers.
        agreement: share of these tokens at which its likeliest next token is the teacher's.
        log_likelihood: of the teacher's answers, nats per token.
        scores: exact match, F1 and so on of its greedy answers, where the rows have references; custom metrics.
        prefix_tokens: tokens before every row.
        prefill_seconds: time to compute their keys and values once, the median of three runs.
        kv_bytes: size of their keys and values in a request's cache, in the model's dtype.
        same_answers: F1 of the words of its greedy answers and of those after the full text, of at most 16 queries.
    """

    divergence: float
    agreement: float
    log_likelihood: float
    scores: dict[str, float]
    prefix_tokens: int
    prefill_seconds: float
    kv_bytes: int
    same_answers: float


@dataclass(frozen=True)
class Fidelity:
    """Soft prompts compared with their text on queries that they were not trained on.

    Attributes:
        soft: scores of soft prompts, by name.
        tokens: length of the whole text.
        rows: number of held-out queries.
    """

    no_text: FidelityScores
    full_text: FidelityScores
    soft: dict[str, FidelityScores]
    tokens: int
    rows: int

    def recovered(self, name: str) -> float:
        """The share of the divergence between no text and full text that this soft prompt removes."""
        return 1 - self.soft[name].divergence / self.no_text.divergence if self.no_text.divergence else 0.0

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        soft = {name: asdict(scores) | {"recovered": self.recovered(name)} for name, scores in self.soft.items()}
        baselines = {"no_text": asdict(self.no_text), "full_text": asdict(self.full_text)}
        return {"rows": self.rows, "text_tokens": self.tokens, **baselines, "soft": soft}


@torch.no_grad()
def fidelity(
    teacher: Teacher,
    examples: Sequence[DistillationExample],
    students: Mapping[str, FormattedPrompt | Sequence[FormattedPrompt]],
    tokens: int,
    extra_metrics: Mapping[str, Metric] | None = None,
) -> Fidelity:
    """Score teacher, students and no text on the same held-out examples.

    Args:
        students: soft prompts by name; a sequence has one prompt for each example, such as a retrieved passage.
        tokens: length of the whole text.
        extra_metrics: custom metrics of the greedy answers.
    """
    lm = teacher.lm
    by_chunk = {example.chunk: teacher.formatted(example.chunk) for example in examples}
    full_text = [by_chunk[example.chunk] for example in examples]
    baseline = no_prompt(lm, teacher.template)
    teacher_NH, _ = _answer_states(lm, full_text, examples)
    first = examples[:_SAME_ANSWER_ROWS]
    most = max(len(example.answer) for example in first)
    wanted = _greedy_answers(lm, full_text, first, most)

    def scored(prompts: Sequence[FormattedPrompt]) -> FidelityScores:
        scores = _answer_scores(lm, prompts, examples, extra_metrics or {})
        answers = wanted if prompts is full_text else _greedy_answers(lm, prompts, first, most)
        same_answers = token_f1(answers, [[answer] for answer in wanted]).value
        return _fidelity_scores(lm, prompts, examples, teacher_NH, scores, same_answers)

    def for_each(student: FormattedPrompt | Sequence[FormattedPrompt]) -> Sequence[FormattedPrompt]:
        return [student] * len(examples) if isinstance(student, FormattedPrompt) else student

    soft = {name: scored(for_each(student)) for name, student in students.items()}
    return Fidelity(scored([baseline] * len(examples)), scored(full_text), soft, tokens, len(examples))


def _fidelity_scores(
    lm: FrozenLM,
    prompts: Sequence[FormattedPrompt],
    examples: Sequence[DistillationExample],
    teacher_NH: Tensor,
    scores: dict[str, float],
    same_answers: float,
) -> FidelityScores:
    """Compare hidden states with the teacher's, given the prompt of each example."""
    states_NH, targets_N = _answer_states(lm, prompts, examples)
    pairs = zip(states_NH.split(CHUNK), teacher_NH.split(CHUNK), strict=True)
    agreed = [lm.logits(student).argmax(-1) == lm.logits(teacher).argmax(-1) for student, teacher in pairs]
    distinct = {id(prompt): prompt for prompt in prompts}
    prefix = max((prompt.prefix(lm) for prompt in distinct.values()), key=_length)
    return FidelityScores(
        divergence=divergences(states_NH, teacher_NH, lm.logits).mean().item(),
        agreement=torch.cat(agreed).float().mean().item(),
        log_likelihood=-cross_entropies(states_NH, targets_N, lm.logits).mean().item(),
        scores=scores,
        prefix_tokens=_length(prefix),
        prefill_seconds=_seconds(lm, lambda: prepare_prefixes(lm, [prefix])) if _length(prefix) else 0.0,
        kv_bytes=_length(prefix) * lm.geometry.kv_bytes_per_token(lm.dtype.itemsize),
        same_answers=same_answers,
    )


def _answer_states(
    lm: FrozenLM, prompts: Sequence[FormattedPrompt], examples: Sequence[DistillationExample]
) -> tuple[Tensor, Tensor]:
    """The hidden states [N, H] before each answer token, each example after its prompt, and the tokens [N]."""
    outputs: dict[int, tuple[Tensor, Tensor]] = {}
    for prefixes, prompt, group in _by_prompt(prompts, lm):
        rows = {i: examples[i].example(prompt.template, lm.tokenizer) for i in group}
        for batch in by_tokens([len(rows[i].ids) for i in group], _BATCH_TOKENS):
            numbers = [group[j] for j in batch]
            states, targets = supervised(lm, prefixes, [rows[i] for i in numbers], None)
            sizes = [len(examples[i].answer) for i in numbers]
            outputs |= dict(zip(numbers, zip(states.split(sizes), targets.split(sizes), strict=True), strict=True))
    parts = [outputs[i] for i in range(len(examples))]
    return torch.cat([states for states, _ in parts]), torch.cat([targets for _, targets in parts])


def _answer_scores(
    lm: FrozenLM,
    prompts: Sequence[FormattedPrompt],
    examples: Sequence[DistillationExample],
    extra_metrics: Mapping[str, Metric],
) -> dict[str, float]:
    """Score greedy answers by custom metrics and, if all rows have references, by the standard ones."""
    references = [example.record.references for example in examples]
    has_references = all(references)
    if not has_references and not extra_metrics:
        return {}
    reference_lengths = [len(lm.encode(text)) for texts in references for text in texts]
    max_length = max(reference_lengths or [len(example.answer) for example in examples])
    answers = _greedy_answers(lm, prompts, examples, 2 * max_length + 8)
    scores = scores_of(extra_metrics, answers, references)
    if has_references:
        scores = generation_scores(answers, references) | {"f1": token_f1(answers, references)} | scores
    return {name: score.value for name, score in scores.items()}


def _greedy_answers(
    lm: FrozenLM, prompts: Sequence[FormattedPrompt], examples: Sequence[DistillationExample], max_new_tokens: int
) -> list[str]:
    """The likeliest answer to each example, token by token, after its prompt."""
    answers = [""] * len(examples)
    for prefixes, prompt, group in _by_prompt(prompts[: len(examples)], lm):
        rows = [prompt_ids(examples[i].record, prompt.template, lm.tokenizer) for i in group]
        ends = [end_ids(lm, prompt.template)] * len(group)
        found = decode_batch(lm, prefixes, rows, [0] * len(group), Sampling(max_new_tokens), end_ids=ends)
        for i, answer in zip(group, found, strict=True):
            answers[i] = answer.text
    return answers


def _by_prompt(
    prompts: Sequence[FormattedPrompt], lm: FrozenLM
) -> Iterator[tuple[PrefixKV, FormattedPrompt, list[int]]]:
    """Each distinct prompt with its prefix, computed once, and the numbers of its examples."""
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(id(prompt), []).append(i)
    for group in groups.values():
        prompt = prompts[group[0]]
        yield prepare_prefixes(lm, [prompt.prefix(lm)]), prompt, group


def _length(prefix: Prefix) -> int:
    return len(prefix.lead) + (prefix.prompt.n_tokens if prefix.prompt else 0) + len(prefix.follow)


def _seconds(lm: FrozenLM, call: Callable[[], object]) -> float:
    times = []
    for _ in range(_PREFILL_REPEATS):
        begin = time.perf_counter()
        call()
        wait_for(lm.device)
        times.append(time.perf_counter() - begin)
    return median(times)
