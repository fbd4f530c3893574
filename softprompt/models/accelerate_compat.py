# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The border to Accelerate, which is untyped: its hooks on modules, and the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from torch import Tensor, nn


@dataclass(frozen=True)
class _Hook:
    """A hook that moves the inputs of a module to a device.

    Attributes:
        device: None for a hook that moves nothing.
        offloads: whether the module's own weights are loaded for each call.
        weights: these weights by name, wherever they are kept.
    """

    device: torch.device | None
    offloads: bool
    weights: Mapping[str, Tensor]


def hooks_on(module: nn.Module) -> Iterator[_Hook]:
    """Accelerate's hooks on this very module; usually none."""
    hook: ModelHook | None = vars(module).get("_hf_hook")
    for each in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(each, AlignDevicesHook):
            device = None if each.execution_device is None else torch.device(each.execution_device)
            yield _Hook(device, each.offload, each.weights_map or {})


def start_processes(device: str) -> int:
    """Join the processes of torchrun or `accelerate launch`; returns their number."""
    return int(PartialState(cpu=device == "cpu").num_processes)


def place_on_machine() -> tuple[int, int]:
    """The number of this process among those on this machine, and how many these are."""
    state = PartialState()
    return int(state.local_process_index), int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))


def wait_for_processes() -> None:
    """Wait until all processes are here."""
    PartialState().wait_for_everyone()
