# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Read a GGUF file through Transformers and write it as a plain safetensors model folder."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from softprompt.errors import ModelError, first_line, missing_extra


def convert(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` to float32 and save model and tokenizer in `folder`.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
        ModelError: the file cannot be read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise missing_extra("gguf", "gguf", where=gguf)
    transformers_logging.disable_progress_bar()
    _keep_bar_out_of_logs()
    try:
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # a foreign file read by foreign code may raise anything
        got = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError("the GGUF file cannot be read", where=gguf, got=got) from error
    # The weights are plain now; with the marks of quantization left, save_pretrained would refuse.
    vars(model.config).pop("quantization_config", None)
    vars(model)["hf_quantizer"] = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _keep_bar_out_of_logs() -> None:
    """Show the bar of Transformers' reader on a terminal only; its own switch for bars does not reach this one."""
    if hasattr(modeling_gguf_pytorch_utils, "tqdm"):
        bar = partial(tqdm, disable=None)  # None: unless stderr is a terminal
        modeling_gguf_pytorch_utils.tqdm = bar  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
