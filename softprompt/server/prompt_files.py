"""Soft prompts as files, for a caller: their cards, curves and archives, and their deletion.

Whoever may use a soft prompt may see what it is. Its files, and readings of it, are for those whose rows made it: the
owner of its job, and the admin. The operator's own soft prompts are the admin's, and without any keys everyone's to
read, since then everyone is at the operator's machine. Deleting them always needs the admin's key.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from anyio.to_thread import run_sync

from softprompt.errors import StoreError
from softprompt.prompts import store
from softprompt.prompts.archive import write_archive
from softprompt.prompts.card import Card
from softprompt.server.api_keys import ANYONE, Caller
from softprompt.server.error_responses import ApiError, invalid, shown_value, unknown_model
from softprompt.server.job_prompts import JOB_KEYS, ServedModel
from softprompt.server.prompt_cache import as_api_error
from softprompt.server.service import Service

_IN_MEMORY = 2**20  # bytes of an archive


@dataclass(frozen=True)
class StoredModel:
    """A soft prompt of a request's model.

    Attributes:
        id: what the request calls it.
        key: its name in the prompt cache.
        folder: where its files are.
        created: when its card was written, in seconds since 1970.
        owner: id of the key whose job made it; "" of the operator's.
        job: id of that job; "" if no job made it.
    """

    id: str
    key: str
    folder: Path
    created: int
    owner: str = ""
    job: str = ""

    def is_readable(self, caller: Caller) -> bool:
        """Whether its files and readings of it are for the caller."""
        return self.is_deletable(caller) or (not self.owner and caller == ANYONE)

    def is_deletable(self, caller: Caller) -> bool:
        """Whether the caller may delete it."""
        return caller.admin or (bool(self.owner) and self.owner == caller.owner)


class PromptFiles:
    """The files of a service's soft prompts."""

    def __init__(self, service: Service) -> None:
        self._service, self._directory = service, service.directory

    async def find(self, model: str, caller: Caller, *, bring: bool = True) -> StoredModel:
        """The soft prompt that a model's name stands for. Raises ApiError.

        Args:
            bring: fetch its files if they are far away; else it is as unknown as one that is nowhere.
        """
        key = await self._directory.find(model, caller)
        if key is None:
            raise invalid("This is the base model, which has no soft prompt.", "model")
        if await run_sync(self._service.catalogue.is_router, key):
            raise invalid("This is a router, which names soft prompts and has no files of its own.", "model")
        folder = await (self._directory.path(key) if bring else self._directory.path_here(key))
        if folder is None:
            raise unknown_model(model, ())
        job = None
        if key.startswith(JOB_KEYS):
            job = await self._directory.job_prompt(key.removeprefix(JOB_KEYS), caller)
        created = await run_sync(_written, folder)
        return StoredModel(model, key, folder, created, job.owner if job else "", job.job if job else "")

    async def readable(self, model: str, caller: Caller) -> StoredModel:
        """A soft prompt whose files are for the caller. Raises ApiError, 403 if they are not."""
        found = await self.find(model, caller)
        if not found.is_readable(caller):
            message = f"The files of {shown_value(model)} are for its owner and the admin: this key may use it only."
            raise ApiError(403, message, "not_the_owner", param="model")
        return found

    async def card(self, found: StoredModel) -> Card:
        """Its card. Raises ApiError."""
        return await as_api_error(run_sync(store.load_card, found.folder))

    async def archive(self, found: StoredModel) -> IO[bytes]:
        """A zip of its files, to be read from its beginning and closed. Raises ApiError."""
        return await as_api_error(run_sync(_archive, found.folder))

    async def delete(self, model: str, caller: Caller) -> None:
        """Delete a soft prompt with its files; requests that hold it end. Raises ApiError."""
        if model == self._service.name:
            raise ApiError(403, "The base model cannot be deleted.", "model_not_deletable", param="model")
        found = await self.find(model, caller)
        if not found.is_deletable(caller):
            message = f"The soft prompt {shown_value(model)} is not this key's: its owner and the admin can delete it."
            raise ApiError(403, message, "not_the_owner", param="model")
        cache = self._service.prompt_cache
        cache.unload(found.key)
        try:
            if not await run_sync(self._directory.remove, found.key):
                raise unknown_model(model, ())
        except StoreError as error:
            raise ApiError(403, f"It stays: {error.what}.", "model_not_deletable", param="model") from error
        finally:
            cache.reopen(found.key)  # another one of this name may come

    async def page(self, caller: Caller, search: str, after: str, limit: int) -> tuple[list[ServedModel], bool]:
        """The caller's soft prompts whose names hold a text, newest first, each once; and whether more follow.

        Raises ApiError for an unknown `after`.
        """
        models = await self._directory.models(caller)
        names = {model.id for model in models}
        once = [model for model in models if model.root not in names or model.root == model.id]
        found = [model for model in once if search.lower() in model.id.lower()]
        found.sort(key=lambda model: (-model.created, model.id))
        ids = [model.id for model in found]
        if after and after not in ids:
            raise invalid(f"after: there is no object {shown_value(after)} in this list.", "after")
        first = ids.index(after) + 1 if after else 0
        return found[first : first + limit], len(found) > first + limit


def _written(folder: Path) -> int:
    try:
        return int((folder / store.CARD).stat().st_mtime)
    except OSError:  # it was deleted just now
        return 0


def _archive(folder: Path) -> IO[bytes]:
    file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        write_archive(folder, folder.name, file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
