"""Fidelity of composed soft prompts: each distilled prompt and the composed one on the held-out queries of every text.

Two texts distilled separately can be used one after the other (`compose "a | b"`). Nothing was trained for that, so the
fidelity to each text is measured on its own held-out queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.distillation.build import cached_dataset
from softprompt.distillation.config import DistillConfig, resolve_distillation, study_0_1
from softprompt.distillation.dataset import DistillationSplits
from softprompt.distillation.fidelity import Fidelity, fidelity
from softprompt.distillation.prepare import PreparedDistillation, prepare_distillation
from softprompt.distillation.teacher import Teacher
from softprompt.errors import DataError, StoreError
from softprompt.evaluation.custom_metrics import Metric
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.training.prepare import RUNS

ALL_TEXTS = "all texts"  # name of the texts one after the other, among the soft prompts
NOTABLE_LOSS = 0.05  # share of a text's effect; a larger loss is worth a warning


@dataclass(frozen=True)
class ComposedFidelity:
    """How much of a distilled text a (composed) soft prompt retains.

    Attributes:
        source: name of the soft prompt that was distilled from this text alone.
        name: of the measured soft prompt; the same as `source` if it is the only one.
        report: of both, and of `ALL_TEXTS` where several texts fit in the context together.
    """

    source: str
    name: str
    report: Fidelity

    @property
    def lost(self) -> float:
        """The share of the text's effect that `source` recovers and `name` does not."""
        return self.report.recovered(self.source) - self.report.recovered(self.name)

    @property
    def lost_by_texts(self) -> float | None:
        """The share of the text's effect lost by all texts one after the other; None where that is not measured."""
        return 1 - self.report.recovered(ALL_TEXTS) if ALL_TEXTS in self.report.soft else None


def composed_sources(name: str, card: Card, chosen: Sequence[str] = ()) -> list[str]:
    """The distilled soft prompts whose held-out queries `name` is measured on.

    They are the chosen ones, else those that `name` was composed of, else itself.

    Raises:
        StoreError: one is missing, or is not the one that `name` was composed of.
        DataError: one was not distilled from a text.
    """
    inputs = card.data.get("inputs") if not chosen else None
    composed_of = {str(part["name"]): part["sha256"] for part in inputs} if isinstance(inputs, list) else {}
    names = list(chosen) or list(composed_of) or [name]
    for source in names:
        source_card = store.load_card(store.locate(source))
        if "text_sha256" not in source_card.data:
            hint = f"softprompt eval {name} --data FILE, or --on with prompts that softprompt distill made"
            raise DataError("this soft prompt was not distilled from a text", where=store.locate(source), hint=hint)
        if composed_of.get(source, source_card.sha256) != source_card.sha256:
            message = f"{name} was composed of another soft prompt of that name"
            raise StoreError(message, where=store.locate(source), hint=f"compose {name} again, or --on {source}")
    return names


def load_source(source: str, *, trust_remote_code: bool = False) -> PreparedDistillation:
    """Load the text and settings that a soft prompt was distilled with, from its run.

    Raises:
        StoreError: the run is missing, or a later run replaced it.
        DataError: the text is missing or has changed.
    """
    folder = store.find(source)
    card = store.load_card(folder)
    runs = folder.parent / RUNS
    run = next((runs / name for name in _run_names(folder, card) if (runs / name / "config.yaml").is_file()), None)
    if run is None:
        message = "its run is missing, and with it the held-out queries"
        raise StoreError(message, where=runs / folder.name, hint="distill it again")
    settings = resolve_distillation({"name": f"{run.parent.parent}/{run.name}"}, run / "config.yaml")
    prepared = prepare_distillation(settings, overwrite=True, trust_remote_code=trust_remote_code)
    if prepared.sha256 != card.data["text_sha256"] or prepared.rows_sha256 != card.data.get("train_sha256", ""):
        message = "the text or the rows are not those that the soft prompt was distilled from"
        raise DataError(message, where=f"{prepared.where}, {source}", hint="restore the old file, or distill it again")
    study = card.data["study"]
    held_out = study_0_1(study) if isinstance(study, dict) else None
    if _split_settings(settings) != (held_out, card.recipe["seed"], card.recipe["eval_rows"]):
        message = "a later run of that name holds out other queries"
        raise StoreError(message, where=run, hint=f"distill {source} again")
    return prepared


def _split_settings(settings: DistillConfig) -> tuple[dict[str, object], int, int]:
    """The settings that decide which queries are held out."""
    return study_0_1(settings.study.model_dump(mode="json")), settings.train.seed, settings.train.eval_rows


def measure_composed(
    lm: FrozenLM,
    name: str,
    sources: Mapping[str, PreparedDistillation],
    extra_metrics: Mapping[str, Metric] | None = None,
) -> list[ComposedFidelity]:
    """Measure a soft prompt, beside each source's, on the held-out queries of every source.

    Args:
        sources: by name, from `load_source`.
        extra_metrics: custom metrics of the greedy answers.

    Raises StoreError if the study cache of a source is missing, or of another model or dtype.
    """
    prompts = {source: from_card(*store.load(source, lm.geometry)) for source in dict.fromkeys([*sources, name])}
    reports = []
    for source, prepared in sources.items():
        teacher = Teacher(lm, prepared.chunks, prepared.template)
        splits = cached_dataset(prepared, teacher)
        students = {source: prompts[source], name: prompts[name]}
        if len(sources) > 1 and (all_texts := _concatenated_texts(lm, list(sources.values()), splits)):
            students[ALL_TEXTS] = all_texts
        tokens = len(lm.encode(prepared.text))
        report = fidelity(teacher, splits.held_out, students, tokens, extra_metrics)
        reports.append(ComposedFidelity(source, name, report))
    return reports


def _run_names(folder: Path, card: Card) -> list[str]:
    """Names that the run of a soft prompt may have: its own, or its own without the size."""
    return [folder.name, folder.name.removesuffix(f".{card.n_tokens}")]


def _concatenated_texts(
    lm: FrozenLM, sources: Sequence[PreparedDistillation], splits: DistillationSplits
) -> FormattedPrompt | None:
    """The texts one after the other in the template of the first; None if one has several chunks or they do not fit."""
    first = sources[0]
    if any(len(source.chunks) > 1 or source.template != first.template for source in sources):
        return None
    layout = layout_for(lm, first.template, "embedding")
    text = "\n\n".join(source.text for source in sources)
    prompt = FormattedPrompt(None, first.template, layout.model_copy(update={"lead": layout.lead + text}))
    prefix = prompt.prefix(lm)
    lengths = [len(example.example(first.template, lm.tokenizer).ids) for example in splits.held_out]
    room = lm.geometry.max_positions - len(prefix.lead) - len(prefix.follow)
    return prompt if max(lengths) <= room else None
