"""Every setting of the server besides those of the engine and of the base model, with its default and flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from softprompt.settings import Section, flag


class ServerConfig(Section):
    """The settings of `softprompt serve`; docs/server.md explains them."""

    prompts_dir: str | None = Field(
        default=None,
        json_schema_extra=flag(
            "--prompts-dir",
            help="Folder of soft prompts, or its URL (s3://…), loaded on first use. [$SOFTPROMPT_HOME]",
        ),
    )
    prompt: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=flag("--prompt", help="NAME=PLACE or NAME: loaded at the start, never evicted; repeatable."),
    )
    max_loaded: int = Field(
        default=64, ge=1, json_schema_extra=flag("--max-loaded", help="Soft prompts in memory at a time.")
    )
    host: str = Field(
        default="127.0.0.1",
        json_schema_extra=flag("--host", help="Address to listen on; others than this machine need keys."),
    )
    port: int = Field(default=8000, ge=0, le=65535, json_schema_extra=flag("--port", help="0 is any free one."))
    served_name: str | None = Field(
        default=None, json_schema_extra=flag("--served-name", help="What requests call the base model.")
    )
    api_keys: Path | None = Field(
        default=None,
        json_schema_extra=flag("--api-keys", help="File of users' keys, one a line. [$SOFTPROMPT_API_KEYS]"),
    )
    admin_keys: Path | None = Field(
        default=None,
        json_schema_extra=flag("--admin-keys", help="File of the admin's keys, one a line. [$SOFTPROMPT_ADMIN_KEYS]"),
    )
    rate: str = Field(
        default="", json_schema_extra=flag("--rate", help="Requests of one key in a time, such as 600/minute.")
    )
    limit: tuple[str, ...] = Field(
        default=(), json_schema_extra=flag("--limit", help="NAME=NUMBER, see docs/server.md; repeatable.")
    )
    allow_host: tuple[str, ...] = Field(
        default=(), json_schema_extra=flag("--allow-host", help="Name in the Host header; repeatable.")
    )
    chat_template: Literal["", "prompt", "model"] = Field(
        default="",
        json_schema_extra=flag(
            "--chat-template",
            help="If the model's is not the one trained with: prompt uses the soft prompt's, or model.",
        ),
    )
    log: Literal["auto", "json", "console"] = Field(
        default="auto", json_schema_extra=flag("--log", help="json, console, or auto: console on a terminal.")
    )
    log_content: bool = Field(default=False, json_schema_extra=flag("--log-content", help="Log texts and answers."))
    openapi: bool = Field(default=False, json_schema_extra=flag("--openapi", help="Serve /openapi.json."))
