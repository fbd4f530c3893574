"""Whether a server would answer: everything is loaded once and asked for one token."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from softprompt.engine.base import Penalties
from softprompt.errors import SoftpromptError
from softprompt.inference.sampling import Sampling
from softprompt.server.catalogue import OTHER_BASE
from softprompt.server.prompt_reader import EncodedPrompt, PromptReader, SoftPromptReader
from softprompt.server.request import GenerationRequest
from softprompt.server.service import Service

TEXT = "Where is my parcel?"


async def self_check(service: Service) -> AsyncGenerator[tuple[str, str], None]:
    """(model, fault) of the base model and every soft prompt, as they are done; "" is no fault.

    The folder may hold soft prompts for other base models: they are left out, unless one is pinned.
    """
    yield service.name, await _answered(service, service.name)
    for entry in service.catalogue.entries():
        if entry.fault == OTHER_BASE and entry.name not in service.library.pinned:
            continue
        yield entry.name, entry.fault or await _answered(service, f"{service.name}:{entry.name}")


async def _answered(service: Service, model: str) -> str:
    ask = GenerationRequest(model, (_text,), "prompt", 1, Sampling(1), 1, Penalties(), None)
    try:
        async with service.working(ask) as work, aclosing(service.answers(work, time.monotonic())) as pieces:
            async for _ in pieces:
                pass
    except SoftpromptError as error:
        cause = error.__cause__
        return cause.what if isinstance(cause, SoftpromptError) else error.what
    return ""


def _text(reader: PromptReader) -> EncodedPrompt:
    """Some text; for a template with several fields it stands in each."""
    fields = reader.formatted.template.names if isinstance(reader, SoftPromptReader) else ()
    return reader.text(json.dumps(dict.fromkeys(fields, TEXT)) if len(fields) > 1 else TEXT, "text")
