"""Soft prompts in repositories of the Hugging Face Hub: names such as owner/name@revision, and their local copies.

huggingface_hub talks to the Hub and keeps the copies in its cache ($HF_HOME). Of a repository only the files of a soft
prompt are fetched, after their sizes were checked. What is fetched is read as any artifact: the caller checks it.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import StoreError, UnreachableError, first_line
from softprompt.files import MAX_JSON_BYTES, MAX_TENSOR_BYTES

_HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./+-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
PICTURES = (".png", ".svg", ".jpg", ".jpeg")
MAX_PICTURE_BYTES = 16 * 2**20
HUB_LIMITS = {"card.json": MAX_JSON_BYTES, "prompt.safetensors": MAX_TENSOR_BYTES, "README.md": MAX_JSON_BYTES}
HUB_TIMEOUT_S = 5.0  # of the first request, which finds out whether the Hub answers
_MAX_FILES = 20  # with pictures


@dataclass(frozen=True)
class HubName:
    """A repository of the Hub, and a branch, tag or commit of it; "" for its main branch."""

    repo: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse_hub_name(text: str) -> HubName | None:
    """The repository that `owner/name` or `owner/name@revision` names; None for any other text."""
    match = _HUB_NAME.fullmatch(text)
    return HubName(match["repo"], match["revision"] or "") if match else None


def travels(file: str) -> bool:
    """Whether a file of this name belongs to a soft prompt: its tensors, card, README and pictures."""
    return file in HUB_LIMITS or ("/" not in file and Path(file).suffix.lower() in PICTURES)


def find_on_hub(name: HubName) -> Path:
    """The folder of a repository's soft prompt in huggingface_hub's cache, fetched if it is not there.

    A commit is not looked up again once it is there. If the Hub cannot be reached the cached copy is used.

    Raises StoreError: no such repository or revision, no access, no soft prompt in it, too large, or neither reachable
    nor cached.
    """
    folder = _cached(name) if _COMMIT.fullmatch(name.revision) else None
    return folder or _fetched(name)


def _fetched(name: HubName) -> Path:
    from huggingface_hub import (
        HfApi,
        constants,
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        return _cached_or(name, OfflineModeIsEnabled("HF_HUB_OFFLINE is set"))
    try:
        info = HfApi().model_info(name.repo, revision=name.revision or None, timeout=HUB_TIMEOUT_S, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        _check_files(name, sizes)
        wanted = [glob.escape(file) for file in sizes if travels(file)][:_MAX_FILES]
        return Path(snapshot_download(name.repo, revision=name.revision or None, allow_patterns=wanted, max_workers=4))
    except StoreError:
        raise
    except Exception as error:  # its client's errors have no common class, and those of HTTP are another library's
        if is_refusal(error):
            raise hub_error(error, str(name)) from error
        return _cached_or(name, error)


def _check_files(name: HubName, sizes: dict[str, int | None]) -> None:
    """Refuse before anything is fetched what cannot be a soft prompt."""
    missing = [file for file in ("card.json", "prompt.safetensors") if file not in sizes]
    if missing:
        hint = "softprompt pull and NAME take repositories that softprompt push made"
        if "adapter_config.json" in sizes:
            hint = f"this is a PEFT adapter: hf download {name.repo} --local-dir FOLDER, then softprompt import FOLDER"
        raise StoreError(
            f"this repository holds no soft prompt: it has no {' and no '.join(missing)}", where=name, hint=hint
        )
    for file, size in sizes.items():
        limit = HUB_LIMITS.get(file, MAX_PICTURE_BYTES)
        if travels(file) and size is not None and size > limit:
            expected, got = f"<= {limit:,} bytes", f"{size:,} bytes"
            raise StoreError("file too large, nothing was fetched", where=f"{name}: {file}", expected=expected, got=got)


def _cached(name: HubName) -> Path | None:
    """The cached copy, if it has the files of a soft prompt."""
    from huggingface_hub import try_to_load_from_cache

    found = [
        try_to_load_from_cache(name.repo, file, revision=name.revision or None)
        for file in ("card.json", "prompt.safetensors")
    ]
    return Path(found[0]).parent if isinstance(found[0], str) and isinstance(found[1], str) else None


def _cached_or(name: HubName, error: Exception) -> Path:
    """The cached copy, where the Hub does not answer. Raises StoreError if there is none."""
    folder, reason = _cached(name), hub_error(error, str(name))
    if folder is None:
        raise reason from error
    if not _is_a("OfflineModeIsEnabled")(error):
        warnings.warn(f"{name}: {reason.what}; the copy on this machine is used", stacklevel=4)
    return folder


def is_refusal(error: Exception) -> bool:
    """Whether the Hub answered and said no; else it could not be asked."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    error = _first_cause(error)
    if isinstance(error, HFValidationError):
        return True
    return isinstance(error, HfHubHTTPError) and error.response.status_code < 500


