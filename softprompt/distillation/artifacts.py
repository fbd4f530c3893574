"""What a distillation leaves on disk: a soft prompt of each size with card, model card and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softprompt.distillation.fidelity import Fidelity
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.files import write_json, writing
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import size_of
from softprompt.prompts.model_card import model_card
from softprompt.training.artifacts import CURVE, curves
from softprompt.training.loop import Result
from softprompt.training.plots import fidelity_by_size, learning_curve

PICTURE = "fidelity.png"


def save_all(
    prepared: PreparedDistillation, lm: FrozenLM, results: Mapping[str, Result], measured: Fidelity, *, overwrite: bool
) -> tuple[tuple[Path, Card], ...]:
    """Write the prompt of every size, and fidelity.json beside the run's metrics.

    Raises StoreError if a name is taken (without `overwrite`) or the disk refuses.
    """
    saved = []
    points = [(int(size), measured.recovered(size)) for size in results]
    for size, result in results.items():
        folder = prepared.folder_of(int(size))
        card = _card(prepared, lm, folder.name, result, measured, size)
        trial = size if len(results) > 1 else ""

        def extras(scratch: Path, name: str = card.name, trial: str = trial) -> None:
            learning_curve(scratch / CURVE, name, *curves(prepared.run / "metrics.jsonl", trial))
            fidelity_by_size(scratch / PICTURE, prepared.folder.name, points)

        readme = model_card(card, bytes_on_disk=size_of(result.prompt), curve=CURVE)
        card = store.save(folder, result.prompt, card, readme=readme, extras=extras, overwrite=overwrite)
        saved.append((folder, card))
    with writing(prepared.run):
        write_json(prepared.run / "fidelity.json", measured.to_dict())
        fidelity_by_size(prepared.run / PICTURE, prepared.folder.name, points)
    return tuple(saved)


def _card(
    prepared: PreparedDistillation, lm: FrozenLM, name: str, result: Result, measured: Fidelity, size: str
) -> Card:
    prompt: SoftPrompt = result.prompt
    settings, own = prepared.settings, measured.soft[size]
    facts: dict[str, Any] = {
        "text_sha256": prepared.sha256,
        "text_characters": len(prepared.text),
        "text_tokens": measured.tokens,
        "chunks": len(prepared.chunks),
        "inputs": settings.study.inputs,
        "study": settings.study.model_dump(mode="json"),
    }
    if prepared.rows:
        facts |= {"train_sha256": prepared.rows_sha256, "train_rows": len(prepared.rows)}
    if settings.keep_text:
        facts["text"] = prepared.text
    metrics = {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
        "recovered": measured.recovered(size),
        "divergence": own.divergence,
        "divergence_without_text": measured.no_text.divergence,
        "agreement": own.agreement,
        "held_out": measured.rows,
        "full_text": asdict(measured.full_text),
        "scores": own.scores,
    }
    return Card.draft(
        name,
        prompt,
        lm.geometry,
        layout=layout_for(lm, prepared.template, prompt.form),
        template=prepared.template.to_dict(),
        method=settings.method.model_dump(mode="json") | {"n_tokens": prompt.n_tokens},
        recipe=settings.train.model_dump(mode="json"),
        data=facts,
        metrics=metrics,
    )
