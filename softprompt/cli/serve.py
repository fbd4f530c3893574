"""`softprompt serve`: the options of the server, and `--check`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    BaseAdapter,
    Device,
    DeviceSplit,
    Dtype,
    Flags,
    LoadIn,
    Model,
    TrustRemoteCode,
    with_settings,
)
from softprompt.cli.serve_jobs import ServedJobs, open_jobs
from softprompt.engine.registry import AnyEngineSpec, BaseModelOptions, missing_packages
from softprompt.errors import ConfigError, MissingExtraError, UnreachableError
from softprompt.server.config import ServerConfig
from softprompt.settings import resolve_settings

if TYPE_CHECKING:
    from softprompt.prompts.prompt_store import PromptStore
    from softprompt.server.rate_limit import RateLimit
    from softprompt.server.routes.studio import ReportHashes
    from softprompt.server.service import Service

SERVER_PACKAGES = ("fastapi", "limits", "prometheus_client", "structlog", "uvicorn")  # the extra `serve`


@with_settings(ServerConfig, repeatable=["prompt", "limit", "allow_host", "allow_origin"], defaults={})
def serve_command(
    context: typer.Context,
    flags: Flags,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    check: Annotated[bool, typer.Option("--check", help="Load everything, answer once with each, and exit.")] = False,
    engine: Annotated[str, typer.Option(help="What runs the model, see below.")] = "transformers",
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve soft prompts under OpenAI's API: the model "tone" is the base model with the soft prompt tone.

    softprompt serve --model smollm2-135m --prompts-dir prompts

    softprompt serve --model smollm2-135m --prompt legal=org/legal@v1 --prompts-dir s3://bucket/prompts

    Requests cannot make it load anything but soft prompts of that folder. Keys come from files or the environment only.
    """
    settings = resolve_settings(ServerConfig, flags)
    spec = engine_named(engine)
    base = BaseModelOptions(dtype, device, trust_remote_code, load_in, device_map)
    chosen = EngineChoice(spec, parse_engine_options(spec, context.args), base, model, base_adapter)
    run_serve(settings, chosen, check=check)


def run_serve(
    settings: ServerConfig, engine: EngineChoice, *, check: bool = False, on_start: Callable[[str], None] | None = None
) -> None:
    """Serve until a signal comes, or with `check` answer once with each model and exit.

    Args:
        on_start: called with the server's address when requests are about to be answered.
    """
    check_installed(engine.spec)
    from softprompt.server.api_keys import ADMIN_ENV, USER_ENV, ApiKeys, read_keys
    from softprompt.server.app import create_app
    from softprompt.server.cors import parse_origins
    from softprompt.server.limits import parse_limits
    from softprompt.server.logs import configure
    from softprompt.server.rate_limit import RateLimit
    from softprompt.server.uvicorn_server import check_address, default_hosts, listen, run_server

    keys = ApiKeys(read_keys(USER_ENV, settings.api_keys), read_keys(ADMIN_ENV, settings.admin_keys))
    rate_limit = RateLimit(parse_limits(settings.limit), settings.rate)
    prompts, origins = find_prompts(settings), parse_origins(settings.allow_origin)
    jobs = None if check else open_jobs(settings)
    check_address(settings.host, keys)
    as_json = settings.log == "json" or (settings.log == "auto" and not sys.stderr.isatty())
    configure("json" if as_json else "console")
    listening = None if check else listen(settings.host, settings.port)
    prepared = replace(engine, base=engine.spec.prepare_base(engine.base))
    service = _load_service(settings, prompts, rate_limit, prepared, jobs)
    if listening is None:
        raise typer.Exit(asyncio.run(_checked(service)))
    hosts = frozenset(map(str.lower, settings.allow_host)) or default_hosts(settings.host)
    app = create_app(
        service,
        keys,
        hosts=hosts,
        origins=origins,
        log_content=settings.log_content,
        openapi=settings.openapi,
        jobs=None if jobs is None else jobs.store,
        studio=settings.studio,
        reports=None if jobs is None else report_hashes(),
    )
    started = partial(on_start or _nothing, _address(settings.host, listening))
    with nullcontext() if jobs is None else jobs.workers(service.limits.drain_s):
        asyncio.run(run_server(service, app, listening, started))


def report_hashes() -> ReportHashes:
    """What the reports of inspections hold besides plain HTML."""
    from softprompt.report.page import page_hashes
    from softprompt.server.routes.studio import ReportHashes

    return ReportHashes(*page_hashes())


