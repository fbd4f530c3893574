"""Self-check of a server (`serve --check`): loads every prompt once and generates one token with it."""

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
    """Yields (model, fault) for the base model and every soft prompt; fault is "" if it works.

    Soft prompts for other base models in the folder are skipped, unless pinned.
    """
    yield service.name, await _fault(service, service.name)
    for entry in service.catalogue.entries():
        if entry.fault == OTHER_BASE and entry.name not in service.prompt_cache.pinned:
            continue
        yield entry.name, entry.fault or await _fault(service, f"{service.name}:{entry.name}")


async def _fault(service: Service, model: str) -> str:
    request = GenerationRequest(model, (_text,), "prompt", 1, Sampling(1), 1, Penalties(), None)
    try:
        async with service.working(request) as work, aclosing(service.answers(work, time.monotonic())) as pieces:
            async for _ in pieces:
                pass
    except SoftpromptError as error:
        cause = error.__cause__
        return cause.what if isinstance(cause, SoftpromptError) else error.what
    return ""


def _text(reader: PromptReader) -> EncodedPrompt:
    """A sample text; for a template with several fields, one in each field."""
    fields = reader.formatted.template.names if isinstance(reader, SoftPromptReader) else ()
    return reader.text(json.dumps(dict.fromkeys(fields, TEXT)) if len(fields) > 1 else TEXT, "text")
