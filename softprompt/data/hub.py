"""Datasets of the Hugging Face Hub to decoded rows, through the optional package `datasets`.

Fails within seconds where there is no network: one small question to the Hub comes before the download.
With HF_HUB_OFFLINE set nothing is asked and only the local cache is read, as everywhere in the Hub's tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module

from softprompt.data.memory_rows import memory_rows
from softprompt.errors import DataError

__all__ = ["is_hub_name", "read_hub"]

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", re.ASCII)
_SECONDS = 5.0


def is_hub_name(name: str) -> bool:
    """Whether this reads as `owner/name` or `owner/name:config`."""
    return _NAME.fullmatch(name) is not None


def read_hub(name: str) -> dict[str, Iterable[tuple[str, object]]]:
    """The splits of a Hub dataset, by their names there.

    Columns of class labels come as the classes' names; an unlabelled row (class -1) has no label.

    Args:
        name: `owner/name` or `owner/name:config`.

    Raises:
        DataError: `datasets` is not installed, there is no network, or no such dataset.
    """
    match = _NAME.fullmatch(name)
    assert match is not None, "callers check is_hub_name"
    repo, config = match.groups()
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"there is no file or folder {name!r}, and Hub datasets need the package datasets",
            where=name,
            hint="pip install datasets",
        ) from error
    _ask(repo)
    try:
        loaded = datasets.load_dataset(repo, config)
    # datasets raises errors of many libraries (its own, the Hub's, HTTP, OS); to the user all mean the same.
    except Exception as error:
        raise DataError("the Hub dataset cannot be loaded", where=name, got=_first_line(error)) from error
    return {split: memory_rows(loaded[split], f"{name}/{split}") for split in loaded}


def _ask(repo: str) -> None:
    """Refuse at once what the Hub does not have, or that it cannot be reached."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(repo, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        raise DataError(
            "the Hub has no such dataset, or it is private, and there is no such file or folder",
            where=repo,
            hint="check the name; for a private dataset: hf auth login",
        ) from error
    # The HTTP library behind the Hub client changes between versions, so its errors cannot be named here.
    except Exception as error:
        raise DataError(
            "there is no such file or folder, and the Hub cannot be reached",
            where=repo,
            got=_first_line(error),
            hint="give a file or folder; or set HF_HUB_OFFLINE=1 to use a dataset downloaded before",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
