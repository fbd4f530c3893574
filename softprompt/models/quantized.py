"""Quantized weights of a loaded model: their bytes and tensors, and layers that pass gradients on to their input.

A soft prompt is trained through frozen layers, so each needs the gradient of its input. Two kinds of layers lack it:

- torchao's int4 kernels have no backward pass. `_Int4Product` gives them one with the weights that the kernel reads.
- bitsandbytes' 4-bit layers repack their weights on a CPU with AVX-512 bfloat16 when they first run without gradients,
  and then return outputs without any. That is turned off here.

Shapes: N rows, K input features, O output features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_quantized(model: nn.Module) -> bool:
    """Whether a model of Transformers has quantized weights."""
    return bool(getattr(model, "is_quantized", False))


def let_gradients_through(model: nn.Module) -> None:
    """Give every layer of a quantized model the gradient of its input; the numbers that it computes stay the same."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.state_dict()  # undoes a repacking
            vars(layer)["support_avx512bf16_for_cpu"] = False
        elif isinstance(layer, nn.Linear) and type(layer.weight.data).__name__.startswith("Int4"):
            vars(layer)["forward"] = partial(_int4_product, layer)


def _is_news(record: logging.LogRecord) -> bool:
    """Not the line that LLM.int8() would log in every layer of every step: that it computes in float16."""
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")


def _int4_product(layer: nn.Linear, input_NK: Tensor) -> Tensor:
    return _Int4Product.apply(input_NK, layer)


class _Context(Protocol):
    layer: nn.Linear


class _Int4Product(torch.autograd.Function):
    """x W' + b by the layer's kernel, with a gradient by x through the same weights, unpacked by the kernel."""

    @staticmethod
    def forward(ctx: _Context, input_NK: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(input_NK, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient_NO,) = grad_outputs
        return gradient_NO @ unpacked(ctx.layer.weight, gradient_NO.dtype), None


@torch.no_grad()
def unpacked(weight_OK: Tensor, dtype: torch.dtype) -> Tensor:
    """int4 weights [O, K] as plain numbers: the kernel's product with the unit matrix."""
    unit_KK = torch.eye(weight_OK.shape[1], dtype=dtype, device=weight_OK.device)
    return functional.linear(unit_KK, weight_OK).T


def plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a tensor is made of, by name: itself if it is a plain one."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers, each tensor once; of quantized ones as they are stored, with their scales."""
    named = [*model.state_dict().items(), *model.named_parameters(), *model.named_buffers()]
    return _bytes_of(part for name, tensor in named for _, part in plain_tensors(name, tensor))


def weight_count(model: nn.Module, *, quantized: bool) -> int:
    """Number of weights, each counted once; of a quantized layer those that it stands for."""
    if not quantized:
        return sum(parameter.numel() for parameter in model.parameters())
    count = 0
    for module in model.modules():
        own = {name: weight.numel() for name, weight in module.named_parameters(recurse=False)}
        inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(inputs, int) and isinstance(outputs, int):
            own["weight"] = inputs * outputs
        count += sum(own.values())
    return count


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of tensors that may occur several times."""
    sizes = {(tensor.data_ptr() or id(tensor), tensor.numel()): tensor.nbytes for tensor in tensors}
    return sum(sizes.values())
