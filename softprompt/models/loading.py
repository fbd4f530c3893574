"""Config, tokenizer and weights from disk or the Hub, into a `FrozenLM`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from softprompt.errors import ConfigError, ModelError, SoftpromptError, first_line
from softprompt.models.adapters import table_length, with_adapter
from softprompt.models.device import pick_device, pick_dtype
from softprompt.models.encoder_decoder import reading_config
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.load_in import loading_options, quantization_kind
from softprompt.models.measure import context_of
from softprompt.models.placement import (
    DeviceMap,
    describe_split,
    offload_folder,
    parse_device_map,
    remove_with,
)
from softprompt.models.quantized import has_packed_weights
from softprompt.models.sharding import taking_turns
from softprompt.models.sources import Source, find_source
from softprompt.models.transformers_compat import has_state_layers, read_config, read_tokenizer, text_config

# Classes of Transformers, and top modules of checkpoints, whose weights beside the backbone are no language model's.
_OTHER_TASKS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)|RewardModel"
)
_OTHER_HEADS = {"score", "classifier", "classification_head", "qa_outputs", "reward_head"}


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    load_in: str | None = None,
    device_map: str | DeviceMap | None = None,
    fsdp: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> FrozenLM:
    """Load a base model by Hub id, folder, GGUF file or the built-in name `smollm2-135m`.

    The folder of a PEFT LoRA adapter is the base that it names with the adapter merged; `BASE+FOLDER` names the base.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        load_in: quantize the weights on load: "4bit" or "8bit" (bitsandbytes), "int4" or "int8" (torchao). An adapter
            then stays attached instead of being merged. A quantized checkpoint is loaded as it is.
        device_map: splits a model that does not fit on one device: "auto", "balanced", "sequential" (of Accelerate), or
            a map of the model's parts to a GPU's number, "cpu" or "disk".
        fsdp: leave each process of torchrun or `accelerate launch` a part of every layer's weights (FSDP2).
        trust_remote_code: run Python code that comes with the model. Only ever set by the user's own hand.
        local_files_only: never download.

    Raises:
        ModelError: not found, no network, not loadable; says what to do.
        UnsupportedModelError: no prefix can be attached to it.
        ConfigError: options that contradict each other, or the model's files.
        MissingExtraError: a package for its quantized weights is missing.
    """
    source = find_source(name)
    local = local_files_only or source.named_by_file
    if source.named_by_file and trust_remote_code:
        hint = f"--model BASE --base-adapter {source.adapter}"
        raise ConfigError("an adapter's file must not select remote code", where=name, hint=hint)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    plan = parse_device_map(device_map, device)
    if fsdp:
        return _load_sharded(name, dtype, device, {"--device-map": plan, "--load-in": load_in}, options)
    device, device_reason = pick_device(device)
    torch_dtype, dtype_reason = pick_dtype(dtype, device)
    with _Quiet():
        try:
            tokenizer = read_tokenizer(source.tokenizer_path, **options)
            config = read_config(source.path, **options)
            outline = partial(_outline, config, trust_remote_code)
            placed = loading_options(config, outline, load_in, torch_dtype, device, name)
            folder = offload_folder()
            placed |= {"dtype": torch_dtype} | ({"device_map": plan, "offload_folder": folder} if plan else {})
            model, odd_keys = _load_model(source, options, placed)
            model = _moved(model, device) if plan is None else model
        except SoftpromptError:
            raise
        except Exception as error:  # foreign files read by foreign code may raise anything
            raise _unloadable("the base model cannot be loaded", name, error) from error
    _check_is_language_model(model, odd_keys["unexpected_keys"], name)
    if missing := odd_keys["missing_keys"]:
        raise ModelError(
            "the base model's files lack weights, which would be random",
            where=name,
            got=f"{len(missing)} missing, e.g. {min(missing)}",
            hint="give a complete language model",
        )
    if load_in is not None and not has_packed_weights(model):
        hint = "4bit and 8bit know more kinds of layers" if load_in.startswith("int") else "leave --load-in out"
        raise ModelError(f"none of its layers can be quantized to {load_in}", where=name, hint=hint)
    adapted = with_adapter(model, Path(source.adapter)) if source.adapter else model
    kind = quantization_kind(model.config)
    lm = FrozenLM(adapted, tokenizer, name)
    size = f"{lm.weight_bytes / 2**20:,.1f} MiB of weights{f', {kind}' if kind else ''}"
    lm.reason = f"{describe_split(model, plan) if plan else device_reason}; {dtype_reason}; {size}"
    if plan:
        remove_with(lm.hf_model, folder)
    return lm


def _load_sharded(
    name: str, dtype: str, device: str, others: Mapping[str, object], options: dict[str, bool]
) -> FrozenLM:
    """The model with its layers sharded over the processes, each of which reads it as a whole first.

    Args:
        others: settings that are for models in one process, by flag.
    """
    if odd := [flag for flag, value in others.items() if value is not None]:
        what = "plain weights are sharded, from one device"
        raise ConfigError(what, where="--fsdp", got=", ".join(odd), hint=f"leave out {odd[0]}, or --fsdp")
    device, _ = pick_device(device)
    torch_dtype, dtype_reason = pick_dtype(dtype, device)
    with taking_turns(device) as mesh:
        trusted, local = options["trust_remote_code"], options["local_files_only"]
        dtype = str(torch_dtype).removeprefix("torch.")
        lm = load_model(name, dtype=dtype, device="cpu", trust_remote_code=trusted, local_files_only=local)
        if kind := lm.geometry.quantization:
            hint = "--device-map auto splits it over devices, in one process"
            raise ConfigError("plain weights are sharded", where="--fsdp", got=f"{name}: {kind}", hint=hint)
        lm.shard(mesh, device)
    lm.reason = f"sharded over {mesh.size()} processes, this one on {device}; {dtype_reason}"
    return lm


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without loading weights. Raises ModelError."""
    source = find_source(name)
    with _Quiet():
        try:
            return read_tokenizer(source.tokenizer_path, **_permissions(source, trust_remote_code))
        except Exception as error:  # as above
            raise _unloadable("the tokenizer cannot be loaded", name, error) from error


