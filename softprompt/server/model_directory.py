"""The models that requests can name: the base model, soft prompts and routers of the catalogue, and those of jobs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from softprompt.engine.base import Engine
from softprompt.errors import StoreError, UnreachableError
from softprompt.formatting.chat_template import ChatTemplateOf
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.model_card import public_name
from softprompt.prompts.router import Router, load_router
from softprompt.server.api_keys import Caller
from softprompt.server.catalogue import Catalogue, CatalogueEntry
from softprompt.server.chat_reading import SystemTurns
from softprompt.server.error_responses import ApiError, store_failed, unknown_model, unknown_prompt
from softprompt.server.job_prompts import JOB_KEYS, JobPrompts, ServedModel, job_key
from softprompt.server.metrics import PromptCacheStats
from softprompt.server.prompt_cache import CachedPrompt, PromptCache, as_api_error
from softprompt.server.prompt_reader import SoftPromptReader, load_reader

log = structlog.get_logger("softprompt.server")
_FAR_AWAY_AT_ONCE = 8  # calls to a store far away


class ModelDirectory:
    """Finds models by name, and brings, loads and unloads their soft prompts.

    Args:
        lm: reads texts for the soft prompts.
        engine: holds the loaded soft prompts.
        catalogue: the soft prompts on disk.
        name: name of the base model in requests.
        places: maximum number of soft prompts in the engine.
        pinned: soft prompts loaded at the start and never evicted.
        chat_template: whose to use if the model has another one than a soft prompt was trained with; "": refuse it.
        system_turns: what becomes of system turns that soft prompts were not trained with; "": as their cards say.
        jobs: the soft prompts of fine-tuning jobs, each for its owner.

    Attributes:
        prompt_cache: the soft prompts in the engine.
    """

    def __init__(
        self,
        lm: FrozenLM,
        engine: Engine,
        catalogue: Catalogue,
        *,
        name: str,
        places: int,
        pinned: frozenset[str] = frozenset(),
        chat_template: ChatTemplateOf = "",
        system_turns: SystemTurns = "",
        jobs: JobPrompts | None = None,
    ) -> None:
        self._lm, self.catalogue = lm, catalogue
        self._jobs = jobs
        self.name = name
        self._chat_template: ChatTemplateOf = chat_template
        self._system_turns: SystemTurns = system_turns
        self.prompt_cache = PromptCache(engine, self._read, pinned, places, self._bring)
        # A store of soft prompts far away may hang: those who wait for it do not keep the threads that others need.
        self._far_away = anyio.CapacityLimiter(_FAR_AWAY_AT_ONCE)

    async def load(self, name: str) -> None:
        """Read the newest version of a soft prompt now; routers are read for every request anyway. Raises ApiError."""
        try:
            await run_sync(self.catalogue.fetch, name, limiter=self._far_away, abandon_on_cancel=True)
        except UnreachableError as error:
            raise store_failed() from error
        except StoreError as error:
            log.warning("store_error", prompt=name, error=error.what)
        if await run_sync(self.catalogue.is_router, name):
            self.prompt_cache.reopen(name)
        else:
            await self.prompt_cache.load(name)

    async def models(self, caller: Caller | None) -> list[ServedModel]:
        """The soft prompts and routers that requests of a caller can name."""
        entries = await run_sync(self.catalogue.entries)
        served = {
            self.model_id(entry): ServedModel(self.model_id(entry), entry.name, entry.created, entry=entry)
            for entry in entries
            if not entry.fault and not self.prompt_cache.is_closed(entry.name)
        }
        if self._jobs is not None:
            taken = {self.name, *(entry.name for entry in entries)}
            jobs = await run_sync(self._jobs.list, caller)
            served |= {model.id: model for model in jobs if model.id not in taken}
        return list(served.values())

    async def entry(self, name: str) -> CatalogueEntry:
        """The catalogue entry of one soft prompt, even if it cannot be served. Raises ApiError 404."""
        for entry in await run_sync(self.catalogue.entries):
            if entry.name == name:
                return entry
        raise unknown_prompt(name)

    def model_id(self, entry: CatalogueEntry) -> str:
        """A prompt's name in requests: NAME, or BASE:NAME if the base model has that name."""
        return f"{self.name}:{entry.name}" if entry.name == self.name else entry.name

    @contextlib.asynccontextmanager
    async def hold(self, prompt: str, model: str) -> AsyncIterator[CachedPrompt]:
        """`PromptCache.hold` for a request: a prompt that was unloaded just now is an unknown model."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(self.prompt_cache.hold(prompt))
            except ApiError as error:
                if error.status != 404:
                    raise
                raise unknown_model(model, ()) from None
            yield held

    async def find(self, model: str, caller: Caller | None = None) -> str | None:
        """The name in the prompt cache of a model that a caller may use; None for the base model alone.

        Raises ApiError 404, for what is another caller's, too.
        """
        if model == self.name:
            return None
        prompt = model.removeprefix(f"{self.name}:")
        if await self._is_here(prompt):
            found = prompt
        elif (job := await self.job_prompt(prompt, caller)) is not None:
            found = job_key(job)
        else:
            found = prompt if await self._appears(prompt) else None
        if found is not None and not self.prompt_cache.is_closed(found):
            return found
        raise unknown_model(model, [self.name, *(served.id for served in await self.models(caller))])

    async def job_prompt(self, name: str, caller: Caller | None) -> ServedModel | None:
        """The soft prompt of a fine-tuning job that a caller may use under this name; None if there is none."""
        return None if self._jobs is None else await run_sync(self._jobs.find, name, caller)

    async def described(self, model: ServedModel) -> ServedModel:
        """A soft prompt of a job with what the catalogue says of it."""
        return model if self._jobs is None else await run_sync(self._jobs.described, model)

    async def path(self, key: str) -> Path | None:
        """The folder of a soft prompt, brought to this machine, by its name in the prompt cache. Raises ApiError."""
        await as_api_error(self._bring(key))
        return await self.path_here(key)

    async def path_here(self, key: str) -> Path | None:
        """The folder of a soft prompt that is on this machine, by its name in the prompt cache."""
        return await run_sync(self._path, key)

    def remove(self, key: str) -> bool:
        """Delete a soft prompt or router, by its name in the prompt cache, with its files; False if it is gone.

        Raises StoreError for one that is not the server's to delete. It writes files: call it in a worker thread.
        """
        jobs, name = self._jobs, key.removeprefix(JOB_KEYS)
        return jobs.remove(name) if jobs is not None and key.startswith(JOB_KEYS) else self.catalogue.remove(name)

    async def router(self, name: str) -> Router:
        """The router of this name. Raises ApiError, StoreError."""
        await self._bring(name)
        path = await run_sync(self.catalogue.router, name)
        if path is None:
            raise unknown_prompt(name)
        return await run_sync(load_router, path, self._lm.geometry)

    async def _is_here(self, name: str) -> bool:
        """Whether there is a soft prompt or router of this name; the prompt cache also holds those of jobs."""
        if name.startswith(JOB_KEYS):
            return False
        return self.prompt_cache.users(name) is not None or await run_sync(self.catalogue.knows, name)

    async def _appears(self, name: str) -> bool:
        """Whether a soft prompt or router of this name came just now."""
        if not store.PROMPT_NAME.fullmatch(name):
            return False
        try:
            await run_sync(self.catalogue.look_again, limiter=self._far_away, abandon_on_cancel=True)
        except StoreError as error:
            log.warning("store_error", error=error.what)
            raise store_failed() from error
        return await run_sync(self.catalogue.knows, name)

    async def _bring(self, name: str) -> None:
        """Bring the listed version of a soft prompt to this disk; an older one that is here is used if that fails."""
        if await run_sync(self.catalogue.is_current, name):
            return
        try:
            await run_sync(self.catalogue.fetch, name, limiter=self._far_away, abandon_on_cancel=True)
        except StoreError as error:
            log.warning("store_error", prompt=name, error=error.what)
            if (self.catalogue.path(name) or self.catalogue.router(name)) is None:
                raise (store_failed() if isinstance(error, UnreachableError) else error) from error

    async def _read(self, name: str) -> SoftPromptReader:
        path = await self.path_here(name)
        if path is None:
            raise unknown_prompt(name)
        return await run_sync(load_reader, self._lm, path, self._chat_template, self._system_turns)

    def _path(self, key: str) -> Path | None:
        job = None if self._jobs is None else self._jobs.path(key)
        return job or self.catalogue.path(key)

    def stats(self) -> PromptCacheStats:
        """The counts of the prompt cache."""
        cache = self.prompt_cache
        return PromptCacheStats(len(cache), cache.hits, cache.misses, cache.evictions)


def served_name(model: str) -> str:
    """A base model's name in requests: its Hub id or built-in name, or the last part of its path."""
    path = Path(model).expanduser()
    if not path.exists():
        return public_name(model)
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
