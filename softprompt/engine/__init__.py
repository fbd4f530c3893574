"""Engines that run many requests with many soft prompts in one batch; what a server asks of them.

The Transformers engine is imported when it is asked for: it is built on parts of Transformers that move, and the vLLM
engine (`softprompt.vllm`) brings another version of it.
"""

from typing import TYPE_CHECKING, Any

from softprompt.engine.interface import Engine, Job, Penalties, Stats, Token

if TYPE_CHECKING:
    from softprompt.engine.capacity import Capacity
    from softprompt.engine.transformers_engine import TransformersEngine

__all__ = ["Capacity", "Engine", "Job", "Penalties", "Stats", "Token", "TransformersEngine"]


def __getattr__(name: str) -> Any:
    if name == "Capacity":
        from softprompt.engine.capacity import Capacity

        return Capacity
    if name == "TransformersEngine":
        from softprompt.engine.transformers_engine import TransformersEngine

        return TransformersEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