def _address(host: str, listening: socket) -> str:
    """The server's address on this machine."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def _nothing(address: str) -> None:
    """There is nobody to tell."""


@dataclass(frozen=True)
class EngineChoice:
    """The chosen engine, its options, and the base model that it runs."""

    spec: AnyEngineSpec
    options: BaseModel
    base: BaseModelOptions
    model: str | None
    adapter: str | None


@dataclass(frozen=True)
class ServedPrompts:
    """The soft prompts that are served: those of a folder or store, on first use, and those named, at the start."""

    folder: Path | PromptStore | None
    pinned: dict[str, Path]
    urls: dict[str, str] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """Soft prompts whose cards name the base model when --model does not. Raises ConfigError if there is none."""
        from softprompt.prompts import store

        paths = list(self.pinned.values())
        folder = self.folder
        if not paths and isinstance(folder, Path):
            paths = [path for path, card in store.list_cards(folder) if not isinstance(card, Exception)]
        elif not paths and folder is not None and not isinstance(folder, Path):
            paths = first_here(folder)
        if not paths:
            raise ConfigError("there is no soft prompt whose card names a base model", hint="give --model")
        return [str(path.resolve()) for path in paths]


def check_installed(engine: AnyEngineSpec) -> None:
    """Raises MissingExtraError if a package of the server or of its engine is missing."""
    if missing := missing_packages(SERVER_PACKAGES):
        got = f"no {', '.join(missing)}"
        raise MissingExtraError("the server needs packages of its own", got=got, hint="pip install 'softprompt[serve]'")
    engine.check_installed()


def find_prompts(settings: ServerConfig) -> ServedPrompts:
    """The soft prompts to serve. Raises ConfigError, StoreError."""
    from softprompt.prompts import store

    pinned = pinned_paths(settings.prompt)
    urls = {name: place for name, _, place in (text.partition("=") for text in settings.prompt) if "://" in place}
    home = None if pinned or not store.home().is_dir() else store.home()
    folder = home if settings.prompts_dir is None else open_store(settings.prompts_dir)
    _check_places(settings.max_loaded, len(pinned), folder)
    return ServedPrompts(folder, pinned, urls)


def open_store(place: str) -> Path | PromptStore:
    """A folder, or the store at a URL, whose listing is read. Raises ConfigError, StoreError."""
    if "://" not in place:
        return Path(place)
    from softprompt.prompts.remote_store import RemoteStore

    opened = RemoteStore(place)
    note = ""
    try:
        opened.look_again()
        if not opened.listing():
            note = f"{opened.shown}: there is no soft prompt yet"
    except UnreachableError as error:
        if not opened.listing():
            raise
        note = f"{error}\nsoft prompts that are on this machine are served"
    if note:
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("warning: ", "yellow"), escaped(note)))
    return opened


def first_here(opened: PromptStore) -> list[Path]:
    """The first soft prompt of a store far away, fetched: its card names the base model."""
    from softprompt.prompts import store

    for name, stored in opened.listing().items():
        if stored.file == store.CARD:
            opened.fetch(name)
            return [path] if (path := opened.here(name)) is not None else []
    return []


def pinned_paths(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of NAME=PLACE or NAME. Raises ConfigError, StoreError for a name that is none."""
    from softprompt.prompts import store

    paths = dict[str, Path]()
    for text in texts:
        name, place = text.split("=", 1) if "=" in text else (text, "")
        if not store.PROMPT_NAME.fullmatch(name):
            expected = "NAME=PLACE or NAME; a name is a-z 0-9 . _ -, not first a dot"
            raise ConfigError("not a soft prompt's name", where="--prompt", expected=expected, got=text)
        if name in paths:
            raise ConfigError("this name is given twice", where="--prompt", got=name)
        is_path = place and ("/" not in place or Path(place).exists())
        paths[name] = Path(place) if is_path else store.find(place or name)
        store.load_card(paths[name])
    return paths


def _check_places(places: int, pinned: int, folder: Path | PromptStore | None) -> None:
    """Refuse a cache that the pinned prompts fill, so that the folder's would wait for ever."""
    if places < pinned + (folder is not None):
        expected = f"at least {pinned + (folder is not None)}: {pinned} given by --prompt, and one of the folder's"
        raise ConfigError("there is no place for the soft prompts", where="--max-loaded", expected=expected, got=places)
    if isinstance(folder, Path) and not folder.is_dir():
        raise ConfigError(
            "no such folder", where="--prompts-dir", got=folder, hint="make it, or name --prompt NAME=PATH"
        )


def _load_service(
    settings: ServerConfig, prompts: ServedPrompts, rate_limit: RateLimit, engine: EngineChoice, jobs: ServedJobs | None
) -> Service:
    """The base model, loaded, with its engine and the soft prompts; the engine is not started."""
    from softprompt.cli.base_model import load_base
    from softprompt.server.catalogue import Catalogue
    from softprompt.server.model_directory import served_name
    from softprompt.server.service import Service

    base = engine.base
    named = [] if engine.model else prompts.paths()
    places = (base.dtype, base.device, base.trust_remote_code, engine.adapter, base.load_in, base.device_map)
    lm = load_base(engine.model, named, *places)
    name = settings.served_name or served_name(lm.name)
    if jobs is not None:
        jobs.configure(lm, name, engine.model or lm.name, engine.adapter, base)
    return Service(
        lm,
        engine.spec.create(lm, engine.options, base),
        Catalogue(lm.geometry, prompts.folder, prompts.pinned, prompts.urls),
        name=name,
        places=settings.max_loaded,
        pinned=frozenset(prompts.pinned),
        rate_limit=rate_limit,
        chat_template=settings.chat_template,
        system_turns=settings.system,
        jobs=None if jobs is None else jobs.names(lm),
    )


async def _checked(service: Service) -> int:
    """How many models fail, as exit code: 0 or 1."""
    from softprompt.server.selfcheck import self_check

    console, failed = Console(soft_wrap=True), 0
    await service.engine.start()
    try:
        async with aclosing(self_check(service)) as results:
            async for model, fault in results:
                failed += bool(fault)
                style = ("failed", "bold red") if fault else ("ok", "green")
                console.print(Text.assemble(style, "  ", escaped(model), f"  {escaped(fault)}" if fault else ""))
    finally:
        await service.stop()
    return int(failed > 0)
