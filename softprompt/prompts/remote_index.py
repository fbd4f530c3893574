"""The listing of a store far away, kept on disk, so that a new process knows what is there before the store answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from softprompt.errors import SoftpromptError
from softprompt.files import read_json, write_json
from softprompt.models.geometry import Geometry
from softprompt.prompts.prompt_store import CardFacts, StoredPrompt

_VERSION = 1


@dataclass(frozen=True)
class RemotePrompt:
    """A soft prompt of a store far away: its entry in the listing, and what is known of its files.

    Attributes:
        stored: its entry in the listing.
        read: the stamp at which its card was read last; "" if it was not.
        facts: of that card; None for a damaged one, and for a router.
        digest: the key of its files in the cache, of the version that was fetched last; "" if it was not.
        fetched: the stamp at which that was.
    """

    stored: StoredPrompt
    read: str = ""
    facts: CardFacts | None = None
    digest: str = ""
    fetched: str = ""


class _Facts(BaseModel):
    form: str
    n_tokens: int
    sha256: str
    base: int  # number of its entry in the file's `bases`
    fields: tuple[str, ...] = ()  # not in older files


class _Entry(BaseModel):
    file: str
    stamp: str
    created: int
    read: str
    digest: str
    fetched: str
    facts: _Facts | None


class _Listing(BaseModel):
    version: int
    bases: list[dict[str, object]]
    prompts: dict[str, _Entry]


def read_index(path: Path) -> dict[str, RemotePrompt]:
    """The listing in a file; empty if there is none or it is not one of this version."""
    try:
        listing = _Listing.model_validate(read_json(path))
        bases = [Geometry.from_dict(base) for base in listing.bases]
        return {name: _prompt(entry, bases) for name, entry in listing.prompts.items() if listing.version == _VERSION}
    except (SoftpromptError, ValidationError, KeyError, IndexError, TypeError, ValueError):
        return {}


def write_index(path: Path, prompts: Mapping[str, RemotePrompt]) -> None:
    """Replace the file in one step. A disk that refuses costs the next process a reading, and is no error."""
    bases = dict.fromkeys(prompt.facts.base for prompt in prompts.values() if prompt.facts is not None)
    numbers = {base: i for i, base in enumerate(bases)}
    entries = {name: _entry(prompt, numbers) for name, prompt in prompts.items()}
    listing = _Listing(version=_VERSION, bases=[base.to_dict() for base in bases], prompts=entries)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError, SoftpromptError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(scratch, listing.model_dump(mode="json"))
        os.replace(scratch, path)


def _entry(prompt: RemotePrompt, numbers: Mapping[Geometry, int]) -> _Entry:
    facts = prompt.facts and _Facts(
        form=prompt.facts.form,
        n_tokens=prompt.facts.n_tokens,
        sha256=prompt.facts.sha256,
        base=numbers[prompt.facts.base],
        fields=prompt.facts.fields,
    )
    return _Entry(**asdict(prompt.stored), read=prompt.read, digest=prompt.digest, fetched=prompt.fetched, facts=facts)


def _prompt(entry: _Entry, bases: list[Geometry]) -> RemotePrompt:
    told = entry.facts
    facts = told and CardFacts(told.form, told.n_tokens, told.sha256, bases[told.base], told.fields)
    stored = StoredPrompt(entry.file, entry.stamp, entry.created)
    return RemotePrompt(stored, entry.read, facts, entry.digest, entry.fetched)
