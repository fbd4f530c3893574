"""Distills a text into virtual tokens: queries, teacher answers, training, fidelity report, artifacts.

    result = distill(prepare_distillation(settings))        # prompts/NAME, or NAME.8, NAME.16, … for several sizes

The teacher is the frozen model after the full text, the student the same model after the soft prompt. The loss is the
divergence of the student's next-token distribution from the teacher's on the teacher's answers (context distillation:
Askell et al. 2021, https://arxiv.org/abs/2112.00861; Eyuboglu et al.: Cartridges, https://arxiv.org/abs/2506.06266).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from softprompt.distillation.artifacts import save_prompts
from softprompt.distillation.build import (
    EARLIER_CHUNK_TOKENS,
    as_begun,
    build_dataset,
    is_earlier_study,
    progress,
)
from softprompt.distillation.config import OWN, study_0_1
from softprompt.distillation.dataset import DistillationSplits
from softprompt.distillation.fidelity import Fidelity, fidelity
from softprompt.distillation.initialization import compacted_starts
from softprompt.distillation.neighbors import ComposableLearner, TrainingRows, load_neighbors
from softprompt.distillation.on_policy import OwnAnswers
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.distillation.teacher import Teacher
from softprompt.evaluation.custom_metrics import Metric
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for, layout_ids, opening_ids
from softprompt.methods.base import MethodContext
from softprompt.methods.legacy import legacy_dump
from softprompt.methods.registry import build_method, method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits
from softprompt.training.base_model import load_base_model
from softprompt.training.checkpoint import latest_step
from softprompt.training.events import Event
from softprompt.training.initialization import build_start
from softprompt.training.loop import train
from softprompt.training.recorder import RunRecorder, record_events
from softprompt.training.result import Result
from softprompt.training.resume import explained_refusal
from softprompt.training.trial import Task, Trial


@dataclass(frozen=True)
class DistillationResult:
    """Outcome of a distillation.

    Attributes:
        results: of training, by size ("" for the only one).
        saved: folder and card of every soft prompt; none if a signal ended the run (then `resume` continues it).
        fidelity: None if a signal ended the run.
    """

    results: dict[str, Result]
    saved: tuple[tuple[Path, Card], ...] = ()
    fidelity: Fidelity | None = None

    @property
    def folder(self) -> Path | None:
        """Of the first soft prompt, if the run came to its end."""
        return self.saved[0][0] if self.saved else None

    @property
    def stopped(self) -> str:
        """The reason why training ended."""
        return next(iter(self.results.values())).stopped


def distill(
    prepared: PreparedDistillation,
    lm: FrozenLM | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
    extra_metrics: Mapping[str, Metric] | None = None,
    report: Callable[[Event], None] = lambda event: None,
    on_validation: Callable[[Trial], None] = lambda trial: None,
) -> DistillationResult:
    """Distill a text and write the artifacts.

    Queries and teacher answers are cached beside the run (`study_cache`), so another size, method or learning rate on
    the same text starts with training.

    Args:
        lm: the base model, if it is loaded already.
        extra_metrics: custom metrics of the fidelity report.
        report: called with every event: "study", "answers" and "fit" with their progress, then those of training.
        on_validation: as in `train`.

    Raises:
        DataError: the text or the queries do not fit in the context.
        whatever `load_model`, `train` and `store.save` raise.
    """
    settings = prepared.settings
    if lm is None:
        lm = load_base_model(settings, trust_remote_code=trust_remote_code)
    prepared = as_begun(prepared, lm)
    settings, teacher = prepared.settings, Teacher(lm, prepared.chunks, prepared.template)
    if resume and settings.repeat is None and is_earlier_study(prepared, teacher):  # ends as it would have
        prepared = replace(prepared, settings=settings.model_copy(update={"repeat": False}))
    neighbors = load_neighbors(lm, settings.composable, method_spec(settings.method.name).start_form)
    splits = build_dataset(prepared, teacher, report)
    text = tuple(lm.encode(prepared.text))
    # A run that was stopped before its first checkpoint resumes from the study cache alone.
    resume = resume and latest_step(prepared.run) is not None
    starts = {} if resume else compacted_starts(prepared, lm, text, splits, progress(report, "fit"))
    own = _own_answers(prepared, teacher, splits)
    rows = TrainingRows.of(splits, teacher, neighbors, settings.study)
    trials = {str(size): _trial(prepared, lm, text, size, starts.get(size), rows, own) for size in prepared.sizes}
    recorder = RunRecorder(prepared.run, prepared.folder.name, settings, settings.train.track)
    with record_events(recorder, True, resume, report) as record, explained_refusal(prepared.run, settings):
        runs = list(trials.values())
        outcomes = train(lm, runs, prepared.run, resume=resume, report=record, on_validation=on_validation)
    results = dict(zip(trials, outcomes, strict=True))
    if any(result.interrupted for result in outcomes):
        return DistillationResult(results)
    students = {size: student_prompt(prepared, lm, result.prompt) for size, result in results.items()}
    scores = fidelity(teacher, splits.held_out, students, len(text), extra_metrics)
    saved = save_prompts(prepared, lm, results, scores, overwrite=overwrite)
    for checkpoint in prepared.run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return DistillationResult(results, saved, scores)


def student_prompt(prepared: PreparedDistillation, lm: FrozenLM, prompt: SoftPrompt) -> FormattedPrompt:
    """A soft prompt in the template and layout that it was distilled in."""
    return FormattedPrompt(prompt, prepared.template, layout_for(lm, prepared.template, prompt.form))


def _trial(
    prepared: PreparedDistillation,
    lm: FrozenLM,
    text: tuple[int, ...],
    size: int,
    start_from: SoftPrompt | None,
    rows: TrainingRows,
    own_answers: OwnAnswers | None,
) -> Trial:
    """A trial of the method that starts from this prompt, or from the first tokens of the text."""
    settings = prepared.settings
    method = settings.method
    start = build_start(
        method,
        text=lm.encode(method.init_text) if method.init_text else text,
        lead=opening_ids(lm, prepared.template),
        seed=settings.train.seed,
        n_tokens=size,
        prompt=start_from,
    )
    trained = build_method(method.name, lm, start, MethodContext(method))
    learner = ComposableLearner(trained, lm, rows.neighbor_of) if rows.neighbor_of else trained
    (prompt,) = learner.freeze()
    check_fits(prompt, lm.geometry)
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, prompt.form))
    task = Task(rows.train, rows.validation, lead, follow, _digest(prepared, len(text), rows))
    name = str(size) if len(prepared.sizes) > 1 else ""
    return Trial(learner, [task], settings.train, lm.device, name, rewrite=own_answers)


def _own_answers(prepared: PreparedDistillation, teacher: Teacher, splits: DistillationSplits) -> OwnAnswers | None:
    """What gives rows the soft prompt's own answers, if the settings want that."""
    settings = prepared.settings
    if not settings.on_policy:
        return None
    chunk_of = {row.record.where: row.chunk for row in splits.train}
    return OwnAnswers(teacher, settings.study, chunk_of, settings.on_policy)


def _digest(prepared: PreparedDistillation, n_text: int, rows: TrainingRows) -> str:
    """A digest of everything that a checkpoint depends on, the same as in softprompt 0.1.

    Args:
        n_text: tokens of the text.
    """
    settings = prepared.settings
    study = study_0_1(settings.study.model_dump(mode="json"))
    if settings.study.chunk_tokens is None and (n_text <= EARLIER_CHUNK_TOKENS or not settings.document):
        study |= {"chunk_tokens": EARLIER_CHUNK_TOKENS}  # which changes nothing there
    inputs = [prepared.sha256, prepared.template.to_dict(), study, legacy_dump(settings.method, **OWN["method"])]
    inputs += [settings.on_policy] if settings.on_policy else []
    inputs += [sorted({each.sha256 for each in rows.neighbor_of.values()})] if rows.neighbor_of else []
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
