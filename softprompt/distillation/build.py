"""The training set of a distillation: queries and the teacher's answers to them, from self-study or the user's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from softprompt.distillation.dataset import BATCH, Exercise, Exercises, answered, of_inputs, of_rows
from softprompt.distillation.prepare import Prepared, longest_input
from softprompt.distillation.queries import Input
from softprompt.distillation.self_study import studied
from softprompt.distillation.study_cache import Notebook
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import check_context
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.training.events import Event

DOCUMENT_DETAILS, TEXT_DETAILS = 0.75, 0.25

HINT = "a shorter text, or --document, which reads it in pieces"


def exercises_of(prepared: Prepared, teacher: Teacher, report: Callable[[Event], None]) -> Exercises:
    """Inputs, the teacher's answers and lessons, in three parts; taken from the notebook as far as it goes."""
    settings, study, seed = prepared.settings, prepared.settings.study, prepared.settings.train.seed
    _check_room(prepared, teacher)
    notebook = Notebook.begun(prepared.notebook, _identity(prepared, teacher))

    batches = notebook.inputs()
    if not prepared.rows:
        for batch in studied(teacher, study, details_of(prepared), batches, seed=seed):
            notebook.add_inputs(len(batches), batch)
            batches.append(batch)
            progress(report, "study")(sum(map(len, batches)) / study.inputs)
    bare = _bare(prepared, teacher.lm, batches)
    done = answered(bare, teacher, study, notebook, seed, progress(report, "answers"))
    return Exercises.split(done, study.held_out, settings.train.eval_rows, seed)


def progress(report: Callable[[Event], None], kind: Literal["study", "answers", "fit"]) -> Callable[[float], None]:
    """What reports how far a phase before training is."""
    return lambda done: report(Event(kind, 0, {"progress": done}))


def kept_exercises(prepared: Prepared, teacher: Teacher) -> Exercises:
    """Those of a finished run, from its notebook. Raises StoreError if they are not there."""
    settings, study, seed = prepared.settings, prepared.settings.study, prepared.settings.train.seed
    notebook = Notebook.kept(prepared.notebook, _identity(prepared, teacher))
    bare = _bare(prepared, teacher.lm, notebook.inputs())
    done = answered(bare, teacher, study, notebook, seed, lambda done: None)
    return Exercises.split(done, study.held_out, settings.train.eval_rows, seed)


def details_of(prepared: Prepared) -> float:
    """Share of self-study that is about details: a document is asked for facts, a text is followed."""
    wanted = prepared.settings.study.details
    if wanted is not None:
        return wanted
    return DOCUMENT_DETAILS if prepared.settings.document else TEXT_DETAILS


def _bare(prepared: Prepared, lm: FrozenLM, batches: Sequence[Sequence[Input]]) -> list[Exercise]:
    """The user's rows, or these inputs, as exercises without answers."""
    if prepared.rows:
        return of_rows(prepared.rows, prepared.chunks, prepared.template)
    return of_inputs([one for batch in batches for one in batch], prepared.template, lm.tokenizer)


def _check_room(prepared: Prepared, teacher: Teacher) -> None:
    """DataError if the text, an input and an answer do not fit in the model's context."""
    study = prepared.settings.study
    around = longest_input(prepared.settings) + study.answer_tokens + 64
    sizes = [len(_ids(teacher.prefix(i))) for i in range(len(teacher.chunks))]
    check_context(teacher.lm, [(prepared.where, size, around) for size in sizes], HINT)


def _ids(prefix: Prefix) -> tuple[int, ...]:
    return (*prefix.lead, *prefix.follow)


def _identity(prepared: Prepared, teacher: Teacher) -> str:
    """A digest of all that inputs and lessons depend on."""
    facts: Mapping[str, object] = {
        "chunks": teacher.chunks,
        "template": prepared.template.to_dict(),
        "rows": prepared.rows_sha256,
        "base": teacher.lm.geometry.fingerprint,
        "dtype": str(teacher.lm.dtype),
        "study": prepared.settings.study.model_dump(mode="json", exclude={"hard", "held_out", "details"}),
        "details": None if prepared.rows else details_of(prepared),
        "seed": prepared.settings.train.seed,
        "batch": BATCH,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
