"""Distilled soft prompts once more: what they were distilled on, and how others do on their held-out inputs.

Two texts distilled apart can stand one behind the other (`compose "a | b"`); nothing was trained for that, so what is
left of each is measured on the inputs that were held out for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.distillation.build import cached_dataset
from softprompt.distillation.config import DistillConfig
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
from softprompt.settings import resolve_settings
from softprompt.training.prepare import RUNS

TEXTS = "all texts"  # the texts themselves, one behind the other
WORSE = 0.05  # of a text's effect: what is lost beyond it is worth a warning


@dataclass(frozen=True)
class ComposedFidelity:
    """How much of a distilled text a soft prompt holds.

    Attributes:
        source: name of the soft prompt that was distilled from this text alone.
        name: of the one in question; the same, if there is but one.
        report: of both, and of `TEXTS` where several texts fit in the context together.
    """

    source: str
    name: str
    report: Fidelity

    @property
    def lost(self) -> float:
        """Share of the text's effect that the soft prompt in question lacks beside the one of this text alone."""
        return self.report.recovered(self.source) - self.report.recovered(self.name)

    @property
    def lost_by_texts(self) -> float | None:
        """The same of all texts one behind the other, beside this text alone; None where that is not measured."""
        return 1 - self.report.recovered(TEXTS) if TEXTS in self.report.soft else None


def composed_sources(name: str, card: Card, chosen: Sequence[str] = ()) -> list[str]:
    """The distilled soft prompts whose held-out inputs `name` is measured on: those chosen, those it was made of, or
    itself.

    Raises:
        StoreError: one is missing, or is another than the one that `name` was composed of.
        DataError: one was not distilled from a text.
    """
    given = card.data.get("inputs") if not chosen else None
    made_of = {str(part["name"]): part["sha256"] for part in given} if isinstance(given, list) else {}
    names = list(chosen) or list(made_of) or [name]
    for source in names:
        own = store.load_card(store.locate(source))
        if "text_sha256" not in own.data:
            hint = f"softprompt eval {name} --data FILE, or --on with prompts that softprompt distill made"
            raise DataError("this soft prompt was not distilled from a text", where=store.locate(source), hint=hint)
        if made_of.get(source, own.sha256) != own.sha256:
            what = f"{name} was composed of another soft prompt of that name"
            raise StoreError(what, where=store.locate(source), hint=f"compose {name} again, or --on {source}")
    return names


def load_or_generate(source: str, *, trust_remote_code: bool = False) -> PreparedDistillation:
    """The text and settings that a soft prompt was distilled with, from its run.

    Raises:
        StoreError: the run is gone, or another came since.
        DataError: the text is gone, or another one now.
    """
    folder = store.locate(source)
    card = store.load_card(folder)
    runs = folder.parent / RUNS
    run = next((runs / name for name in _run_names(folder, card) if (runs / name / "config.yaml").is_file()), None)
    if run is None:
        what, hint = "its run is gone, and with it the held-out inputs", "distil it again"
        raise StoreError(what, where=runs / folder.name, hint=hint)
    settings = resolve_settings(DistillConfig, {"name": f"{run.parent.parent}/{run.name}"}, run / "config.yaml")
    found = prepare_distillation(settings, overwrite=True, trust_remote_code=trust_remote_code)
    if found.sha256 != card.data["text_sha256"] or found.rows_sha256 != card.data.get("train_sha256", ""):
        what = "the text or the rows are not those that the soft prompt was distilled from"
        raise DataError(what, where=f"{found.where}, {source}", hint="put the old file back, or distil it again")
    split = (settings.study.model_dump(mode="json"), settings.train.seed, settings.train.eval_rows)
    if split != (card.data["study"], card.recipe["seed"], card.recipe["eval_rows"]):
        what = "another run of that name came since, with other inputs held out"
        raise StoreError(what, where=run, hint=f"distil {source} again")
    return found


def measure_composed(
    lm: FrozenLM, name: str, sources: Mapping[str, PreparedDistillation], own: Mapping[str, Metric] | None = None
) -> list[ComposedFidelity]:
    """A soft prompt, and each source's own, on the held-out inputs of every source.

    Args:
        sources: by name, as `studied` gives them.
        own: further metrics.

    Raises StoreError if what a source was distilled on is not there, or is of another model or dtype.
    """
    formatted_prompts = {one: from_card(*store.load(one, lm.geometry)) for one in dict.fromkeys([*sources, name])}
    found = []
    for source, prepared in sources.items():
        teacher = Teacher(lm, prepared.chunks, prepared.template)
        splits = cached_dataset(prepared, teacher)
        students = {source: formatted_prompts[source], name: formatted_prompts[name]}
        if len(sources) > 1 and (together := _together(lm, list(sources.values()), splits)):
            students[TEXTS] = together
        tokens = len(lm.encode(prepared.text))
        found.append(ComposedFidelity(source, name, fidelity(teacher, splits.held_out, students, tokens, own)))
    return found


def _run_names(folder: Path, card: Card) -> list[str]:
    """The run of a soft prompt has its name, or that name without its size."""
    return [folder.name, folder.name.removesuffix(f".{card.n_tokens}")]


def _together(
    lm: FrozenLM, sources: Sequence[PreparedDistillation], splits: DistillationSplits
) -> FormattedPrompt | None:
    """The texts one behind the other in the frame of the first; None if they are read in pieces or do not fit."""
    first = sources[0]
    if any(len(source.chunks) > 1 or source.template != first.template for source in sources):
        return None
    around = layout_for(lm, first.template, "embedding")
    text = "\n\n".join(source.text for source in sources)
    formatted = FormattedPrompt(None, first.template, around.model_copy(update={"lead": around.lead + text}))
    prefix = formatted.prefix(lm)
    rows = [len(one.example(first.template, lm.tokenizer).ids) for one in splits.held_out]
    room = lm.geometry.max_positions - len(prefix.lead) - len(prefix.follow)
    return formatted if max(rows) <= room else None
