"""A server on a real socket of this machine, its event loop in a thread, and the soft prompts it serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI

from softprompt.data.template import Template
from softprompt.errors import EngineError
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.prompts.prompt_store import PromptStore
from softprompt.server.api_keys import ApiKeys
from softprompt.server.app import create_app
from softprompt.server.catalogue import Catalogue
from softprompt.server.chat_reading import SystemTurns
from softprompt.server.job_prompts import JobPrompts
from softprompt.server.limits import Limits
from softprompt.server.rate_limit import RateLimit
from softprompt.server.routes.studio import ReportHashes
from softprompt.server.service import Service
from softprompt.server.uvicorn_server import listen, serve
from tests.support.cases import random_prompt
from tests.support.server_oracle import OracleEngine
from tests.support.tiny import tiny_lm

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore  # needs SQLAlchemy, which the tests of vLLM do without

BASE, USER, ADMIN = "tiny-llama", "a-user-key-of-the-tests", "the-admin-key-of-the-tests"
TEMPLATES = {
    "review": ("kv", Template("text", "Review: {text}\nSentiment:")),
    "question": ("embedding", Template("text", "Q: {prompt}\nA:")),
    "pair": ("embedding", Template("text", "{text}\n{text2}\n=")),
    "talk": ("kv", Template("chat")),
    "kind": ("embedding", Template("chat", "", "Be kind.")),
    "asked": ("embedding", Template("chat", "{text}")),
    "stern": ("kv", Template("chat", "Say: {text}", "Be stern.")),
}
T = TypeVar("T")


def save_prompt(folder: Path, form: str, template: Template, seed: int, lm: FrozenLM | None = None) -> Card:
    """A random soft prompt as training leaves it."""
    lm = lm or tiny_lm("llama", bos=True)
    prompt = random_prompt(lm, form, 4 + seed, seed)
    layout = layout_for(lm, template, form)
    facts: dict[str, Any] = {"name": folder.name, "form": form, "n_tokens": 1, "sha256": "0" * 64}
    facts |= {"base": lm.geometry.to_dict(), "template": template.to_dict(), "layout": layout}
    return store.save(folder, prompt, Card.model_validate(facts), overwrite=True)


def save_all(folder: Path) -> Path:
    """One soft prompt for every kind of template, one for another base model and a damaged one."""
    for seed, (name, (form, template)) in enumerate(TEMPLATES.items(), 1):
        save_prompt(folder / name, form, template, seed)
    save_prompt(folder / "stranger", "embedding", TEMPLATES["review"][1], 9, tiny_lm("qwen2"))
    save_prompt(folder / "torn", "embedding", TEMPLATES["review"][1], 10)
    (folder / "torn" / store.TENSORS).write_bytes(b"no tensors")
    return folder


@dataclass
class Live:
    """A running server."""

    port: int
    service: Service
    engine: OracleEngine
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def ask(
        self, method: str, path: str, body: Any = None, key: str = USER, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {key}"} if key else {}
        sent |= {"content-type": "application/json"} if raw is not None else {}
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(method, path, raw, sent | dict(headers or {}))
            return Reply(connection.getresponse())

    def idle(self) -> None:
        """Nothing runs, waits or is held any more, and everything adds up."""

        async def wait() -> None:
            async with asyncio.timeout(10):
                while self.engine.running or self.engine.waiting or self.service.rate_limit.requests:
                    await asyncio.sleep(0.01)
            await self.service.prompt_cache.settle()
            assert self.service.rate_limit.jobs == 0
            assert all(self.service.prompt_cache.users(name) in (None, 0) for name in TEMPLATES)
            self.service.prompt_cache.check_integrity()

        self.on_loop(wait())


class Reply:
    """What came back, read to its end."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.raw = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        """Of the error object, whose shape is checked."""
        error = self.json["error"]
        assert self.json.keys() == {"error"} and error.keys() == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"]
        return error["code"]

    @property
    def events(self) -> list[Any]:
        """Of a stream, without comments and [DONE], which must be there."""
        lines = [line for line in self.raw.decode().split("\n\n") if not line.startswith(":")]
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@contextlib.contextmanager
def live(
    folder: Path | PromptStore,
    *,
    keys: ApiKeys | None = None,
    limits: Limits | None = None,
    places: int = 4,
    slots: int = 4,
    rate: str = "",
    pinned: Mapping[str, Path] | None = None,
    hosts: frozenset[str] = frozenset(),
    origins: tuple[str, ...] = (),
    system_turns: SystemTurns = "",
    log_content: bool = False,
    lm: FrozenLM | None = None,
    jobs: JobStore | None = None,
    job_prompts: JobPrompts | None = None,
    studio: bool = False,
    reports: ReportHashes | None = None,
) -> Iterator[Live]:
    """A server for the tiny model, or another one, until the block ends; it must end by itself."""
    lm, started = lm or tiny_lm("llama", bos=True), threading.Event()
    engine = OracleEngine(lm, slots)
    catalogue = Catalogue(lm.geometry, folder, pinned or {})
    names = frozenset(pinned or ())
    service = Service(
        lm,
        engine,
        catalogue,
        name=BASE,
        places=places,
        pinned=names,
        rate_limit=RateLimit(limits or Limits(drain_s=1), rate),
        system_turns=system_turns,
        jobs=job_prompts,
    )
    keys = ApiKeys([USER], [ADMIN]) if keys is None else keys
    app = create_app(
        service, keys, hosts=hosts, origins=origins, log_content=log_content, jobs=jobs, studio=studio, reports=reports
    )
    listening, loops = listen("127.0.0.1", 0), list[asyncio.AbstractEventLoop]()
    port: int = listening.getsockname()[1]

    async def main() -> None:
        await service.start()
        loops.append(asyncio.get_running_loop())
        started.set()
        with contextlib.suppress(EngineError):  # a test made it fail
            await serve(service, app, listening)
        await service.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(30)
    try:
        yield Live(port, service, engine, app, loops[0])
    finally:
        service.rate_limit.draining = True
        thread.join(120)
        assert not thread.is_alive()
