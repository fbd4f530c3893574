"""API keys of users and the admin, kept and compared as sha256 digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from softprompt.errors import ConfigError

USER_ENV, ADMIN_ENV = "SOFTPROMPT_API_KEYS", "SOFTPROMPT_ADMIN_KEYS"
MIN_KEY_CHARS = 16  # shorter keys can be guessed
MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        id: identifies the key in logs and rate limits, without revealing it.
        admin: whether the key is an admin key.
        owner: identifies the key as the owner of files, jobs and their soft prompts.
    """

    id: str
    admin: bool
    owner: str = "anonymous"

    @property
    def seen(self) -> str | None:
        """Whose files, jobs and soft prompts it sees: its own; the admin those of all, None."""
        return None if self.admin else self.owner


ANYONE = Caller("anonymous", admin=False)


class ApiKeys:
    """The accepted keys. Without any, every caller is a user and nobody the admin."""

    def __init__(self, users: Iterable[str] = (), admins: Iterable[str] = ()) -> None:
        self._known = [(_digest(key), False) for key in users] + [(_digest(key), True) for key in admins]

    def __bool__(self) -> bool:
        return bool(self._known)

    def caller(self, authorization: str) -> Caller | None:
        """The caller of an Authorization header, or None for an unknown key. Takes the same time for every key."""
        if not self._known:
            return ANYONE
        scheme, *rest = authorization.split(" ", 1)
        digest = _digest("".join(rest).strip())
        caller = None
        for known, admin in self._known:
            if compare_digest(known, digest):
                caller = Caller(digest.hex()[:8], admin, digest.hex()[:32])
        return caller if scheme.lower() == "bearer" else None


def read_keys(env: str, file: Path | None) -> list[str]:
    """Keys of an environment variable (separated by spaces or commas) and of a file (one a line, # begins a comment).

    Raises ConfigError for a file that cannot be read or a key that is too short; the message never shows a key.
    """
    keys = os.environ.get(env, "").replace(",", " ").split()
    if file is not None:
        try:
            if file.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError("too large for a file of keys", where=file)
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the file of keys cannot be read", where=file, got=type(error).__name__) from error
        keys += [key for line in lines if (key := line.partition("#")[0].strip())]
    for i, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"key {i} is not usable",
                where=file or env,
                expected=f"at least {MIN_KEY_CHARS} letters, digits and signs",
                hint="openssl rand -hex 32 makes one",
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
