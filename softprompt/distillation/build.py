"""The training set of a distillation: queries and the teacher's answers to them, from self-study or the user's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from softprompt.distillation.dataset import (
    BATCH,
    DistillationExample,
    DistillationSplits,
    add_teacher_answers,
    examples_from_queries,
    examples_from_rows,
)
from softprompt.distillation.prepare import PreparedDistillation, longest_input
from softprompt.distillation.queries import Query
from softprompt.distillation.self_study import generate_queries
from softprompt.distillation.study_cache import StudyCache
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import check_context
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.training.events import Event

DOCUMENT_DETAILS, TEXT_DETAILS = 0.75, 0.25

HINT = "a shorter text, or --document, which reads it in pieces"


def build_dataset(
    prepared: PreparedDistillation, teacher: Teacher, report: Callable[[Event], None]
) -> DistillationSplits:
    """Inputs, the teacher's answers and lessons, in three parts; taken from the notebook as far as it goes."""
    settings, study, seed = prepared.settings, prepared.settings.study, prepared.settings.train.seed
    _check_room(prepared, teacher)
    study_cache = StudyCache.opened(prepared.study_cache, _identity(prepared, teacher))

    batches = study_cache.inputs()
    if not prepared.rows:
        for batch in generate_queries(teacher, study, cloze_share(prepared), batches, seed=seed):
            study_cache.add_inputs(len(batches), batch)
            batches.append(batch)
            progress(report, "study")(sum(map(len, batches)) / study.inputs)
    bare = _bare(prepared, teacher.lm, batches)
    done = add_teacher_answers(bare, teacher, study, study_cache, seed, progress(report, "answers"))
    return DistillationSplits.split(done, study.held_out, settings.train.eval_rows, seed)


def progress(report: Callable[[Event], None], kind: Literal["study", "answers", "fit"]) -> Callable[[float], None]:
    """What reports how far a phase before training is."""
    return lambda done: report(Event(kind, 0, {"progress": done}))


def cached_dataset(prepared: PreparedDistillation, teacher: Teacher) -> DistillationSplits:
    """Those of a finished run, from its notebook. Raises StoreError if they are not there."""
    settings, study, seed = prepared.settings, prepared.settings.study, prepared.settings.train.seed
    study_cache = StudyCache.kept(prepared.study_cache, _identity(prepared, teacher))
    bare = _bare(prepared, teacher.lm, study_cache.inputs())
    done = add_teacher_answers(bare, teacher, study, study_cache, seed, lambda done: None)
    return DistillationSplits.split(done, study.held_out, settings.train.eval_rows, seed)


def cloze_share(prepared: PreparedDistillation) -> float:
    """Share of self-study that is about details: a document is asked for facts, a text is followed."""
    wanted = prepared.settings.study.details
    if wanted is not None:
        return wanted
    return DOCUMENT_DETAILS if prepared.settings.document else TEXT_DETAILS


def _bare(
    prepared: PreparedDistillation, lm: FrozenLM, batches: Sequence[Sequence[Query]]
) -> list[DistillationExample]:
    """The user's rows, or these inputs, as exercises without answers."""
    if prepared.rows:
        return examples_from_rows(prepared.rows, prepared.chunks, prepared.template)
    return examples_from_queries([one for batch in batches for one in batch], prepared.template, lm.tokenizer)


def _check_room(prepared: PreparedDistillation, teacher: Teacher) -> None:
    """DataError if the text, an input and an answer do not fit in the model's context."""
    study = prepared.settings.study
    around = longest_input(prepared.settings) + study.answer_tokens + 64
    sizes = [len(_ids(teacher.prefix(i))) for i in range(len(teacher.chunks))]
    check_context(teacher.lm, [(prepared.where, size, around) for size in sizes], HINT)


def _ids(prefix: Prefix) -> tuple[int, ...]:
    return (*prefix.lead, *prefix.follow)


def _identity(prepared: PreparedDistillation, teacher: Teacher) -> str:
    """A digest of all that inputs and lessons depend on."""
    facts: Mapping[str, object] = {
        "chunks": teacher.chunks,
        "template": prepared.template.to_dict(),
        "rows": prepared.rows_sha256,
        "base": teacher.lm.geometry.fingerprint,
        "dtype": str(teacher.lm.dtype),
        "study": prepared.settings.study.model_dump(mode="json", exclude={"hard", "held_out", "details"}),
        "details": None if prepared.rows else cloze_share(prepared),
        "seed": prepared.settings.train.seed,
        "batch": BATCH,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
