"""What a text is distilled on: inputs with the teacher's answers and what it says at each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from softprompt.data.records import Record
from softprompt.data.sampler import permutation
from softprompt.data.soft_labels import SoftLabels
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id
from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.data.tokenizer import Tokenizer
from softprompt.distillation.config import StudyConfig
from softprompt.distillation.queries import Query, finder, query_record, said
from softprompt.distillation.study_cache import StudyCache
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.formatting.text_prompt import as_turns
from softprompt.inference.sampling import Sampling

BATCH = 64  # inputs answered at once, and kept at once


@dataclass(frozen=True)
class DistillationExample:
    """An input with its answer.

    Attributes:
        chunk: number of the piece of text that the teacher reads.
        answer: token ids, with the end token if it came to an end.
    """

    chunk: int
    record: Record
    answer: tuple[int, ...] = ()
    lesson: SoftLabels | None = None

    def example(self, template: Template, tokenizer: Tokenizer) -> Example:
        """As a row behind a prefix: the answer is learned."""
        body = prompt_ids(self.record, template, tokenizer)
        mask = [False] * len(body) + [True] * len(self.answer)
        return Example((*body, *self.answer), tuple(mask), self.record.where, lesson=self.lesson)


@dataclass(frozen=True)
class DistillationSplits:
    """All of them, each in one part.

    Attributes:
        train: are learned.
        validation: choose the best prompt.
        held_out: are for the fidelity report alone.
    """

    train: list[DistillationExample]
    validation: list[DistillationExample]
    held_out: list[DistillationExample]

    @staticmethod
    def split(splits: Sequence[DistillationExample], held_out: int, validation: int, seed: int) -> DistillationSplits:
        """Drawn by seed; no part takes more than a quarter from training."""
        quarter = len(splits) // 4
        order = permutation(len(splits), seed).tolist()
        first, second = min(held_out, quarter), min(validation, quarter)
        parts = order[:first], order[first : first + second], order[first + second :]
        held, judged, learned = ([splits[i] for i in sorted(part)] for part in parts)
        return DistillationSplits(learned, judged, held)


def examples_from_queries(
    inputs: Sequence[Query], template: Template, tokenizer: Tokenizer
) -> list[DistillationExample]:
    """Self-written inputs as exercises, those of a piece together; without answers but where the text has them."""

    def answer(text: str) -> tuple[int, ...]:
        return (*target_ids(text, template, tokenizer), end_id(template, tokenizer)) if text else ()

    ordered = enumerate(sorted(inputs, key=lambda one: one.chunk))
    return [
        DistillationExample(one.chunk, query_record(one.text, template, f"{one.kind}:{i}"), answer(one.answer))
        for i, one in ordered
    ]


def examples_from_rows(rows: Sequence[Record], chunks: Sequence[str], template: Template) -> list[DistillationExample]:
    """The user's rows as exercises without answers, each for the piece that shares most words with it."""
    nearest = finder(chunks)
    found = [DistillationExample(nearest(said(row)), as_turns(row, template)) for row in rows]
    return sorted(found, key=lambda example: example.chunk)


def add_teacher_answers(
    splits: Sequence[DistillationExample],
    teacher: Teacher,
    study: StudyConfig,
    study_cache: StudyCache,
    seed: int,
    report: Callable[[float], None],
) -> list[DistillationExample]:
    """The exercises with answers and lessons: from the notebook, or from the teacher and then kept there.

    Args:
        exercises: those of a piece together.
        report: is told of the share that is done.
    """
    done: list[DistillationExample] = []
    for number, batch in enumerate(_batches(splits)):
        found = study_cache.lessons(number, study.temperature)
        if found is None:
            found = _taught(batch, teacher, study, seed + number)
            study_cache.add_lessons(number, found)
        for example, (answer, lesson) in zip(batch, found, strict=True):
            done.append(replace(example, answer=answer, lesson=replace(lesson, hard=study.hard)))
        report(len(done) / len(splits))
    return done


def _taught(
    batch: Sequence[DistillationExample], teacher: Teacher, study: StudyConfig, seed: int
) -> list[tuple[tuple[int, ...], SoftLabels]]:
    """Answers of the teacher to exercises of one piece that have none, and its lessons on all."""
    chunk, template, tokenizer = batch[0].chunk, teacher.template, teacher.lm.tokenizer
    asking = [example for example in batch if not example.answer]
    rows = [prompt_ids(example.record, template, tokenizer) for example in asking]
    sampling = Sampling(study.answer_tokens, study.answer_temperature, seed=seed * BATCH)
    ends, how = end_ids(teacher.lm, template), (study.top_k, study.temperature)
    written = iter(teacher.answers(chunk, rows, sampling, ends, *how) if rows else [])
    known = [example for example in batch if example.answer]
    examples = [example.example(template, tokenizer) for example in known]
    heard = iter(teacher.lessons(chunk, examples, *how) if known else [])
    return [(example.answer, next(heard)) if example.answer else next(written) for example in batch]


def _batches(splits: Sequence[DistillationExample]) -> list[list[DistillationExample]]:
    """At most `BATCH` each, of one piece each."""
    found: list[list[DistillationExample]] = []
    for example in splits:
        if not found or len(found[-1]) == BATCH or found[-1][0].chunk != example.chunk:
            found.append([])
        found[-1].append(example)
    return found
