"""The data that a verb is given: one place or several, checked at once."""

from __future__ import annotations

from pathlib import Path

from softprompt.cli.options import Typed
from softprompt.errors import ConfigError


def parse_sources(data: Typed) -> str | dict[str, str] | None:
    """Places of the training data: one, or {task: place} if --data is TASK=PLACE, any number of times.

    Raises ConfigError if one of several has no task, or two have the same one.
    """
    if not isinstance(data, list) or not data:
        return None
    pairs = [text.partition("=") for text in data]
    if len(data) == 1 and (not pairs[0][1] or Path(data[0]).exists()):
        return data[0]
    if bare := [text for text, (_, equals, _) in zip(data, pairs, strict=True) if not equals]:
        raise ConfigError("one of several --data has no name", expected="--data TASK=PLACE", got=bare[0])
    places = {name: place for name, _, place in pairs}
    if len(places) < len(pairs):
        raise ConfigError("two --data have the same name", got=", ".join(name for name, _, _ in pairs))
    return places


def check_data_places(sources: str | dict[str, str] | None) -> None:
    """Refuse missing and empty files at once: everything after this imports PyTorch. Raises DataError."""
    from softprompt.data.splits import check_place

    for place in sources.values() if isinstance(sources, dict) else [sources]:
        if place is not None:
            check_place(place)
