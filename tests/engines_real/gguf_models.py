"""GGUF files of the built-in model in plain number formats, made from the wheel's quantized one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import gguf
import numpy as np

from softprompt.models.sources import gguf_file

_KINDS = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}


@functools.cache
def plain_gguf(number_format: str) -> Path:
    """The built-in model dequantized, with matrices as "f32" or "f16", vectors as f32 and output weights of its own."""
    source = gguf_file("smollm2-135m")
    assert source is not None
    folder = tempfile.TemporaryDirectory(prefix="softprompt-gguf-")
    _kept.append(folder)
    out = Path(folder.name) / f"smollm2-{number_format}.gguf"
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], kind)
    plain = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    plain.setdefault("output.weight", plain["token_embd.weight"])
    for name, values in plain.items():
        kind = _KINDS[number_format if values.ndim > 1 else "f32"]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed at the end of the process
