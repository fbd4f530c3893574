"""A stock llama-server out of the wheel xllamacpp, in a process of its own, until its standard input is closed.

    python -P xllamacpp_child.py '{"model.path": "model.gguf", "port": 8080, "lora": ["adapter.gguf"]}'

Each key is an attribute of xllamacpp's `CommonParams`; `lora`, `cache_type` and `flash` stand for
what needs its classes.
Run as a file, so that it starts without the packages that softprompt needs.
"""

from __future__ import annotations

import importlib
import json
import sys


def _main() -> None:
    """Serve until the standard input ends."""
    engine = importlib.import_module("xllamacpp")
    parameters = engine.CommonParams()
    given = json.loads(sys.argv[1])
    parameters.lora_adapters = [engine.CommonAdapterLoraInfo(path, 1.0) for path in given.pop("lora", [])]
    kv_type = getattr(engine.ggml_type, f"GGML_TYPE_{given.pop('cache_type', 'f16').upper()}")
    parameters.cache_type_k = parameters.cache_type_v = kv_type
    if not given.pop("flash", True):
        parameters.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for key, value in given.items():
        *path, last = key.split(".")
        owner = parameters
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    server = engine.Server(parameters)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    _main()
