"""The frozen base model: found, loaded, measured; its weights never change.

`FrozenLM` gives what the rest needs and no more: embeddings of ids, logits of hidden states, the tokenizer, and the
`Geometry` that soft prompts are checked against. How a prefix enters the model is `attach.py`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.data.tokenizer import closing_ids
from softprompt.errors import UnsupportedModelError
from softprompt.models.measure import measure_geometry


class FrozenLM:
    """A language model whose weights carry no gradient, with its tokenizer and geometry.

    Args:
        model: any Transformers causal LM, or an encoder–decoder; it is put in eval mode and frozen.
        tokenizer: its tokenizer.
        name: what messages and cards call it.
        reason: why this device and dtype, for display.

    Raises:
        UnsupportedModelError: the model keeps no keys and values that a prefix could extend.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, reason: str = "") -> None:
        self.model, self.tokenizer, self.name, self.reason = model.eval(), tokenizer, name, reason
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.config = model.config.get_text_config()
        self.layer_types: tuple[str, ...] = tuple(getattr(self.config, "layer_types", None) or ())
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.is_encoder_decoder = bool(self.config.is_encoder_decoder)
        # The first T5 and umT5 shrink what their heads read; T5 1.1, FLAN-T5 and mT5 do not.
        shrinks = getattr(self.config, "scale_decoder_outputs", self.config.model_type == "umt5")
        self.head_scale: float | None = self.config.d_model**-0.5 if shrinks else None
        self.closing = tuple(closing_ids(tokenizer)) if self.is_encoder_decoder else ()
        self.geometry = measure_geometry(model, name)

    @property
    def embedding(self) -> nn.Embedding:
        """The table of token embeddings."""
        table = self.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Embeddings [..., H] of ids [...], scaled as the model itself would."""
        return self.embedding(torch.as_tensor(ids, device=self.device))

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in the model's dtype of final hidden states [N, H]."""
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        logits_NV = head(hidden_NH if self.head_scale is None else hidden_NH * self.head_scale)
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)

    @property
    def start_id(self) -> int:
        """The token that opens an encoder–decoder's answer. Raises UnsupportedModelError if the model names none."""
        for config in (self.model.generation_config, self.config):
            if isinstance(found := getattr(config, "decoder_start_token_id", None), int):
                return found
        raise UnsupportedModelError("the model names no token to start its decoder with", where=self.name)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without added special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def digest(self) -> str:
        """sha256 hex of every weight and buffer: proof that training left the base model alone."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            sha.update(f"{name} {tuple(tensor.shape)}\n".encode())
            sha.update(plain.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def checkpoint_layers(self, on: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations.

        Transformers' own switch drops the cache, and with it the prefix; this one wraps the layers and keeps it,
        which is sound because `attach.py`'s cache does not change when a layer runs twice.
        """
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.__dict__.pop("forward", None)
                if on:
                    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
