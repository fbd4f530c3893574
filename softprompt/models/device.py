"""Device and dtype of a base model: chosen from the hardware, or as given."""

from __future__ import annotations

import os
import sys

import torch

from softprompt.errors import ConfigError


def pick_device(wanted: str) -> tuple[str, str]:
    """The device and the reason. Raises ConfigError if the wanted one is not available."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
        if device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return device, f"device {device} (the fastest one found)"
    if not available.get(wanted.split(":")[0], False):
        have = [name for name, there in available.items() if there]
        raise ConfigError(f"device {wanted} is not available", expected=f"auto or one of {have}")
    return wanted, f"device {wanted} (asked for)"


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work, so that time can be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: of tensors on a GPU, elsewhere of the whole process; 0 if it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pick_dtype(wanted: str, device: str) -> tuple[torch.dtype, str]:
    """The dtype and the reason: bfloat16 where the hardware multiplies it natively, else float32."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted != "auto":
        if wanted not in dtypes:
            raise ConfigError(f"dtype {wanted!r} is unknown", expected=["auto", *dtypes])
        return dtypes[wanted], f"dtype {wanted} (asked for)"
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else device == "cpu" and _has_bfloat16_units()
    if native:
        return torch.bfloat16, f"dtype bfloat16 (native on this {device})"
    return torch.float32, f"dtype float32 (no native bfloat16 on this {device})"


def _has_bfloat16_units() -> bool:
    with_avx = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage] - there is no public name
    return with_avx or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
