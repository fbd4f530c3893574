"""Loads the base model of a verb."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.errors import ConfigError, ModelError, WrongBaseError
from softprompt.models.cores import limit_threads
from softprompt.models.device import peak_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.models.sources import adapted_name, is_here
from softprompt.prompts import store


def base_of(names: Sequence[str]) -> str:
    """The base model that these soft prompts' cards name.

    Raises WrongBaseError if they name different ones, StoreError if one is missing.
    """
    bases = {name: store.load_card(store.find(name)).geometry.base for name in names}
    if len(set(bases.values())) > 1:
        got = ", ".join(f"{name}: {base}" for name, base in bases.items())
        raise WrongBaseError("these soft prompts belong to different base models", got=got, hint="or give --model")
    return next(iter(bases.values()))


def load_base(
    model: str | None,
    names: Sequence[str],
    dtype: str,
    device: str,
    trust_remote_code: bool,
    base_adapter: str | None = None,
    load_in: str | None = None,
    device_map: str | None = None,
) -> FrozenLM:
    """The base model with the options of the command line: `model`, or the base model of the cards of `names`, with the
    LoRA weights of the folder `base_adapter` merged into it.

    A card is untrusted: it never causes a download, and never selects remote code.
    The model, device and dtype go to stderr with the reason.
    """
    from_card = model is None
    if model is None:
        if trust_remote_code:
            what = "--trust-remote-code needs --model: a soft prompt's card must not select remote code"
            raise ConfigError(what, hint="--model OWNER/NAME")
        model = base_of(names)
        if not is_here(model):
            raise ModelError(
                "the card names a base model that is not on this machine",
                where=names[0],
                got=model,
                hint=f"if you trust that name, --model {model} downloads it",
            )
    model = adapted_name(model, base_adapter)
    limit_threads()
    lm = load_model(
        model,
        dtype=dtype,
        device=device,
        load_in=load_in,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        local_files_only=from_card,
    )
    Console(stderr=True, soft_wrap=True).print(Text(f"base model  {escaped(lm.name)}, frozen ({lm.reason})", "dim"))
    return lm


def memory_use(lm: FrozenLM) -> dict[str, int]:
    """Bytes of the base model's weights, and the most that this process needed, in `train --json`'s words."""
    return {"weight_bytes": lm.weight_bytes, "peak_bytes": peak_memory(lm.device)}


def memory_line(use: dict[str, int], device: str) -> str:
    """The same for people; "" if the peak is not known."""
    weights, peak = use["weight_bytes"] / 2**20, use["peak_bytes"] / 2**20
    if not peak:
        return ""
    of = "on the GPU" if device == "cuda" else "of this process"
    return f"memory      {peak:,.0f} MiB {of} at most, {weights:,.1f} MiB of it weights"