def hub_error(error: Exception, where: str, *, writing: bool = False) -> StoreError:
    """An error of huggingface_hub as one that says what to do."""
    error = _first_cause(error)
    what, hint = next(
        ((what, hint) for applies, what, hint in _EXPLAINED if applies(error)),
        (f"the Hub cannot be reached ({first_line(error)[:200]})", _NETWORK),
    )
    hint = _WRITE if writing and hint is _MISSING else hint
    kind = UnreachableError if hint in (_NETWORK, _OFFLINE) else StoreError
    return kind(what, where=where, hint=hint.format(repo=where.split("@")[0]))


def _first_cause(error: Exception) -> Exception:
    """The error that huggingface_hub's own words hide: of an upload, and of a file that is not in the cache either."""
    hides = type(error) is RuntimeError or _is_a("LocalEntryNotFoundError")(error)
    return _first_cause(error.__cause__) if hides and isinstance(error.__cause__, Exception) else error


def _is_a(name: str) -> Callable[[Exception], bool]:
    """Whether an error is of this class of huggingface_hub, by name: not every version has each."""
    return lambda error: any(base.__name__ == name for base in type(error).__mro__)


def _has_status(*codes: int) -> Callable[[Exception], bool]:
    return lambda error: getattr(getattr(error, "response", None), "status_code", None) in codes


def _is_bad_token(error: Exception) -> bool:
    return _has_status(401)(error) and ("credentials" in str(error) or "username or password" in str(error))


_LOGIN = "hf auth login, or set HF_TOKEN to a token of hf.co/settings/tokens that may "
_NETWORK = "check the network, or give the folder of a soft prompt on this machine"
_OFFLINE = "unset HF_HUB_OFFLINE, or softprompt pull {repo} where there is a network and copy the folder"
_MISSING = "check the spelling; a private one needs a token: hf auth login, or $HF_TOKEN. A folder is ./{repo}"
_WRITE = _LOGIN + "write to {repo}"
_READ = _LOGIN + "read {repo}"
_EXPLAINED = (  # the first that applies
    (_is_a("OfflineModeIsEnabled"), "not in the local Hub cache, and HF_HUB_OFFLINE is set", _OFFLINE),
    (_is_a("GatedRepoError"), "the repository is gated", "ask for access at hf.co/{repo}, then " + _READ),
    (_is_a("RevisionNotFoundError"), "the repository has no such branch, tag or commit", "hf.co/{repo}/tree/main"),
    (_is_bad_token, "the Hub does not know this token", _READ),
    (_is_a("RepositoryNotFoundError"), "neither a folder here nor a repository on the Hub that you may see", _MISSING),
    (_is_a("HFValidationError"), "not a possible name on the Hub", "OWNER/NAME, optionally with @REVISION"),
    (_has_status(401, 403), "the Hub does not let you do that", _WRITE),
    (_has_status(412), "somebody else changed the repository in between", "try it again"),
    (_has_status(429), "the Hub refuses further requests for now", "wait some minutes, or hf auth login"),
)
