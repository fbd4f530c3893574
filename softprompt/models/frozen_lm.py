"""The frozen base model: found, loaded, measured; its weights never change.

`FrozenLM` gives what the rest needs and no more: embeddings of ids, logits of hidden states, the tokenizer, and the
`Geometry` that soft prompts are checked against. How a prefix enters the model is `attach.py`'s business.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from softprompt.data.tokenizer import closing_ids
from softprompt.errors import ModelError, UnsupportedModelError, first_line
from softprompt.models.device import pick_device, pick_dtype
from softprompt.models.measure import context_of, measure
from softprompt.models.sources import Source, find


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
        self.geometry = measure(model, name)

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


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> FrozenLM:
    """Load a base model by Hub id, folder, GGUF file or the built-in name `smollm2-135m`.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        trust_remote_code: run Python code that comes with the model. Only ever set by the user's own hand.
        local_files_only: never download.

    Raises:
        ModelError: not found, no network, not loadable; says what to do.
        UnsupportedModelError: no prefix can be attached to it.
    """
    source = find(name)
    device, device_reason = pick_device(device)
    torch_dtype, dtype_reason = pick_dtype(dtype, device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    with _Quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
            model, missing = _load_model(source, options | {"dtype": torch_dtype})
            model = _moved(model, device)
        except Exception as error:  # foreign files read by foreign code may raise anything
            raise _unloadable("the base model cannot be loaded", name, error) from error
    if missing:
        raise ModelError(
            "the base model's files lack weights, which would be random",
            where=name,
            got=f"{len(missing)} missing, e.g. {min(missing)}",
            hint="give a complete language model",
        )
    return FrozenLM(model, tokenizer, name, f"{device_reason}; {dtype_reason}")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without loading weights. Raises ModelError."""
    source = find(name)
    with _Quiet():
        try:
            return AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code)
        except Exception as error:  # as above
            raise _unloadable("the tokenizer cannot be loaded", name, error) from error


def is_encoder_decoder(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether the model reads a text and writes another, apart (T5); no weights are loaded. Raises ModelError."""
    return bool(_config(name, trust_remote_code).is_encoder_decoder)


def context_length(name: str, *, trust_remote_code: bool = False) -> int:
    """The model's context in tokens; no weights are loaded. Raises ModelError."""
    return context_of(_config(name, trust_remote_code).get_text_config())


def _config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    source = find(name)
    with _Quiet():
        try:
            return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
        except Exception as error:  # as above
            raise _unloadable("the base model's config cannot be loaded", name, error) from error


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """On its device; a quantised model was put there when it was loaded and refuses to move."""
    if getattr(model, "is_quantized", False):
        return model
    nn.Module.to(model, torch.device(device))
    return model


def _load_model(source: Source, options: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The model, from safetensors only (never a pickle), and the names of weights that its files lack."""
    plain = {name: value for name, value in options.items() if name != "dtype"}
    reads_apart = AutoConfig.from_pretrained(source.path, **plain).is_encoder_decoder
    kind: Any = AutoModelForSeq2SeqLM if reads_apart else AutoModelForCausalLM
    loaded: Any = kind.from_pretrained(source.path, use_safetensors=True, output_loading_info=True, **options)
    model, info = loaded
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # SDPA has no soft-capping
    return model, set(info["missing_keys"])


def _unloadable(what: str, name: str, error: Exception) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        hint = "--trust-remote-code runs the Python code that comes with it; read that code first"
    elif "safetensors" in text:
        hint = "weights must be whole safetensors files: download them again, or convert them with save_pretrained"
    else:
        hint = "softprompt --debug train … shows where it failed"
    return ModelError(what, where=name, got=f"{type(error).__name__}: {first_line(error)}", hint=hint)


class _Quiet:
    """No progress bars and no chatter from Transformers while loading."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.catcher = warnings.catch_warnings()
        self.catcher.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: Any) -> None:
        self.catcher.__exit__(*exception)
        transformers_logging.set_verbosity(self.level)
