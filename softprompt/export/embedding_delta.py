"""An embedding prompt as a change of P rows of the input embedding: what adapters on that table hold.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.errors import GeometryError, UnsupportedModelError
from softprompt.export.base import ExportSource
from softprompt.export.reserved_ids import ReservedIds


def replaced_rows(source: ExportSource) -> Tensor:
    """[P, H] float32: the rows of the table that the model reads as the virtual tokens.

    Raises:
        GeometryError: a prompt of keys and values or states, which no embedding is equal to.
        UnsupportedModelError: the model looks up more than one embedding for each id.
    """
    embeddings = source.prompt.input_embeddings()
    if embeddings is None:
        raise GeometryError(
            "keys and values are no embeddings",
            where=source.card.name,
            got=f"a prompt of form {source.card.form}",
            hint="--to llama-slot (llama.cpp), mlx, transformers or vllm",
        )
    lm = source.lm
    if lm.is_encoder_decoder or lm.backbone.looks_up_ids:
        what = "an id stands for more than an embedding in this model"
        raise UnsupportedModelError(what, where=lm.name, hint="--to peft, or --to transformers")
    return embeddings.float().cpu() / embedding_scale(source)


def embedding_deltas(source: ExportSource, reserved: ReservedIds) -> Tensor:
    """[P, H] float32: the sum of the table's rows of the reserved ids and of this is the virtual tokens.

    Raises GeometryError and UnsupportedModelError as `replaced_rows`.
    """
    return replaced_rows(source) - source.lm.embedding_table[list(reserved.ids)].float().cpu()


def embedding_scale(source: ExportSource) -> float:
    """Factor between the table's rows and the embeddings that the model works with (Gemma: √H); 1 for most models."""
    lm = source.lm
    row = lm.embedding_table[:64].float().cpu()
    seen = lm.embed(torch.arange(len(row))).float().cpu()
    scale = float((row * seen).sum() / (row * row).sum())
    if not torch.allclose(row * scale, seen, rtol=0.02, atol=1e-3):
        what = "the embedding of an id is more than a scaled row of a table"
        raise UnsupportedModelError(what, where=lm.name, hint="--to llama-slot, mlx or transformers")
    return 1.0 if abs(scale - 1) < 1e-3 else scale
