"""Registers the built-in engine, `--engine transformers`, without importing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softprompt.engine.registry import BaseModelOptions, EngineSpec, NoOptions, register_engine

if TYPE_CHECKING:
    from softprompt.engine.base import Engine
    from softprompt.models.frozen_lm import FrozenLM


def _create(lm: FrozenLM, options: NoOptions, base: BaseModelOptions) -> Engine:
    from softprompt.engine.transformers_engine import TransformersEngine

    return TransformersEngine(lm)


register_engine(EngineSpec("transformers", "Continuous batching on one device, built in.", NoOptions, _create))
