"""Shards a frozen base model over processes: each keeps a part of every layer's weights (PyTorch's FSDP2).

A layer's weights are gathered from all processes while it runs, forward and backward, so all of them must run the same
passes. Embeddings, final norm and head stay whole: they are used alone, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.models.accelerate_compat import place_on_machine, start_processes, wait_for_processes
from softprompt.models.quantized import is_quantized
from softprompt.models.transformers_compat import can_switch_attention

_LAUNCH = "torchrun --nproc-per-node 2 -m softprompt train …"


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the layers' weights."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(roots: list[nn.Module], mesh: DeviceMesh) -> None:
    """Leave each process its part of the weights of every layer; embeddings, norms and head stay whole.

    Args:
        roots: the parts of a model that are called from outside: a decoder, or encoder and decoder.
        mesh: the processes.

    Raises UnsupportedModelError for a model without layers that PyTorch could gather one by one.
    """
    for root in roots:
        if isinstance(root, PreTrainedModel):
            can_switch_attention(root)  # Transformers looks this up by the class, which may change here, and keeps it
        if is_quantized(root):
            raise UnsupportedModelError("quantized weights are not sharded", where="--fsdp", hint="leave out --fsdp")
        layers = [part for part in root.modules() if isinstance(part, GradientCheckpointingLayer)]
        if not layers:
            what = "the model's layers cannot be told apart, so not be sharded"
            raise UnsupportedModelError(what, where="--fsdp", got=type(root).__name__)
        for layer in reversed(layers):  # those inside others first
            fully_shard(layer, mesh=mesh)
        around = _around(root, layers)
        inside = {id(weight) for layer in layers for weight in layer.parameters()}
        whole = {weight for weight in around.parameters() if id(weight) not in inside}
        fully_shard(around, mesh=mesh, ignored_params=whole)


def _around(root: nn.Module, layers: list[GradientCheckpointingLayer]) -> nn.Module:
    """The innermost module with all layers inside that is called itself: some callers run OPT's decoder alone."""
    for part in root.children():
        inside = {id(module) for module in part.modules()}
        if not isinstance(part, nn.ModuleList) and all(id(layer) in inside for layer in layers):
            return _around(part, layers)
    return root


@contextlib.contextmanager
def taking_turns(device: str) -> Generator[DeviceMesh]:
    """A block that the processes of a machine run one after another, so that it holds one whole model at a time.

    Yields the processes as `shard` takes them.

    Raises ConfigError if there is only one process.
    """
    # With "true", which accelerate launch may set, Transformers leaves all but one process without weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    count = start_processes(device)
    if count < 2:
        hint = f"{_LAUNCH}, or accelerate launch"
        raise ConfigError("the base model is sharded over several processes", where="--fsdp", got="one", hint=hint)
    mesh = init_device_mesh(torch.device(device).type, (count,))
    own_turn, turns = place_on_machine()
    for turn in range(turns):
        if turn == own_turn:
            yield mesh
        wait_for_processes()


class _TieContext(Protocol):
    zeros: Callable[[], Tensor]  # of the second argument's shape


class _Tie(torch.autograd.Function):
    """Returns its first argument; the second gets a gradient of zeros."""

    @staticmethod
    def forward(ctx: _TieContext, tensor: Tensor, other: Tensor) -> Tensor:
        ctx.zeros = partial(torch.zeros, other.shape, dtype=other.dtype, device=other.device)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: _TieContext, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return grad_outputs[0], ctx.zeros()


def tied(tensor: Tensor, states: Tensor) -> Tensor:
    """The tensor, whose gradient also reaches the final hidden states, as zeros.

    FSDP gathers a layer's weights for the backward pass when a gradient reaches the layer's output. Of a prefix only
    keys and values are used, so nothing else would reach the last layer's.
    """
    return cast("Tensor", _Tie.apply(tensor, states)) if tensor.requires_grad and states.requires_grad else tensor
