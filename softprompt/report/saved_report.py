"""The report of a saved soft prompt from its files alone: what a worker makes for an inspection of the server."""

from __future__ import annotations

import json
from collections.abc import Callable

from softprompt.errors import ConfigError
from softprompt.inspection.inspection import READINGS, inspect
from softprompt.inspection.saved import SavedPrompt, load_saved
from softprompt.jobs.inspection_records import InspectionInput, InspectionResult
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.model_card import public_name
from softprompt.report.page import InspectedPrompt, numbers, page


def inspect_saved(lm: FrozenLM, wanted: InspectionInput, on_section: Callable[[str], None]) -> InspectionResult:
    """Inspect a saved soft prompt, without looking at others: those beside it may be other people's.

    Args:
        on_section: called with the name of each reading that begins; what it raises ends the inspection.

    Raises StoreError, WrongBaseError, DataError or ConfigError for what cannot be inspected.
    """
    data = None if wanted.rows is None else str(wanted.rows)
    saved = load_saved(lm, str(wanted.folder), data=data, limit=wanted.limit)
    if data is not None and saved.rows is None:
        raise ConfigError("no rows are left to inspect on", where="file", got="; ".join(saved.notes) or None)
    inspection = inspect(
        lm,
        saved.formatted,
        saved.rows,
        only=wanted.sections or [name for name in READINGS if name != "likeness"],
        start=saved.start,
        text=saved.text,
        name=wanted.name,
        on_section=on_section,
    )
    facts = facts_of(saved) | {"base model": public_name(saved.card.geometry.base)}  # no path of this machine
    inspected = InspectedPrompt(wanted.name, facts, inspection)
    return InspectionResult(page([inspected]), json.dumps(numbers([inspected])))


def facts_of(saved: SavedPrompt) -> dict[str, str]:
    """Lines about a soft prompt for the head of its report."""
    card = saved.card
    facts = {
        "base model": card.geometry.base,
        "form": f"{card.form}, {card.n_tokens} virtual tokens",
        "method": str(card.method.get("name", "")),
        "made": card.created[:10],
        "sha256": f"{card.sha256[:12]}…",
        "rows": "; ".join(saved.notes),
    }
    return {name: fact for name, fact in facts.items() if fact}
