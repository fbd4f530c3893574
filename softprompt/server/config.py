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
    allow_origin: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=flag(
            "--allow-origin", help="Origin whose web pages may use the server, or *; none by default; repeatable."
        ),
    )
    chat_template: Literal["", "prompt", "model"] = Field(
        default="",
        json_schema_extra=flag(
            "--chat-template",
            help="If the model's is not the one trained with: prompt uses the soft prompt's, or model.",
        ),
    )
    system: Literal["", "keep", "ignore", "refuse"] = Field(
        default="",
        json_schema_extra=flag(
            "--system",
            help="System turns that a soft prompt was not trained with: keep, ignore or refuse; else as its card says.",
        ),
    )
    log: Literal["auto", "json", "console"] = Field(
        default="auto", json_schema_extra=flag("--log", help="json, console, or auto: console on a terminal.")
    )
    log_content: bool = Field(default=False, json_schema_extra=flag("--log-content", help="Log texts and answers."))
    jobs: bool = Field(
        default=False,
        json_schema_extra=flag("--jobs/--no-jobs", help="Serve files and fine-tuning jobs, and run workers for them."),
    )
    store: str = Field(
        default="jobs",
        json_schema_extra=flag("--store", help="With --jobs: their folder, or the URL of a database."),
    )
    store_files: Path | None = Field(
        default=None,
        json_schema_extra=flag("--store-files", help="With a database's URL: the folder of files that workers share."),
    )
    workers: int = Field(
        default=1,
        ge=0,
        json_schema_extra=flag("--workers", help="With --jobs: worker processes; 0: run softprompt work yourself."),
    )
    worker_device: str = Field(
        default="auto",
        json_schema_extra=flag("--worker-device", help="With --jobs: auto, cpu, cuda, cuda:1 or mps."),
    )
    share_prompts: bool = Field(
        default=False,
        json_schema_extra=flag("--share-prompts", help="With --jobs: everyone may use the soft prompts of all jobs."),
    )
    studio: bool = Field(
        default=False,
        json_schema_extra=flag("--studio/--no-studio", help="Serve the studio, a page over the API, at /studio."),
    )
    openapi: bool = Field(default=False, json_schema_extra=flag("--openapi", help="Serve /openapi.json."))
