"""A serving engine in one file, as docs/guides/extending.md shows it: it repeats the last token."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pydantic import BaseModel, Field

from softprompt.engine.base import Engine, EngineStats, Job, Token
from softprompt.engine.registry import BaseModelOptions, EngineSpec
from softprompt.errors import EngineError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.settings import flag


class ToyOptions(BaseModel):
    """Options of the toy engine."""

    times: int = Field(default=2, ge=1, json_schema_extra=flag("--own-option", help="How often the text is echoed."))
    shout: bool = Field(default=False, json_schema_extra=flag("--shout/--whisper", help="In capitals."))


class ToyEngine:
    """Answers with the last token of the text, again and again."""

    failure = ""

    def __init__(self, lm: FrozenLM, times: int) -> None:
        self.context, self._times = lm.geometry.max_positions, times
        self._prompts: dict[str, Prefix] = {}

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load(self, name: str, prefix: Prefix) -> None:
        self._prompts[name] = prefix

    async def unload(self, name: str) -> None:
        del self._prompts[name]

    def loaded(self) -> tuple[str, ...]:
        return tuple(self._prompts)

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        if job.prompt is not None and job.prompt not in self._prompts:
            raise EngineError("not loaded", got=job.prompt)
        for i in range(self._times):
            yield Token(job.ids[-1], "length" if i == self._times - 1 else "")

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0.0)

    def check_integrity(self) -> None: ...


def create_toy(lm: FrozenLM, options: ToyOptions, base: BaseModelOptions) -> Engine:
    return ToyEngine(lm, options.times)


TOY = EngineSpec("toy", "Echoes.", ToyOptions, create_toy)
