"""Writes the artifacts of a distillation: a soft prompt of each size with card, model card and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from softprompt.distillation.fidelity import Fidelity
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.files import write_json, writing
from softprompt.formatting.chat_template import pinned_chat_template
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import size_of
from softprompt.prompts.model_card import model_card
from softprompt.training.artifacts import CURVE, OBSERVED, curves, observations
from softprompt.training.plots import can_plot, fidelity_by_size, learning_curve, observation_curves
from softprompt.training.result import Result
from softprompt.training.starts import Starts

FIDELITY_PLOT = "fidelity.png"


def save_prompts(
    prepared: PreparedDistillation, lm: FrozenLM, results: Mapping[str, Result], report: Fidelity, *, overwrite: bool
) -> tuple[tuple[Path, Card], ...]:
    """Write the soft prompt of every size, and fidelity.json beside the run's metrics.

    Raises StoreError if a name is taken (without `overwrite`) or the disk cannot be written.
    """
    saved, has_plots = list[tuple[Path, Card]](), can_plot()
    points = [(int(size), report.recovered(size)) for size in results]
    for size, result in results.items():
        folder = prepared.folder_of(int(size))
        card = _card(prepared, lm, folder.name, result, report, size)
        trial = size if len(results) > 1 else ""

        def plots(scratch: Path, name: str = card.name, trial: str = trial) -> None:
            if has_plots:
                learning_curve(scratch / CURVE, name, *curves(prepared.run / "metrics.jsonl", trial))
                if observed := observations(prepared.run / "metrics.jsonl", trial):
                    observation_curves(scratch / OBSERVED, name, observed)
                fidelity_by_size(scratch / FIDELITY_PLOT, prepared.folder.name, points)

        readme = model_card(card, bytes_on_disk=size_of(result.prompt), curve=CURVE if has_plots else None)
        card = store.save(folder, result.prompt, card, readme=readme, extras=plots, overwrite=overwrite)
        Starts(prepared.run).keep(trial, 0, card)
        saved.append((folder, card))
    Starts(prepared.run).forget_trials()
    with writing(prepared.run):
        write_json(prepared.run / "fidelity.json", report.to_dict())
        if has_plots:
            fidelity_by_size(prepared.run / FIDELITY_PLOT, prepared.folder.name, points)
    return tuple(saved)


def _card(prepared: PreparedDistillation, lm: FrozenLM, name: str, result: Result, report: Fidelity, size: str) -> Card:
    prompt: SoftPrompt = result.prompt
    settings = prepared.settings
    return Card.draft(
        name,
        prompt,
        lm.geometry,
        layout=layout_for(lm, prepared.template, prompt.form),
        template=prepared.template.to_dict(),
        chat_template=pinned_chat_template(prepared.template, lm.tokenizer),
        method=settings.method.model_dump(mode="json") | {"n_tokens": prompt.n_tokens},
        recipe=settings.train.model_dump(mode="json"),
        data=_data(prepared, report),
        metrics=_metrics(result, report, size),
    )


def _data(prepared: PreparedDistillation, report: Fidelity) -> dict[str, object]:
    """The card's section about the text and the queries."""
    settings = prepared.settings
    data: dict[str, object] = {
        "text_sha256": prepared.sha256,
        "text_characters": len(prepared.text),
        "text_tokens": report.tokens,
        "chunks": len(prepared.chunks),
        "queries": settings.study.queries,
        "study": settings.study.model_dump(mode="json"),
    }
    if prepared.rows:
        data |= {"train_sha256": prepared.rows_sha256, "train_rows": len(prepared.rows)}
    if settings.composable:
        data["composable"] = list(settings.composable)
    if settings.keep_text:
        data["text"] = prepared.text
    return data


def _metrics(result: Result, report: Fidelity, size: str) -> dict[str, object]:
    """The card's section about training and fidelity."""
    student = report.soft[size]
    return {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
        "recovered": report.recovered(size),
        "divergence": student.divergence,
        "divergence_without_text": report.no_text.divergence,
        "agreement": student.agreement,
        "held_out": report.rows,
        "full_text": asdict(report.full_text),
        "scores": student.scores,
    }
