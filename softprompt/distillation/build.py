"""Builds the dataset of a distillation: queries from self-study or the user's rows, answered by the teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from softprompt.distillation.config import study_0_1
from softprompt.distillation.dataset import (
    ANSWER_BATCH,
    DistillationExample,
    DistillationSplits,
    add_teacher_answers,
    examples_from_queries,
    examples_from_rows,
)
from softprompt.distillation.prepare import PreparedDistillation, document_chunks, max_query_tokens
from softprompt.distillation.queries import Query
from softprompt.distillation.self_study import generate_queries
from softprompt.distillation.study_cache import StudyCache
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import check_context
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.events import Event

DOCUMENT_CLOZE_SHARE = 0.875  # documents are read for their details, and what the model asks itself takes long
EARLIER_DOCUMENT_CLOZE_SHARE = 0.75  # the default before; studies of then are read and continued as they are
EARLIER_CHUNK_TOKENS = 512  # the default before, likewise
TEXT_CLOZE_SHARE = 0.25  # texts are instructions to follow

_TOO_LONG_HINT = "a shorter text, or --document, which is read in chunks"


def build_dataset(
    prepared: PreparedDistillation, teacher: Teacher, report: Callable[[Event], None]
) -> DistillationSplits:
    """Generate queries, answer them with the teacher and split them; cached parts are not generated again."""
    study, seed = prepared.settings.study, prepared.settings.train.seed
    _check_fits(prepared, teacher)
    share = _share(prepared, teacher)
    study_cache = StudyCache.opened(prepared.study_cache, _identity(prepared, teacher, share))
    batches = study_cache.queries()
    if not prepared.rows:
        count = prepared.settings.n_queries
        study = study.model_copy(update={"queries": count})
        for batch in generate_queries(teacher, study, share, batches, seed=seed):
            study_cache.add_queries(len(batches), batch)
            batches.append(batch)
            progress(report, "study")(sum(map(len, batches)) / count)
    return _answered_splits(prepared, teacher, study_cache, batches, progress(report, "answers"))


def cached_dataset(prepared: PreparedDistillation, teacher: Teacher) -> DistillationSplits:
    """The dataset of a finished run, from its study cache. Raises StoreError if the cache is missing."""
    identity = _identity(prepared, teacher, _share(prepared, teacher))
    study_cache = StudyCache.existing(prepared.study_cache, identity)
    return _answered_splits(prepared, teacher, study_cache, study_cache.queries(), lambda share: None)


def progress(report: Callable[[Event], None], kind: Literal["study", "answers", "fit"]) -> Callable[[float], None]:
    """Build a function that reports the completed fraction of a phase before training."""
    return lambda share: report(Event(kind, 0, {"progress": share}))


def cloze_share(prepared: PreparedDistillation) -> float:
    """The share of self-study that is about details: as set, or larger for a document than for a text."""
    share = prepared.settings.study.cloze
    if share is not None:
        return share
    return DOCUMENT_CLOZE_SHARE if prepared.settings.document else TEXT_CLOZE_SHARE


def as_begun(prepared: PreparedDistillation, lm: FrozenLM) -> PreparedDistillation:
    """The distillation in the shorter chunks of an earlier release if the study on disk was made with them."""
    settings = prepared.settings
    if settings.study.chunk_tokens is not None or not settings.document:
        return prepared
    study = settings.study.model_copy(update={"chunk_tokens": EARLIER_CHUNK_TOKENS})
    settings = settings.model_copy(update={"study": study})
    chunks = document_chunks(settings, prepared.text, lm.tokenizer, lm.geometry.max_positions)
    earlier = replace(prepared, settings=settings, chunks=chunks)
    teacher = Teacher(lm, chunks, prepared.template)
    shares = (EARLIER_DOCUMENT_CLOZE_SHARE, cloze_share(prepared))
    found = any(StudyCache.is_there(prepared.study_cache, _identity(earlier, teacher, share)) for share in shares)
    return earlier if found and chunks != prepared.chunks else prepared


def is_earlier_study(prepared: PreparedDistillation, teacher: Teacher) -> bool:
    """Whether the study on disk is of a document, by the default share of details of an earlier release."""
    if prepared.settings.study.cloze is not None or not prepared.settings.document or prepared.rows:
        return False
    return StudyCache.is_there(prepared.study_cache, _identity(prepared, teacher, EARLIER_DOCUMENT_CLOZE_SHARE))


def _share(prepared: PreparedDistillation, teacher: Teacher) -> float:
    """`cloze_share`, or that of an earlier release if the study on disk was made with it."""
    return EARLIER_DOCUMENT_CLOZE_SHARE if is_earlier_study(prepared, teacher) else cloze_share(prepared)


def _answered_splits(
    prepared: PreparedDistillation,
    teacher: Teacher,
    study_cache: StudyCache,
    batches: Sequence[Sequence[Query]],
    report: Callable[[float], None],
) -> DistillationSplits:
    """Answer the queries, or the user's rows, and split them."""
    settings = prepared.settings
    study, seed = settings.study, settings.train.seed
    unanswered = _unanswered(prepared, teacher.lm, batches)
    examples = add_teacher_answers(unanswered, teacher, study, study_cache, seed, report)
    if settings.only_starts:
        return DistillationSplits(examples, [], examples)  # no step is taken on them
    return DistillationSplits.split(examples, study.held_out, settings.train.eval_rows, seed)


def _unanswered(
    prepared: PreparedDistillation, lm: FrozenLM, batches: Sequence[Sequence[Query]]
) -> list[DistillationExample]:
    """The user's rows, or these queries, as examples without the teacher's answers."""
    if prepared.rows:
        return examples_from_rows(prepared.rows, prepared.chunks, prepared.template)
    return examples_from_queries([query for batch in batches for query in batch], prepared.template, lm.tokenizer)


def _check_fits(prepared: PreparedDistillation, teacher: Teacher) -> None:
    """Raise DataError if the text, a query and an answer do not fit in the model's context."""
    reserved = max_query_tokens(prepared.settings) + prepared.settings.study.answer_tokens + 64
    prefixes = [teacher.prefix(chunk) for chunk in range(len(teacher.chunks))]
    sizes = [len(prefix.lead) + len(prefix.follow) for prefix in prefixes]
    check_context(teacher.lm, [(prepared.where, size, reserved) for size in sizes], _TOO_LONG_HINT)


def _identity(prepared: PreparedDistillation, teacher: Teacher, share: float) -> str:
    """A digest of everything that queries and answers depend on, the same as in softprompt 0.1."""
    study = prepared.settings.study
    written = {"queries": prepared.settings.n_queries, "chunk_tokens": study.chunk_tokens or EARLIER_CHUNK_TOKENS}
    made = study.model_copy(update=written)
    dumped = study_0_1(made.model_dump(mode="json"))
    inputs: Mapping[str, object] = {
        "chunks": teacher.chunks,
        "template": prepared.template.to_dict(),
        "rows": prepared.rows_sha256,
        "base": teacher.lm.geometry.fingerprint,
        "dtype": str(teacher.lm.dtype),
        "study": {name: value for name, value in dumped.items() if name not in ("hard", "held_out", "details")},
        "details": None if prepared.rows else share,
        "seed": prepared.settings.train.seed,
        "batch": ANSWER_BATCH,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
