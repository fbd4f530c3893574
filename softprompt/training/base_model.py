"""Loads the base model that the settings of a run name."""

from __future__ import annotations

import os
from typing import Protocol

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model


class _Settings(Protocol):
    """Settings about the base model that training, sweeps and distillation share."""

    @property
    def base_model(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def load_in(self) -> str | None: ...
    @property
    def device_map(self) -> str | None: ...


def load_base_model(settings: _Settings, *, fsdp: bool = False, trust_remote_code: bool = False) -> FrozenLM:
    """The base model of a run, sharded also under `accelerate launch --use_fsdp`. Raises as `load_model`."""
    fsdp = fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return load_model(
        settings.base_model,
        dtype=settings.dtype,
        device=settings.device,
        load_in=settings.load_in,
        device_map=settings.device_map,
        fsdp=fsdp,
        trust_remote_code=trust_remote_code,
    )
