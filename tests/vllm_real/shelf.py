"""Compiled prefixes, a running vLLM in this process, and what both must say."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.distributed.kv_transfer.kv_transfer_state import ensure_kv_transfer_shutdown

from softprompt.models.frozen_lm import FrozenLM
from softprompt.vllm.connector import request_params, transfer_config
from softprompt.vllm.prefix_file import compile_prefix, write_prefix
from tests.support.cases import text_ids
from tests.vllm_real.tiny import BLOCK, CONTEXT, generated, prefixes

NEW = 24


class Shelf:
    """The eight prefixes, compiled, with a text for each."""

    def __init__(self, lm: FrozenLM, folder: Path) -> None:
        self.folder, self.prefixes = folder, prefixes(lm)
        self.kvs = [compile_prefix(lm, p) if p.prompt else torch.zeros(0, 2, 0, 0, 0) for p in self.prefixes]
        self.names = [write_prefix(folder, kv) if len(kv) else None for kv in self.kvs]
        self.texts = [text_ids(3 + 11 * i, i) for i in range(8)]
        self.wanted = [generated(lm, p, ids, NEW) for p, ids in zip(self.prefixes, self.texts, strict=True)]

    def ids(self, i: int, placeholder: int = 0) -> list[int]:
        return [placeholder] * self.kvs[i].shape[2] + self.texts[i]


@contextmanager
def running(base: Path, shelf: Shelf, **settings: Any) -> Iterator[LLM]:
    """vLLM in this process."""
    common: dict[str, Any] = {"dtype": "float32", "max_model_len": CONTEXT, "max_num_seqs": 16, "enforce_eager": True}
    common |= {"block_size": BLOCK, "skip_tokenizer_init": True, "kv_transfer_config": transfer_config(shelf.folder)}
    llm = LLM(model=str(base), **(common | settings))
    yield llm
    del llm
    ensure_kv_transfer_shutdown()  # a connector is the process's own, not the engine's
    cleanup_dist_env_and_memory()


def params(name: str | None, **settings: Any) -> SamplingParams:
    extra = {"kv_transfer_params": request_params(name)} if name else None
    common = {"temperature": 0.0, "max_tokens": NEW, "ignore_eos": True, "detokenize": False, "extra_args": extra}
    return SamplingParams(**(common | settings))


def said(llm: LLM, rows: list[list[int]], sampling: list[SamplingParams]) -> list[Any]:
    return llm.generate([{"prompt_token_ids": ids} for ids in rows], sampling, use_tqdm=False)


def check_all(llm: LLM, shelf: Shelf) -> list[Any]:
    """All eight in one batch."""
    outputs = said(llm, [shelf.ids(i) for i in range(8)], [params(name) for name in shelf.names])
    assert [list(o.outputs[0].token_ids) for o in outputs] == shelf.wanted
    return outputs
