"""The frozen base model: found, loaded, measured; its weights never change.

`FrozenLM` gives what the rest needs and no more: embeddings of ids, logits of hidden states, the tokenizer, and the
`Geometry` that soft prompts are checked against. How a prefix enters the model is `attach.py`'s business.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from softprompt.errors import ConfigError, ModelError, UnsupportedModelError
from softprompt.geometry import Geometry, LayerShape
from softprompt.sources import Source, find

SAMPLED_ROWS, SAMPLED_COLUMNS = 8, 4
SAMPLED_MATRICES, SAMPLED_WEIGHTS = 16, 2


class FrozenLM:
    """A causal language model whose weights carry no gradient, with its tokenizer and geometry.

    Args:
        model: any Transformers causal LM; it is put in eval mode and frozen.
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
        logits_NV = head(hidden_NH)
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)

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
            hint="give a complete causal language model",
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


def pick_device(wanted: str) -> tuple[str, str]:
    """The device and why. Raises ConfigError if the wanted one is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        found = next(name for name in ("cuda", "mps", "cpu") if available[name])
        if found == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes
            found = f"cuda:{os.environ['LOCAL_RANK']}"
        return found, f"device {found} (the fastest one found)"
    if not available.get(wanted.split(":")[0], False):
        have = [name for name, there in available.items() if there]
        raise ConfigError(f"device {wanted} is not available", expected=f"auto or one of {have}")
    return wanted, f"device {wanted} (asked for)"


def pick_dtype(wanted: str, device: str) -> tuple[torch.dtype, str]:
    """The dtype and why: bfloat16 where the hardware multiplies it natively, else float32."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted != "auto":
        if wanted not in dtypes:
            raise ConfigError(f"dtype {wanted!r} is unknown", expected=["auto", *dtypes])
        return dtypes[wanted], f"dtype {wanted} (asked for)"
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported()
    else:
        native = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if native:
        return torch.bfloat16, f"dtype bfloat16 (native on this {device})"
    return torch.float32, f"dtype float32 (no native bfloat16 on this {device})"


@torch.no_grad()
def measure(model: PreTrainedModel, name: str) -> Geometry:
    """Run one token and read the shapes of the keys and values that each layer leaves in the cache."""
    config = model.config.get_text_config()
    embedding: Any = model.get_input_embeddings()
    table: Tensor = embedding.weight
    cache = DynamicCache()
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model.base_model(input_ids=token, past_key_values=cache, use_cache=True)
    except (TypeError, AttributeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{config.model_type} models do not work with a key/value cache",
            where=name,
            got=_first_line(error),
        ) from error
    shapes: list[LayerShape | None] = [None] * config.num_hidden_layers
    for i, layer in enumerate(cache.layers[: len(shapes)]):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and keys.numel() > 0:
            shapes[i] = LayerShape(keys.shape[1], keys.shape[3], values.shape[3])
    if not any(shapes):
        raise UnsupportedModelError(
            f"{config.model_type} models keep no keys and values, so no prefix can be put in front",
            where=name,
        )
    rows = torch.linspace(0, table.shape[0] - 1, SAMPLED_ROWS).long().tolist()
    sample = table[rows, :SAMPLED_COLUMNS].float().flatten().tolist()
    return Geometry(
        base=name,
        architecture=config.model_type,
        hidden=table.shape[1],
        vocab=table.shape[0],
        layers=tuple(shapes),
        windows=_windows(config, name),
        max_positions=_context(config),
        sample=tuple(sample),
        matrices=_matrix_sample(model, table),
    )


def _matrix_sample(model: PreTrainedModel, table: Tensor) -> tuple[float, ...]:
    """A few weights of matrices from the first to the last layer; none if they are quantised."""
    found = [weight for weight in model.base_model.parameters() if weight.ndim >= 2 and weight is not table]
    values: list[float] = []
    for i in torch.linspace(0, len(found) - 1, SAMPLED_MATRICES).long().tolist():
        weight = found[i]
        if not weight.is_floating_point() or type(weight.data) is not Tensor:
            return ()
        flat = weight.detach().reshape(-1)
        values += flat[torch.linspace(0, len(flat) - 1, SAMPLED_WEIGHTS + 2).long()[1:-1]].float().tolist()
    return tuple(values)


def _context(config: Any) -> int:
    """The context in tokens. "longrope" changes every frequency for calls beyond the original context, so a prefix
    run by itself would not be what it is in front of a long row: only the original context is exact."""
    most = int(getattr(config, "max_position_embeddings", None) or 2**31)
    rope = getattr(config, "rope_parameters", None) or {}
    for own in [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]:
        if own.get("rope_type") == "longrope":
            original = own.get("original_max_position_embeddings")
            most = min(most, int(original or getattr(config, "original_max_position_embeddings", None) or most))
    return most


def _windows(config: Any, name: str) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    # GPT-Neo and Llama 4 cut attention themselves, by place in the cache: too far for `verify`'s six tokens to see.
    if own := {"local", "chunked_attention"} & {*(kinds or ()), *(getattr(config, "attention_layers", None) or ())}:
        raise UnsupportedModelError(
            f"{config.model_type} models limit attention in a way that a prefix would shift", where=name, got=min(own)
        )
    if kinds is None:  # Mistral, Phi-3: one window for all layers or none
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """On its device; a quantised model was put there when it was loaded and refuses to move."""
    if getattr(model, "is_quantized", False):
        return model
    nn.Module.to(model, torch.device(device))
    return model


def _load_model(source: Source, options: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The model, from safetensors only (never a pickle), and the names of weights that its files lack."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.path, use_safetensors=True, output_loading_info=True, **options
    )
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
    return ModelError(what, where=name, got=f"{type(error).__name__}: {_first_line(error)}", hint=hint)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
