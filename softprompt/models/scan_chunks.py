"""Chunks of Mamba-2 scans, as short as texts are.

Mamba-2 (Dao, Gu 2024, https://arxiv.org/abs/2405.21060, section 6) computes a sequence in chunks: within one by a
matrix of its length squared, between them by a state. Results depend on the length only by rounding. Checkpoints name
the length that suits a GPU kernel, 256. Without that kernel Transformers pads every row to it: a row of 40 tokens then
costs as much as one of 256.
"""

from __future__ import annotations

import importlib.util

from torch import nn

MAX_CHUNK = 64  # tokens; per token the matrix then costs about as much as the state
_KERNEL = "mamba_ssm"  # the package with the GPU kernel


def shorten_chunks(model: nn.Module) -> None:
    """Set chunks of more than 64 tokens to 64 in every layer that runs without the kernel."""
    has_kernel = importlib.util.find_spec(_KERNEL) is not None
    for layer in model.modules():
        length = getattr(layer, "chunk_size", None)
        if not isinstance(length, int) or length <= MAX_CHUNK or not hasattr(layer, "ssm_state_size"):
            continue
        on_gpu = all(parameter.is_cuda for parameter in layer.parameters())
        if not (has_kernel and on_gpu):
            vars(layer)["chunk_size"] = MAX_CHUNK  # typed as a tensor or module otherwise
