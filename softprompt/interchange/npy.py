"""Reads a NumPy `.npy` stream as a tensor: header checked before anything is allocated, never a pickled object.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
from typing import IO

import numpy as np
import torch
from torch import Tensor

from softprompt.errors import StoreError

MAX_BYTES = 2**30  # of an array
MAGIC = b"\x93NUMPY"  # the first bytes of a file


def read_npy(stream: IO[bytes], where: object) -> Tensor:
    """The array; raw two-byte numbers (`V2`, how JAX saves them) are bfloat16.

    Raises StoreError for a damaged file, more than 1 GiB, or anything but floats.
    """
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("only format version 1.0 is read")
        header = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError) as error:
        raise StoreError("not a readable .npy file", where=where, got=str(error)[:120]) from error
    shape, dtype = header[0], header[2]
    order = "F" if header[1] else "C"
    raw = dtype.str.endswith("V2") and dtype.fields is None
    if dtype.kind != "f" and not raw:
        raise StoreError("the array holds no floats", where=where, expected="float16, 32, 64 or bfloat16", got=dtype)
    size = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or size > MAX_BYTES:
        raise StoreError("the array is too large", where=where, expected=f"<= {MAX_BYTES:,} bytes", got=shape)
    data = stream.read(size + 1)
    if len(data) != size:
        got = f"{len(data):,} bytes or more"
        raise StoreError(
            "the array is not as long as its header says", where=where, expected=f"{size:,} bytes", got=got
        )
    array = np.frombuffer(data, dtype="<u2" if raw else dtype).reshape(shape, order=order)
    if raw:
        return torch.from_numpy(array.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=True, order="C"))
