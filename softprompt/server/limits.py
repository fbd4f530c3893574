"""Limits of requests: every list, number and waiting time has a maximum with a default."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from softprompt.errors import ConfigError
from softprompt.jobs.records import Quotas


@dataclass(frozen=True)
class Limits:
    """Maximum values; docs/server.md lists them.

    Attributes:
        body_bytes: bytes of a request's body.
        json_depth: nesting depth of the body.
        messages: turns of a conversation.
        chars: characters of all texts of a request.
        prompt_tokens: tokens of one text with its template; 0 is the model's context.
        new_tokens: tokens of an answer.
        prompts: texts of one request, and its answers: `n` times the number of texts.
        choices: answers to one text: `n`.
        stops: stop strings.
        stop_chars: characters of one stop string.
        logprobs: likeliest tokens reported for each token.
        top_k: value of `top_k`.
        biases: tokens of a `logit_bias`.
        grammar_chars: characters of a schema, regular expression or grammar that answers are held to.
        jobs: running and waiting answers of all clients; more get 429.
        key_requests: concurrent requests of one key; more get 429.
        deadline_s: seconds of a request, time in the queue included.
        body_s: seconds for a body to arrive.
        upload_s: seconds for an uploaded file to arrive.
        drain_s: seconds for running requests to finish once the server stops.
        keep_alive_s: seconds without an event after which a stream sends a comment; 0 sends none.
    """

    body_bytes: int = 1_048_576
    json_depth: int = 32
    messages: int = 256
    chars: int = 200_000
    prompt_tokens: int = 0
    new_tokens: int = 4096
    prompts: int = 2048
    choices: int = 16
    stops: int = 8
    stop_chars: int = 256
    logprobs: int = 20
    top_k: int = 1000
    biases: int = 300
    grammar_chars: int = 65_536
    jobs: int = 512
    key_requests: int = 256
    deadline_s: int = 300
    body_s: int = 30
    upload_s: int = 600
    drain_s: int = 30
    keep_alive_s: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in {"prompt_tokens", "stops", "logprobs", "drain_s", "keep_alive_s"} else 1
            if getattr(self, field.name) < least:
                got = getattr(self, field.name)
                raise ConfigError("a limit is out of range", where=field.name, expected=f">= {least}", got=got)


def parse_limits(texts: Iterable[str]) -> Limits:
    """Limits with changes such as "new_tokens=512". Raises ConfigError for an unknown name or an invalid value."""
    return replace(Limits(), **_changes(texts, Limits))


def parse_quotas(texts: Iterable[str]) -> Quotas:
    """Quotas of jobs with changes such as "file_rows=1000"; raises as `parse_limits`."""
    return replace(Quotas(), **_changes(texts, Quotas))


def _changes(texts: Iterable[str], kind: type[Limits] | type[Quotas]) -> dict[str, int]:
    """The changes of one kind; both kinds have the same option."""
    own = {field.name for field in fields(kind)}
    names, changes = [field.name for each in (Limits, Quotas) for field in fields(each)], dict[str, int]()
    for text in texts:
        name, value = text.split("=", 1) if "=" in text else (text, "")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else None
            raise ConfigError("unknown limit", where="--limit", expected=", ".join(names), got=name, hint=hint)
        if not value.isdecimal() or len(value) > 15:
            raise ConfigError("a limit is a whole number", where="--limit", expected=f"{name}=NUMBER", got=text)
        if name in own:
            changes[name] = int(value)
    return changes
