"""Engines that run many requests with many soft prompts in one batch; what a server asks of them."""

from softprompt.engine.interface import Engine, Job, Penalties, Stats, Token

__all__ = ["Engine", "Job", "Penalties", "Stats", "Token"]
