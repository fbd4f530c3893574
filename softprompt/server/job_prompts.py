"""The soft prompts of fine-tuning jobs: whose they are, what requests call them, and where they lie.

Each is its owner's: another caller's request for it is one for an unknown model. They lie in a folder of their own,
never in that of the operator's soft prompts, whose names go before the short names of jobs. Methods read files and the
jobs' database, so call them in a worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.jobs.records import ModelOwner
from softprompt.server.api_keys import Caller
from softprompt.server.catalogue import Catalogue, CatalogueEntry

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore  # needs SQLAlchemy, which a server without jobs does without

JOB_KEYS = "jobs/"  # of the names in the prompt cache; no soft prompt's own name has a slash


@dataclass(frozen=True)
class ServedModel:
    """A soft prompt, as lists of models show it.

    Attributes:
        id: what requests call it.
        root: its name in the folder, or a short name's full name.
        created: seconds since 1970.
        owner: id of the key whose job made it; "" of the operator's.
        job: id of that job.
        entry: its files as the catalogue lists them, where models are listed.
    """

    id: str
    root: str
    created: int
    owner: str = ""
    job: str = ""
    entry: CatalogueEntry | None = None


class JobPrompts:
    """Soft prompts of finished jobs.

    Args:
        store: knows the owners.
        catalogue: of the folder that workers write to.
        shared: whether every caller may use them all.
    """

    def __init__(self, store: JobStore, catalogue: Catalogue, *, shared: bool = False) -> None:
        self._store, self._catalogue = store, catalogue
        self._shared = shared

    def find(self, name: str, caller: Caller | None) -> ServedModel | None:
        """The soft prompt that a caller may use under this name: ft:BASE:SUFFIX:ID, that of a checkpoint, or SUFFIX of
        the newest job that has it, the caller's own before others'."""
        if caller is None:
            return None
        found = self._store.model(name, caller.owner)
        if found is None and self._seen(caller) is None:
            found = self._store.model(name, None)
        if found is not None and self._fault(found):
            found = self._older(name, caller)
        return None if found is None else _served(found)

    def list(self, caller: Caller | None) -> list[ServedModel]:
        """The soft prompts that a caller may use, by their full names and then by the short ones, newest first."""
        if caller is None:
            return []
        found = [each for each in self._store.models(self._seen(caller)) if not self._fault(each)]
        entries = {entry.name: entry for entry in self._catalogue.entries()}
        short: dict[str, ServedModel] = {}
        for each in sorted(found, key=lambda each: each.owner != caller.owner):
            if name := short_name(each.model):
                made = ServedModel(name, each.model, each.created_at, each.owner, each.job, entries.get(each.prompt))
                short.setdefault(name, made)
        return [*(replace(_served(each), entry=entries.get(each.prompt)) for each in found), *short.values()]

    def described(self, model: ServedModel) -> ServedModel:
        """A found soft prompt with its entry."""
        entries = {entry.name: entry for entry in self._catalogue.entries()}
        return replace(model, entry=entries.get(model.root))

    def path(self, key: str) -> Path | None:
        """The folder of a soft prompt by its name in the prompt cache; None if it is no job's, or is gone."""
        return self._catalogue.path(key.removeprefix(JOB_KEYS)) if key.startswith(JOB_KEYS) else None

    def remove(self, prompt: str) -> bool:
        """Delete a soft prompt by its folder's name; False if it is gone. Raises StoreError if the disk refuses."""
        return self._catalogue.remove(prompt)

    def _older(self, short: str, caller: Caller) -> ModelOwner | None:
        """The newest soft prompt of this short name that was not deleted."""
        for owner in (caller.owner, self._seen(caller)):
            for each in self._store.models(owner):
                if short_name(each.model) == short and not self._fault(each):
                    return each
        return None

    def _seen(self, caller: Caller) -> str | None:
        return None if self._shared else caller.seen

    def _fault(self, model: ModelOwner) -> bool:
        return self._catalogue.path(model.prompt) is None


def job_key(model: ServedModel) -> str:
    """A soft prompt's name in the prompt cache."""
    return f"{JOB_KEYS}{model.root}"


def short_name(model: str) -> str:
    """SUFFIX of ft:BASE:SUFFIX:ID; "" if it has none."""
    return model.split(":")[-2]


def _served(model: ModelOwner) -> ServedModel:
    return ServedModel(model.model, model.prompt, model.created_at, model.owner, model.job)
