"""Distillation of a text into virtual tokens: study, answers, training, fidelity report, artifacts.

    outcome = distil(settings)        # prompts/NAME, or NAME.8, NAME.16, … for several sizes

The teacher is the frozen model with the text in front, the student the same model with the soft prompt; the loss is the
divergence of the student's next-token distribution from the teacher's on the teacher's answers (context distillation:
Askell et al. 2021, https://arxiv.org/abs/2112.00861; Eyuboglu et al.: Cartridges, https://arxiv.org/abs/2506.06266).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.distillation.artifacts import save_all
from softprompt.distillation.build import build_dataset, progress
from softprompt.distillation.dataset import DistillationSplits
from softprompt.distillation.fidelity import Fidelity, fidelity
from softprompt.distillation.initialization import compacted_starts, examples
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.distillation.teacher import Teacher
from softprompt.evaluation.custom_metrics import Metric
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for, layout_ids, opening_ids
from softprompt.methods.base import Start
from softprompt.methods.registry import KV_METHODS, build
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits
from softprompt.training.checkpoint import latest_step
from softprompt.training.events import Event
from softprompt.training.loop import Result, train
from softprompt.training.recorder import RunRecorder, record_events
from softprompt.training.trial import Task, Trial


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation left.

    Attributes:
        results: of training, by size ("" for the only one).
        saved: folder and card of every soft prompt; none if a signal ended the run (then `resume` goes on).
        fidelity: None if a signal ended the run.
    """

    results: dict[str, Result]
    saved: tuple[tuple[Path, Card], ...] = ()
    fidelity: Fidelity | None = None

    @property
    def stopped(self) -> str:
        """Why training ended."""
        return next(iter(self.results.values())).stopped


def distill(
    prepared: PreparedDistillation,
    lm: FrozenLM | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
    own: Mapping[str, Metric] | None = None,
    report: Callable[[Event], None] = lambda event: None,
) -> DistillationResult:
    """Distil and write the artifacts.

    What was studied is kept beside the run (`notebook`), so another size, method or rate on the same text begins with
    training.

    Args:
        lm: the base model, if it is loaded already.
        own: further metrics of the fidelity report.
        report: is told of every event: "study", "answers" and "fit" with their progress, then those of training.

    Raises:
        DataError: a text that does not fit, or inputs that do not.
        what `load`, `train` and `store.save` raise.
    """
    settings = prepared.settings
    if lm is None:
        lm = load_model(
            settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=trust_remote_code
        )
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    splits = build_dataset(prepared, teacher, report)
    text = tuple(lm.encode(prepared.text))
    # Stopped before its first checkpoint, a run goes on from the notebook alone; after it the checkpoint has it all.
    resume = resume and latest_step(prepared.run) is not None
    opened = {} if resume else compacted_starts(prepared, lm, text, splits, progress(report, "fit"))
    trials = {str(size): _candidate(prepared, lm, text, size, opened.get(size), splits) for size in prepared.sizes}
    where = RunRecorder(prepared.run, prepared.folder.name, settings, settings.train.track)
    with record_events(where, True, resume, report) as everywhere:
        found = train(lm, list(trials.values()), prepared.run, resume=resume, report=everywhere)
    results = dict(zip(trials, found, strict=True))
    if any(result.interrupted for result in found):
        return DistillationResult(results)
    students = {size: student_prompt(prepared, lm, result.prompt) for size, result in results.items()}
    measured = fidelity(teacher, splits.held_out, students, len(text), own)
    saved = save_all(prepared, lm, results, measured, overwrite=overwrite)
    for checkpoint in prepared.run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return DistillationResult(results, saved, measured)


def student_prompt(prepared: PreparedDistillation, lm: FrozenLM, prompt: SoftPrompt) -> FormattedPrompt:
    """A soft prompt in the frame that it was distilled in."""
    return FormattedPrompt(prompt, prepared.template, layout_for(lm, prepared.template, prompt.form))


def _candidate(
    prepared: PreparedDistillation,
    lm: FrozenLM,
    text: tuple[int, ...],
    size: int,
    opened: SoftPrompt | None,
    splits: DistillationSplits,
) -> Trial:
    """The method at its start: this prompt, or the first tokens of the text."""
    settings = prepared.settings
    method, kv = settings.method, settings.method.name in KV_METHODS
    start = Start(
        n_tokens=size,
        init="prompt" if opened else "text" if method.init == "attended" else method.init,
        prompt=opened,
        text=tuple(lm.encode(method.init_text)) if method.init_text else text,
        lead=tuple(opening_ids(lm, prepared.template)) if kv else (),
        frozen_tokens=method.frozen_tokens if kv else 0,
        hidden=method.hidden,
        rank=method.rank,
        seed=settings.train.seed,
    )
    learner = build(method.name, lm, start)
    (prompt,) = learner.freeze()
    check_fits(prompt, lm.geometry)
    lead, follow = layout_ids(lm, layout_for(lm, prepared.template, prompt.form))
    facts = [prepared.sha256, prepared.template.to_dict(), settings.study.model_dump(mode="json"), method.model_dump()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    parts = [examples(part, prepared, lm) for part in (splits.train, splits.validation)]
    task = Task(parts[0], parts[1], lead, follow, digest)
    return Trial(learner, [task], settings.train, lm.device, str(size) if len(prepared.sizes) > 1 else "")
