"""The dataset of a distillation: queries with the teacher's answers and soft labels."""

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
from softprompt.distillation.queries import Query, nearest_chunk, query_record, record_words
from softprompt.distillation.study_cache import StudyCache, TeacherAnswer
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.formatting.text_prompt import as_turns
from softprompt.inference.sampling import Sampling

ANSWER_BATCH = 64  # queries answered at once, and cached at once


@dataclass(frozen=True)
class DistillationExample:
    """A query with its answer.

    Attributes:
        chunk: number of the chunk of text that the teacher reads.
        record: the query.
        answer: token ids, including the end token if the answer ended by itself.
        soft_labels: the teacher's token probabilities for the answer.
    """

    chunk: int
    record: Record
    answer: tuple[int, ...] = ()
    soft_labels: SoftLabels | None = None

    def example(self, template: Template, tokenizer: Tokenizer) -> Example:
        """The query and its answer as token ids after a prefix; the loss covers the answer."""
        query_ids = prompt_ids(self.record, template, tokenizer)
        mask = [False] * len(query_ids) + [True] * len(self.answer)
        return Example((*query_ids, *self.answer), tuple(mask), self.record.where, lesson=self.soft_labels)


@dataclass(frozen=True)
class DistillationSplits:
    """The examples of a distillation, each in one split.

    Attributes:
        train: for training.
        validation: for choosing the best prompt.
        held_out: for the fidelity report alone.
    """

    train: list[DistillationExample]
    validation: list[DistillationExample]
    held_out: list[DistillationExample]

    @staticmethod
    def split(examples: Sequence[DistillationExample], held_out: int, validation: int, seed: int) -> DistillationSplits:
        """Split examples at random; held-out and validation examples are at most a quarter of all each."""
        quarter = len(examples) // 4
        order = permutation(len(examples), seed).tolist()
        n_held_out = min(held_out, quarter)
        n_training_from = n_held_out + min(validation, quarter)

        def sorted_part(numbers: Sequence[int]) -> list[DistillationExample]:
            return [examples[i] for i in sorted(numbers)]

        return DistillationSplits(
            train=sorted_part(order[n_training_from:]),
            validation=sorted_part(order[n_held_out:n_training_from]),
            held_out=sorted_part(order[:n_held_out]),
        )


def examples_from_queries(
    queries: Sequence[Query], template: Template, tokenizer: Tokenizer
) -> list[DistillationExample]:
    """Turn generated queries into examples, sorted by chunk; answers that stand in the text are filled in."""

    def answer_ids(text: str) -> tuple[int, ...]:
        return (*target_ids(text, template, tokenizer), end_id(template, tokenizer)) if text else ()

    return [
        DistillationExample(
            query.chunk, query_record(query.text, template, f"{query.kind}:{i}"), answer_ids(query.answer)
        )
        for i, query in enumerate(sorted(queries, key=lambda query: query.chunk))
    ]


def examples_from_rows(rows: Sequence[Record], chunks: Sequence[str], template: Template) -> list[DistillationExample]:
    """Turn the user's rows into examples without answers, each about its nearest chunk, sorted by chunk."""
    nearest = nearest_chunk(chunks)
    examples = [DistillationExample(nearest(record_words(row)), as_turns(row, template)) for row in rows]
    return sorted(examples, key=lambda example: example.chunk)


def add_teacher_answers(
    examples: Sequence[DistillationExample],
    teacher: Teacher,
    study: StudyConfig,
    study_cache: StudyCache,
    seed: int,
    report: Callable[[float], None],
) -> list[DistillationExample]:
    """Fill in answers and soft labels from the cache, or from the teacher (and cache them).

    Args:
        examples: sorted by chunk.
        report: called with the fraction completed.
    """
    done: list[DistillationExample] = []
    for number, batch in enumerate(_batches(examples)):
        answers = study_cache.answers(number, study.temperature)
        if answers is None:
            answers = _teacher_answers(batch, teacher, study, seed + number)
            study_cache.add_answers(number, answers)
        for example, (answer, soft_labels) in zip(batch, answers, strict=True):
            done.append(replace(example, answer=answer, soft_labels=replace(soft_labels, hard=study.hard)))
        report(len(done) / len(examples))
    return done


def _teacher_answers(
    batch: Sequence[DistillationExample], teacher: Teacher, study: StudyConfig, seed: int
) -> list[TeacherAnswer]:
    """The teacher's answers to examples of one chunk that have none yet, and its soft labels for all."""
    chunk = batch[0].chunk
    template, tokenizer = teacher.template, teacher.lm.tokenizer
    unanswered = [example for example in batch if not example.answer]
    rows = [prompt_ids(example.record, template, tokenizer) for example in unanswered]
    sampling = Sampling(study.answer_tokens, study.answer_temperature, seed=seed * ANSWER_BATCH)
    label_options = (study.top_k, study.temperature)
    generated = iter(
        teacher.answers(chunk, rows, sampling, end_ids(teacher.lm, template), *label_options) if rows else []
    )
    answered = [example.example(template, tokenizer) for example in batch if example.answer]
    labels = iter(teacher.soft_labels(chunk, answered, *label_options) if answered else [])
    return [(example.answer, next(labels)) if example.answer else next(generated) for example in batch]


def _batches(examples: Sequence[DistillationExample]) -> list[list[DistillationExample]]:
    """Batches of at most `ANSWER_BATCH` examples, each of one chunk."""
    batches: list[list[DistillationExample]] = []
    for example in examples:
        if not batches or len(batches[-1]) == ANSWER_BATCH or batches[-1][0].chunk != example.chunk:
            batches.append([])
        batches[-1].append(example)
    return batches