def is_encoder_decoder(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether the model reads a text and writes another, apart (T5); no weights are loaded. Raises ModelError."""
    return bool(_config(name, trust_remote_code).is_encoder_decoder)


def context_length(name: str, *, trust_remote_code: bool = False) -> int:
    """The model's context in tokens; no weights are loaded. Raises ModelError."""
    config = _config(name, trust_remote_code)
    return context_of(reading_config(config) if config.is_encoder_decoder else text_config(config))


def vocabulary_size(name: str, *, trust_remote_code: bool = False) -> int:
    """Rows of the model's embedding table, its adapter's included; no weights are loaded. Raises ModelError."""
    adapter = find_source(name).adapter
    rows = int(text_config(_config(name, trust_remote_code)).vocab_size)
    return (table_length(Path(adapter)) if adapter else None) or rows


def carries_states(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether layers of the model carry recurrent or convolution states (Mamba, Qwen3.5), so that keys and values are
    not all that a prefix leaves; no weights are loaded. Raises ModelError."""
    config = _config(name, trust_remote_code)
    return not config.is_encoder_decoder and has_state_layers(text_config(config))


def _config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    source = find_source(name)
    with _Quiet():
        try:
            return read_config(source.path, **_permissions(source, trust_remote_code))
        except Exception as error:  # as above
            raise _unloadable("the base model's config cannot be loaded", name, error) from error


def _permissions(source: Source, trust_remote_code: bool) -> dict[str, bool]:
    """What Transformers may do: neither download nor run anything that a file names."""
    named_by_user = not source.named_by_file
    return {"trust_remote_code": trust_remote_code and named_by_user, "local_files_only": not named_by_user}


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """On its device; a quantised model was put there when it was loaded and refuses to move."""
    if getattr(model, "is_quantized", False):
        return model
    nn.Module.to(model, torch.device(device))
    return model


def _check_is_language_model(model: PreTrainedModel, unexpected: Collection[str], name: str) -> None:
    """Refuse the checkpoint of a classifier or reward model: with tied embeddings it would load without its head."""
    classes = [kind for kind in getattr(model.config, "architectures", None) or () if _OTHER_TASKS.search(kind)]
    heads = sorted(key for key in unexpected if key.split(".")[0] in _OTHER_HEADS)
    if classes or heads:
        raise ModelError(
            "these weights are no language model's: their head scores texts, and is not used",
            where=name,
            expected="a model that was trained to write text",
            got=(heads or classes)[0],
            hint="give the language model that it was made from",
        )


def _outline(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without weights."""
    with torch.device("meta"):
        return _auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def _load_model(
    source: Source, options: dict[str, bool], placed: dict[str, object]
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """The model, from safetensors only (never a pickle), and Transformers' missing_keys and unexpected_keys."""
    kind = _auto_class(read_config(source.path, **options))
    loaded: Any = kind.from_pretrained(source.path, use_safetensors=True, output_loading_info=True, **options, **placed)
    model, info = loaded
    configs = (text_config(model.config), reading_config(model.config))
    if any(getattr(config, "attn_logit_softcapping", None) is not None for config in configs):
        model.set_attn_implementation("eager")  # SDPA has no soft-capping
    return model, {kind: set(info[kind]) for kind in ("missing_keys", "unexpected_keys")}


def _auto_class(config: PreTrainedConfig) -> Any:
    """Transformers' loader for a config: of encoder–decoders, of text models, of models for images or sound and text.

    Of the last kind only the language model is used here. Raises ModelError for an encoder that reads no text.
    """
    custom: dict[str, object] = getattr(config, "auto_map", None) or {}
    reads_apart = type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or "AutoModelForSeq2SeqLM" in custom
    if config.is_encoder_decoder and not reads_apart:
        raise ModelError(
            "this encoder-decoder reads sound or images, not text",
            where=config.name_or_path,
            got=config.model_type,
            expected="a model that reads text (T5, BART, Marian, T5Gemma …)",
        )
    if config.is_encoder_decoder or (reads_apart and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForSeq2SeqLM
    with_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in custom
    if with_images and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in custom:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.catcher.__exit__(kind, error, trace)
        transformers_logging.set_verbosity(self.level)
