"""Which base model a verb loads, and how."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt import store
from softprompt.errors import WrongBaseError
from softprompt.model import FrozenLM, load


def base_of(names: Sequence[str]) -> str:
    """The base model that these soft prompts' cards name.

    Raises WrongBaseError if they name different ones, StoreError if one is missing.
    """
    bases = {name: store.load_card(store.locate(name)).geometry.base for name in names}
    if len(set(bases.values())) > 1:
        got = ", ".join(f"{name}: {base}" for name, base in bases.items())
        raise WrongBaseError("these soft prompts belong to different base models", got=got, hint="or give --model")
    return next(iter(bases.values()))


def load_base(name: str, dtype: str, device: str, trust_remote_code: bool) -> FrozenLM:
    """The base model with the options of the command line."""
    return load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
