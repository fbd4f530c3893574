"""Soft prompts to and from the Hugging Face Hub: `push` and `pull`.

Only a soft prompt's tensors, card and pictures travel, with a README.md that is written for the Hub from the card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from softprompt.errors import ConfigError, SoftpromptError, StoreError
from softprompt.files import write_folder
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.prompts.forms import size_of
from softprompt.prompts.hub import (
    HUB_TIMEOUT_S,
    MAX_PICTURE_BYTES,
    PICTURES,
    HubName,
    find_on_hub,
    hub_error,
    parse_hub_name,
    travels,
)
from softprompt.prompts.model_card import hub_model_card, public_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAX_PICTURES = 16
_UNOWNED = (store.README, ".gitattributes", ".gitignore", "LICENSE")  # of a repository that holds nothing yet


@dataclass(frozen=True)
class Pushed:
    """A soft prompt on the Hub.

    Attributes:
        name: owner/name@revision, which every verb takes.
        url: of the commit, or of the pull request.
        commit: its id, 40 hex digits.
        files: names of the files that are there now.
    """

    name: str
    url: str
    commit: str
    files: tuple[str, ...]


def push(
    name: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "",
    create_pr: bool = False,
    overwrite: bool = False,
) -> Pushed:
    """Upload a saved soft prompt to a repository of the Hub, as one commit; a repository that is missing is made.

        softprompt.push("tone", "org/tone", private=True)

    Args:
        name: as for `store.find`, or a folder.
        repo: owner/name.
        private: make the repository private; one that is public already is refused.
        revision: branch, made if it is missing; by default main.
        message: of the commit.
        create_pr: propose the commit as a pull request.
        overwrite: put it into a repository that holds something else than a soft prompt. Files of other names stay.

    Raises:
        StoreError: the soft prompt is damaged, or the Hub cannot be reached or says no.
        ConfigError: settings that exclude each other.
    """
    target = _target(repo, revision)
    if create_pr and target.revision not in ("", "main"):
        raise ConfigError("a pull request is made against main", where="revision", got=target.revision)
    folder = Path(name) if isinstance(name, Path) else store.find(name)
    if (folder / store.ROUTER).is_file():
        hint = "push each of its soft prompts by its own name"
        raise StoreError("a router is not pushed: it names other soft prompts", where=folder, hint=hint)
    prompt, card = store.load(folder)
    contents = _contents(folder, card, target.repo, size_of(prompt))
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="softprompt", library_version=version("softprompt"))
    try:
        parent = _prepare_repository(api, target, private=private, overwrite=overwrite)
        commit = api.create_commit(
            target.repo,
            [CommitOperationAdd(file, content) for file, content in contents.items()],
            commit_message=message or f"Push {card.form} soft prompt {card.name}",
            revision=target.revision or None,
            parent_commit=parent,
            create_pr=create_pr,
        )
    except SoftpromptError:
        raise
    except Exception as error:  # its client's errors have no common class, and those of HTTP are another library's
        raise hub_error(error, str(target), writing=True) from error
    store.forget_found(target.repo)
    named = f"{target.repo}@{commit.pr_revision}" if create_pr else str(target)
    return Pushed(named, str(commit.pr_url or commit.commit_url), commit.oid, tuple(contents))


def pull(repo: str, *, name: str | None = None, revision: str | None = None, overwrite: bool = False) -> Path:
    """Fetch a soft prompt from the Hub into the folder of saved ones; returns its folder.

        softprompt.pull("org/tone@v1", name="tone")

    Args:
        repo: owner/name or owner/name@revision.
        name: of the soft prompt here; by default the repository's, in small letters.
        revision: branch, tag or commit; by default main.
        overwrite: replace a soft prompt of that name.

    Raises StoreError: the name is taken, the Hub cannot be reached or says no, or there is no sound soft prompt.
    """
    source = _target(repo, revision)
    own = source.repo.split("/")[1].lower() if name is None else name
    if name is None and not store.PROMPT_NAME.fullmatch(own):
        raise StoreError(f"{own!r} is not a usable name", where=source, hint="choose one with --name")
    folder = store.locate(own)
    store.check_free(folder, overwrite)
    copy = find_on_hub(source)
    store.load(copy)

    def fill(scratch: Path) -> None:
        for file in copy.iterdir():
            if travels(file.name) and file.is_file():
                shutil.copyfile(file, scratch / file.name)

    write_folder(folder, fill, overwrite=overwrite)
    return folder


def _target(repo: str, revision: str | None) -> HubName:
    """The repository and revision that are meant. Raises ConfigError."""
    parsed = parse_hub_name(repo)
    if parsed is None:
        raise ConfigError("not a repository of the Hub", expected="OWNER/NAME or OWNER/NAME@REVISION", got=repo)
    if revision and parsed.revision not in ("", revision):
        raise ConfigError("two revisions are given", where=repo, got=revision)
    return HubName(parsed.repo, revision or parsed.revision)


def _prepare_repository(api: HfApi, target: HubName, *, private: bool, overwrite: bool) -> str | None:
    """Make repository and branch if they are missing; returns the commit to go on from, None for a new branch.

    Raises StoreError if a public repository should be private, or holds something else.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if api.token is None and not _has_token():
        hint = "hf auth login, or set HF_TOKEN to a token of hf.co/settings/tokens that may write"
        raise StoreError("no token for the Hub on this machine", where=target, hint=hint)
    try:
        info = api.model_info(target.repo, timeout=HUB_TIMEOUT_S)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(target.repo, private=private or None, exist_ok=True)
        info = api.model_info(target.repo, timeout=HUB_TIMEOUT_S)
    if private and not info.private:
        what, hint = "this repository is public already", f"make it private at hf.co/{target.repo}/settings"
        raise StoreError(what, where=target, hint=hint)
    if target.revision:
        try:
            info = api.model_info(target.repo, revision=target.revision, timeout=HUB_TIMEOUT_S)
        except RevisionNotFoundError:
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
    files = {file.rfilename for file in info.siblings or ()}
    if store.CARD not in files and not overwrite and (others := sorted(files.difference(_UNOWNED))):
        what, hint = "this repository holds something else than a soft prompt", "choose another name, or --overwrite"
        raise StoreError(what, where=target, got=", ".join(others[:5]), hint=hint)
    return info.sha


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _contents(folder: Path, card: Card, repo: str, size: int) -> dict[str, Path | bytes]:
    """The files that are uploaded, by name: tensors and pictures as they are, card and README.md for strangers."""
    pictures = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in PICTURES and path.is_file() and not path.is_symlink()
        if path.stat().st_size <= MAX_PICTURE_BYTES
    ][:_MAX_PICTURES]
    named = [path.name for path in pictures]
    readme = hub_model_card(card, repo, bytes_on_disk=size, pictures=named)
    public = json.dumps(public_card(card), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {
        store.TENSORS: (folder / store.TENSORS).resolve(),
        store.CARD: public.encode(),
        store.README: readme.encode(),
        **{path.name: path for path in pictures},
    }


def public_card(card: Card) -> dict[str, object]:
    """The card without paths of this machine: of each the last part stays."""
    base = card.base | {"base": public_name(card.geometry.base)}
    notes = {section: _without_paths(getattr(card, section)) for section in ("method", "recipe", "data", "metrics")}
    return card.model_copy(update={"base": base, "name": Path(card.name).name, **notes}).model_dump(mode="json")


def _without_paths(value: object) -> object:
    """JSON with the last part of every absolute or relative path in place of it; a text (`text`) stays."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return {key: part if key == "text" else _without_paths(part) for key, part in fields.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in cast("list[object]", value)]
    is_path = isinstance(value, str) and "\n" not in value and (value[:1] in "/~" or value.startswith(("./", "../")))
    return Path(str(value)).name if is_path and value else value
