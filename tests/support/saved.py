"""Tiny models as folders on disk, as a user has them, and settings of a run on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.data.template import Template
from softprompt.training.config import Config, resolve
from tests.support.rows import labelled, write_jsonl
from tests.support.tiny import DEVICE, tiny_model, tiny_tokenizer

TEMPLATE = "Row: {text}\\nLabel:"  # as a shell passes it
REAL = Template("text", "Row: {text}\nLabel:")


def save_tiny(folder: Path, family: str = "llama", *, bos: bool = False) -> Path:
    """A model folder with safetensors, config and tokenizer."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def settings(base: Path, folder: Path, **changes: Any) -> Config:
    """24 rows to train, 8 to validate; changes by dotted name, with __ for the dot."""
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        write_jsonl(data / "train.jsonl", *labelled(24))
        write_jsonl(data / "validation.jsonl", *labelled(8, 100))
    given = {"model": str(base), "data": str(data), "name": "tone", "template": TEMPLATE, "dtype": "float32"}
    given |= {
        "recipe": "fixed",
        "device": DEVICE,
        "method.n_tokens": 6,
        "train.steps": 6,
        "train.batch_size": 8,
        "train.evals": 2,
    }
    return resolve(given | {name.replace("__", "."): value for name, value in changes.items()})
