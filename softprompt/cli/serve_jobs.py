"""`softprompt serve --jobs`: the store of jobs, its base model and quotas, and the workers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.engine.registry import BaseModelOptions, missing_packages
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.server.config import ServerConfig

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.server.job_prompts import JobPrompts

_PACKAGES = ("python_multipart", "sqlalchemy")
_OF_JOBS = ("store", "store_files", "workers", "worker_device", "share_prompts")  # settings that mean nothing without


@dataclass(frozen=True)
class ServedJobs:
    """The jobs of a server.

    Attributes:
        store: where they are kept.
    """

    settings: ServerConfig
    store: JobStore

    @property
    def prompts(self) -> Path:
        """Folder of the soft prompts that jobs make."""
        return self.store.home.resolve() / "prompts"

    def configure(self, lm: FrozenLM, name: str, place: str, adapter: str | None, base: BaseModelOptions) -> None:
        """Tell the workers which base model to load, and the store its quotas.

        Args:
            name: of the base model in requests.
            place: what it was loaded from.
            adapter: folder of a PEFT adapter.

        Raises ConfigError for a model that workers do not load.
        """
        from softprompt.jobs.records import JobBase
        from softprompt.server.limits import parse_quotas

        if base.trust_remote_code:
            raise ConfigError("workers run no code that comes with a model", where="--jobs", got="--trust-remote-code")
        described = JobBase(
            name,
            str(Path(place).resolve()) if Path(place).exists() else place,
            str(self.prompts),
            str(Path(adapter).resolve()) if adapter else "",
            lm.geometry.fingerprint,
            base.dtype,
            base.load_in or "",
            self.settings.worker_device,
        )
        self.store.configure(described, parse_quotas(self.settings.limit))

    def names(self, lm: FrozenLM) -> JobPrompts:
        """The soft prompts of finished jobs, as requests call them."""
        from softprompt.server.catalogue import Catalogue
        from softprompt.server.job_prompts import JobPrompts

        self.prompts.mkdir(parents=True, exist_ok=True)
        catalogue = Catalogue(lm.geometry, self.prompts, {})
        return JobPrompts(self.store, catalogue, shared=self.settings.share_prompts)

    def workers(self, grace_s: float) -> contextlib.AbstractContextManager[object]:
        """A context in which the workers run."""
        from softprompt.jobs.processes import WorkerProcesses
        from softprompt.jobs.queue import expire_leases, worker_name

        settings = self.settings
        place = settings.store if "://" in settings.store else str(Path(settings.store).resolve())
        options = ["--store", place, "--store-files", str(self.store.home.resolve())]
        options += ["--device", settings.worker_device, "--log", settings.log]
        return WorkerProcesses(
            options, settings.workers, grace_s, lambda pid: expire_leases(self.store, worker_name(pid))
        )


def open_jobs(settings: ServerConfig) -> ServedJobs | None:
    """The store of jobs; None without --jobs. Raises ConfigError, MissingExtraError, StoreError."""
    if not settings.jobs:
        fields = ServerConfig.model_fields
        idle = [name for name in _OF_JOBS if getattr(settings, name) != fields[name].default]
        if idle:
            flag = f"--{idle[0].replace('_', '-')}"
            raise ConfigError("this is for fine-tuning jobs, which are off", where=flag, hint="add --jobs")
        return None
    if missing := missing_packages(_PACKAGES):
        hint = "pip install 'softprompt[serve]'"
        raise MissingExtraError(
            "jobs need packages of their own", where="--jobs", got=f"no {', '.join(missing)}", hint=hint
        )
    from softprompt.jobs.store import JobStore

    return ServedJobs(settings, JobStore.open(settings.store, settings.store_files))
