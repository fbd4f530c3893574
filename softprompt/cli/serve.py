"""`softprompt serve`: the options of the server, and `--check`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.cli.escape import escaped
from softprompt.cli.options import BaseAdapter, Device, Dtype, Model, TrustRemoteCode
from softprompt.engine.registry import BaseModelOptions, EngineSpec, missing_packages
from softprompt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from softprompt.server.service import Service

SERVER_PACKAGES = ("fastapi", "limits", "prometheus_client", "structlog", "uvicorn")  # the extra `serve`


class Log(StrEnum):
    """How log lines look."""

    auto = "auto"
    json = "json"
    console = "console"


def serve_command(
    context: typer.Context,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    prompts_dir: Annotated[
        Path | None, typer.Option(help="Folder of soft prompts, loaded on first use. [$SOFTPROMPT_HOME]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH or NAME: loaded at the start, never evicted; repeatable.")
    ] = None,
    max_loaded: Annotated[int, typer.Option(help="Soft prompts in memory at a time.", min=1)] = 64,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any free one.", min=0, max=65535)] = 8000,
    served_name: Annotated[str | None, typer.Option(help="What requests call the base model.")] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of users' keys, one a line. [$SOFTPROMPT_API_KEYS]")
    ] = None,
    admin_keys: Annotated[
        Path | None, typer.Option(help="File of the admin's keys, one a line. [$SOFTPROMPT_ADMIN_KEYS]")
    ] = None,
    rate: Annotated[str, typer.Option(help="Requests of one key in a time, such as 600/minute.")] = "",
    limit: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER, see docs/server.md; repeatable.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Name in the Host header; repeatable.")] = None,
    log: Annotated[Log, typer.Option(help="auto: console on a terminal.")] = Log.auto,
    log_content: Annotated[bool, typer.Option("--log-content", help="Log texts and answers.")] = False,
    openapi: Annotated[bool, typer.Option("--openapi", help="Serve /openapi.json.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Load everything, answer once with each, and exit.")] = False,
    engine: Annotated[str, typer.Option(help="What runs the model, see below.")] = "transformers",
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve soft prompts under OpenAI's API: the model "tone" is the base model with the soft prompt tone.

    softprompt serve --model smollm2-135m --prompts-dir prompts

    Requests cannot make it load anything but soft prompts of that folder. Keys come from files or the environment only.
    """
    from softprompt.prompts import store

    spec = engine_named(engine)
    engine_options = parse_engine_options(spec, context.args)
    check_installed(spec)
    from softprompt.cli.base_model import load_base
    from softprompt.server.api_keys import ADMIN_ENV, USER_ENV, ApiKeys, read_keys
    from softprompt.server.app import create_app
    from softprompt.server.catalogue import Catalogue
    from softprompt.server.limits import parse_limits
    from softprompt.server.logs import configure
    from softprompt.server.rate_limit import RateLimit
    from softprompt.server.service import Service
    from softprompt.server.service import served_name as name_of
    from softprompt.server.uvicorn_server import check_address, default_hosts, listen, run_server

    keys = ApiKeys(read_keys(USER_ENV, api_keys), read_keys(ADMIN_ENV, admin_keys))
    rate_limit, pinned = RateLimit(parse_limits(limit or ()), rate), pinned_paths(prompt or ())
    folder = prompts_dir or (None if pinned or not store.home().is_dir() else store.home())
    _check_places(max_loaded, len(pinned), folder)
    check_address(host, keys)
    configure("json" if log is Log.json or (log is Log.auto and not sys.stderr.isatty()) else "console")
    listening = None if check else listen(host, port)
    base = spec.prepare_base(BaseModelOptions(dtype, device, trust_remote_code))
    lm = load_base(
        model, [] if model else _folders(pinned, folder), base.dtype, base.device, base.trust_remote_code, base_adapter
    )
    service = Service(
        lm,
        spec.create(lm, engine_options, base),
        Catalogue(lm.geometry, folder, pinned),
        name=served_name or name_of(lm.name),
        places=max_loaded,
        pinned=frozenset(pinned),
        rate_limit=rate_limit,
    )
    if listening is None:
        raise typer.Exit(asyncio.run(_checked(service)))
    hosts = frozenset(map(str.lower, allow_host)) if allow_host else default_hosts(host)
    app = create_app(service, keys, hosts=hosts, log_content=log_content, openapi=openapi)
    asyncio.run(run_server(service, app, listening))


def check_installed(engine: EngineSpec[Any]) -> None:
    """Raises MissingExtraError if a package of the server or of its engine is missing."""
    if missing := missing_packages(SERVER_PACKAGES):
        got = f"no {', '.join(missing)}"
        raise MissingExtraError("the server needs packages of its own", got=got, hint="pip install softprompt[serve]")
    engine.check_installed()


def pinned_paths(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of NAME=PATH or NAME. Raises ConfigError, StoreError for a name that is none."""
    from softprompt.prompts import store

    paths = dict[str, Path]()
    for text in texts:
        name, path = text.split("=", 1) if "=" in text else (text, "")
        if not store.PROMPT_NAME.fullmatch(name):
            expected = "NAME=PATH or NAME; a name is a-z 0-9 . _ -, not first a dot"
            raise ConfigError("not a soft prompt's name", where="--prompt", expected=expected, got=text)
        if name in paths:
            raise ConfigError("this name is given twice", where="--prompt", got=name)
        paths[name] = Path(path) if path else store.locate(name)
        store.load_card(paths[name])
    return paths


def _check_places(places: int, pinned: int, folder: Path | None) -> None:
    """Refuse a cache that the pinned prompts fill, so that the folder's would wait for ever."""
    if places < pinned + (folder is not None):
        expected = f"at least {pinned + (folder is not None)}: {pinned} given by --prompt, and one of the folder's"
        raise ConfigError("there is no place for the soft prompts", where="--max-loaded", expected=expected, got=places)
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "no such folder", where="--prompts-dir", got=folder, hint="make it, or name --prompt NAME=PATH"
        )


def _folders(pinned: dict[str, Path], folder: Path | None) -> list[str]:
    """Soft prompts whose cards name the base model when --model does not."""
    from softprompt.prompts import store

    paths = list(pinned.values())
    if not paths and folder is not None:
        paths = [path for path, card in store.list_cards(folder) if not isinstance(card, Exception)]
    if not paths:
        raise ConfigError("there is no soft prompt whose card names a base model", hint="give --model")
    return [str(path.resolve()) for path in paths]


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
