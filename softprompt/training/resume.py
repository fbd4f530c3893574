"""Why a run cannot be resumed: the settings that differ from those of its config.yaml, with both values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from softprompt.errors import CheckpointError, ConfigError
from softprompt.settings import resolve_settings
from softprompt.training.checkpoint import OTHER_RUN

# Settings that may change between a run and its resumption.
_FREE = {"name", "train.save_every", "train.accumulate", "train.track", "train.gradient_checkpointing", "train.graphs"}
_PLACES = {"device_map", "fsdp"}  # which may change, too


@contextlib.contextmanager
def explained_refusal(run: Path, settings: BaseModel) -> Iterator[None]:
    """A context in which the refusal to resume the run in folder `run` names the settings that differ.

    Args:
        settings: of this run, complete.
    """
    try:
        yield
    except CheckpointError as error:
        if error.what != OTHER_RUN:
            raise
        raise _explained(error, run / "config.yaml", settings) from error


def _explained(error: CheckpointError, path: Path, settings: BaseModel) -> CheckpointError:
    try:
        before = _flat(resolve_settings(type(settings), {}, path))
    except ConfigError:  # the file was changed or is gone
        return error
    now = _flat(settings)
    differing = [
        name for name in {**before, **now} if name not in _FREE | _PLACES and before.get(name) != now.get(name)
    ]
    if not differing:
        what = "the checkpoint belongs to a run with the same settings, but with other rows or another base model"
        hint = "bring back the rows and the model of that run, or start anew with --overwrite"
        return CheckpointError(what, where=error.where, hint=hint)
    then, today = (", ".join(f"{name} {values.get(name)}" for name in differing) for values in (before, now))
    hint = "repeat the command with the settings of the run, or start anew with --overwrite"
    return CheckpointError(
        "the checkpoint belongs to a run with other settings", where=error.where, expected=then, got=today, hint=hint
    )


def _flat(settings: BaseModel) -> dict[str, object]:
    """Every setting by its dotted name, as JSON data."""
    flat: dict[str, object] = {}
    for name, value in settings.model_dump(mode="json").items():
        is_section = isinstance(getattr(settings, name), BaseModel)
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if is_section else {name: value}
    return flat
