"""Base models that are split over devices, or offloaded to memory and disk, by a device map of Accelerate.

Hooks on the model's modules move inputs to each module's device, and load offloaded weights for a call. Outside of the
model nothing changes: inputs, final hidden states and logits are on one device, the model's home.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.models.accelerate_compat import hooks_on
from softprompt.models.transformers_compat import modules_of

PLANS = ("auto", "balanced", "balanced_low_0", "sequential")  # of Accelerate, which makes a device map of them
DeviceMap: TypeAlias = Mapping[str, int | str]  # part of the model to device: a GPU's number, "cpu", "disk", …


def parse_device_map(wanted: str | DeviceMap | None, device: str) -> str | dict[str, int | str] | None:
    """A device map as Transformers takes it.

    Args:
        wanted: one of `PLANS`, a map, or a map as JSON.
        device: the device that is asked for beside it.

    Raises ConfigError for what is no device map, and for a plan in one of several processes.
    """
    if wanted is None:
        return None
    where, expected = "--device-map", f'{", ".join(PLANS)}, or a map such as {{"model.layers.0": 0, …}}'
    if device != "auto":
        hint = f"--device {device} alone puts the whole model there"
        raise ConfigError(
            "a model is split over devices, or is on one", where=where, got=f"--device {device}", hint=hint
        )
    if isinstance(wanted, str) and wanted in PLANS:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            hint = "--fsdp shards the base model over the processes; or start one process"
            raise ConfigError("each process would split the model over the same devices", where=where, hint=hint)
        return wanted
    places: object = wanted
    if isinstance(wanted, str):
        try:
            places = json.loads(wanted)
        except ValueError:
            raise ConfigError("not a device map", where=where, expected=expected, got=wanted) from None
    made = dict(cast("Mapping[object, object]", places)) if isinstance(places, Mapping) else {}
    if not made or not all(isinstance(part, str) and isinstance(place, int | str) for part, place in made.items()):
        raise ConfigError("not a device map", where=where, expected=expected, got=repr(wanted)[:100])
    return cast("dict[str, int | str]", made)


def offload_folder() -> str:
    """A new folder for weights that are offloaded to disk and that the model's own files do not hold as they are."""
    return str(Path(tempfile.gettempdir()) / f"softprompt-offload-{uuid.uuid4().hex}")


def remove_with(model: nn.Module, folder: str) -> None:
    """Remove this folder when the model is gone."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)


def describe_split(model: PreTrainedModel, wanted: str | DeviceMap) -> str:
    """The devices of a model that was loaded with a device map, for display."""
    places = list(dict.fromkeys(str(place) for place in getattr(model, "hf_device_map", {}).values()))
    named = [f"cuda:{place}" if place.isdecimal() else place for place in places] or [str(home_device(model))]
    plan = f"device map {wanted}" if isinstance(wanted, str) else "device map as given"
    return f"{'devices' if len(named) > 1 else 'device'} {', '.join(named)} ({plan})"


def home_device(model: PreTrainedModel) -> torch.device:
    """The device of the model's inputs, and of everything that is computed outside of it."""
    found = (hook.device for module in model.modules() for hook in hooks_on(module))
    return next(filter(None, found), model.device)


def is_split(model: nn.Module) -> bool:
    """Whether Accelerate's hooks move inputs from module to module."""
    return any(True for module in model.modules() for _ in hooks_on(module))


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are loaded for each call, from memory or disk."""
    return any(hook.offloads for module in model.modules() for hook in hooks_on(module))


def layer_devices(model: nn.Module, count: int, home: torch.device) -> tuple[torch.device, ...]:
    """The device that each of `count` layers runs on, as far as their attention modules tell; else the home."""
    devices = [home] * count
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and number < count:
            found = (hook.device for part in module.modules() for hook in hooks_on(part))
            devices[number] = next(filter(None, found), home)
    return tuple(devices)


def whole_weight(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter of this very module with its numbers, wherever they are kept.

    An offloaded one is read from memory or disk; a sharded one is gathered, for which all processes call this.
    """
    weight = module.get_parameter(name)
    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if weight.device.type != "meta":
        return weight
    for hook in hooks_on(module):
        if name in hook.weights:
            return hook.weights[name]
    raise UnsupportedModelError("a weight is on no device", where=f"{type(module).__name__}.{name}")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by its name in the model, as `whole_weight` gives it."""
    return {
        f"{path}.{name}".removeprefix("."): whole_weight(module, name)
        for path, module in modules_of(model).items()
        for name, _ in module.named_parameters(recurse=False)
    }


def own_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter once, in the order of `parameters()`, with its module and its name there."""
    seen = set[int]()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield module, name, weight
