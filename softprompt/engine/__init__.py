"""Engines that run many requests with many soft prompts in one batch; what a server asks of them."""

from softprompt.engine.capacity import Capacity
from softprompt.engine.interface import Engine, Job, Penalties, Stats, Token
from softprompt.engine.transformers_engine import TransformersEngine

__all__ = ["Capacity", "Engine", "Job", "Penalties", "Stats", "Token", "TransformersEngine"]
