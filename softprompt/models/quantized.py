"""Quantized weights of a loaded model: their bytes and tensors, and layers that pass gradients on to their input.

A soft prompt is trained through frozen layers, so each needs the gradient of its input. Kernels that were written for
inference lack it (torchao's int4, some of GPTQ's and AWQ's), and some lose it on the way: bitsandbytes' 4-bit layers
repack their weights on a CPU with AVX-512 bfloat16 when they first run without gradients, and then return outputs
without any. That is turned off here, every kind of layer is tried, and those that fail get a backward pass.

Shapes: N rows, K input features, O output features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import MethodType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from softprompt.errors import FOREIGN_ERRORS, is_out_of_memory

_GRADIENT_TOLERANCE = 0.1  # relative; layers that round activations pass gradients on as if they did not

Product = Callable[[Tensor], Tensor]  # of rows [N, K] with a layer's weights: [N, O]


def is_quantized(model: nn.Module) -> bool:
    """Whether a model of Transformers has quantized weights."""
    return bool(getattr(model, "is_quantized", False))


def has_packed_weights(model: nn.Module) -> bool:
    """Whether some weights are stored as other numbers than those of 16 bits and more."""
    return not all(map(_is_plain, model.parameters()))


def keep_weights_as_they_are(model: nn.Module, device: torch.device) -> None:
    """Keep bitsandbytes' layers from repacking their weights, and have compressed-tensors unpack its own.

    The latter happens when the whole model first runs.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.state_dict()  # undoes a repacking
            vars(layer)["support_avx512bf16_for_cpu"] = False
    if hasattr(model, "ct_decompress_hook"):
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))


def let_gradients_through(model: nn.Module) -> None:
    """Give every layer of a quantized model the gradient of its input; the numbers that it computes stay the same.

    The model has run before: some unpack their weights then.
    """
    passing = dict[Hashable, bool]()
    for layer in reversed(list(model.modules())):  # an adapter's layer after the one inside
        inputs: object = getattr(layer, "in_features", None)
        outputs: object = getattr(layer, "out_features", None)
        tensors = [*layer.parameters(), *layer.buffers()]
        own = "forward" not in vars(layer)  # and not another library's in its place
        if not isinstance(inputs, int) or any(part.is_meta for part in tensors):
            continue
        if not tensors or (own and all(map(_is_plain, tensors))):
            continue
        weight: object = getattr(layer, "weight", None)
        kind = (type(layer), type(weight), inputs, outputs)
        if kind not in passing:
            noise_NK = torch.randn(4, inputs, generator=torch.Generator().manual_seed(0))
            passing[kind] = _passes_gradient(layer, noise_NK.to(tensors[0].device, _dtype(model)))
        if not passing[kind]:
            vars(layer)["forward"] = MethodType(_with_backward(layer.forward), layer)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1 and not is_traceable_wrapper_subclass(tensor)


def _dtype(model: nn.Module) -> torch.dtype:
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()


def _is_news(record: logging.LogRecord) -> bool:
    """Not the line that LLM.int8() would log in every layer of every step: that it computes in float16."""
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")


@torch.enable_grad()
def _passes_gradient(layer: Product, input_NK: Tensor) -> bool:
    """Whether a layer's gradient is that of a product: y = W x, passed back, times x is y times y.

    A layer that cannot be run by itself is left alone.
    """
    input_NK.requires_grad_(True)
    try:
        output_NO = layer(input_NK)
        product_NO = (layer(2 * input_NK) - output_NO).detach()  # without bias
    except FOREIGN_ERRORS:
        return True
    try:
        (gradient_NK,) = torch.autograd.grad(output_NO, input_NK, product_NO)
    except FOREIGN_ERRORS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False
    wanted, found = product_NO.double().square().sum(), (gradient_NK.double() * input_NK.detach().double()).sum()
    return bool((found - wanted).abs() <= _GRADIENT_TOLERANCE * wanted)


def _with_backward(product: Product) -> Callable[[nn.Module, Tensor], Tensor]:
    """A layer's `forward` with a gradient."""

    def forward(layer: nn.Module, input_NK: Tensor) -> Tensor:
        return _Product.apply(input_NK, product)

    return forward


class _Context(Protocol):
    product: Product
    width: int


class _Product(torch.autograd.Function):
    """A layer's product by its own kernel, with a gradient through the weights that the kernel uses."""

    @staticmethod
    def forward(ctx: _Context, input_NK: Tensor, product: Product) -> Tensor:
        ctx.product, ctx.width = product, input_NK.shape[-1]
        output_NO = product(input_NK)
        return output_NO.clone() if output_NO._is_view() else output_NO  # models may change it in place

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient_NO,) = grad_outputs
        unit_KK = torch.eye(ctx.width, dtype=gradient_NO.dtype, device=gradient_NO.device)
        weight_KO = ctx.product(unit_KK)
        bias_1O = 2 * weight_KO[:1] - ctx.product(2 * unit_KK[:1])
        return gradient_NO @ (weight_KO - bias_1O).T, None


def plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a tensor is made of, by name: itself if it is a plain one, its part here if it is sharded."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
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
