# pyright: reportMissingTypeStubs=false
"""Quantization of a base model when it is loaded, and the packages that quantized checkpoints need.

    4bit   NF4, doubly quantized, by bitsandbytes (QLoRA, Dettmers et al. 2023)
    8bit   LLM.int8() by bitsandbytes, which rounds activations too (Dettmers et al. 2022)
    int4   weight-only in groups of 32, by torchao
    int8   weight-only with a scale for each row, by torchao

A checkpoint that is quantized already says so in its config and is loaded as it is. Embeddings, norms and the head stay
in the base's dtype. The packages are imported only for a model that needs them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args

from softprompt.errors import ConfigError, MissingExtraError, missing_extra

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

Quantization = Literal["4bit", "8bit", "int4", "int8"]
QUANTIZATIONS: dict[str, str] = {
    "4bit": "bitsandbytes nf4",
    "8bit": "bitsandbytes int8",
    "int4": "torchao int4",
    "int8": "torchao int8",
}
GROUP = 32  # input features that share a scale in int4: 5 bits a weight in all
ROWS = 16  # that int4 packs together on a CPU
_READ_AS_TENSORS = ("dt_proj", "attention.output", "feed_forward.value")  # by Mamba's and RWKV's own code

# Modules by Transformers' `quant_method`; those of the extra `quant` first. Other methods name theirs when they load.
_IN_EXTRA = ("bitsandbytes", "torchao")
_MODULES = {
    "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "aqlm": ("aqlm",),
    "vptq": ("vptq",),
    "auto-round": ("auto_round",),
}


def quantization_kind(config: PreTrainedConfig) -> str:
    """Library and number format of a model's quantized weights, e.g. "bitsandbytes nf4"; "" for plain weights."""
    settings = _settings(config)
    method = _method(settings)
    if method == "bitsandbytes":
        return f"{method} {settings.get('bnb_4bit_quant_type', 'fp4') if settings.get('load_in_4bit') else 'int8'}"
    if method == "torchao":
        return f"{method} {_torchao_format(settings.get('quant_type'))}".strip()
    bits = settings.get("bits")
    return f"{method} {bits}-bit" if bits else method


def loading_options(
    config: PreTrainedConfig,
    outline: Callable[[], PreTrainedModel],
    load_in: str | None,
    dtype: torch.dtype,
    device: str,
    name: str,
) -> dict[str, object]:
    """Arguments of Transformers' `from_pretrained` for quantized weights; none for plain ones.

    Args:
        config: of the checkpoint.
        outline: makes the model without weights, whose layers of odd sizes stay plain.
        load_in: quantization on load, or None.
        dtype: of activations and of weights that are not quantized.
        name: the model's name, for messages.

    Raises:
        ConfigError: an unknown quantization, one on top of another, or one that the device does not have.
        MissingExtraError: a package is missing.
    """
    if load_in is not None and load_in not in QUANTIZATIONS:
        what = f"there is no quantization {load_in!r}"
        raise ConfigError(what, where="load_in", expected=", ".join(get_args(Quantization)), got=load_in)
    stored = quantization_kind(config)
    if stored:
        if load_in is not None and stored != QUANTIZATIONS[load_in]:
            what = "the base model is quantized already, and is not quantized once more"
            hint = "leave --load-in out, or give the model with plain weights"
            raise ConfigError(what, where=f"--load-in {load_in}", got=f"{name}: {stored}", hint=hint)
        _check_installed(_method(_settings(config)), name)
        return {"device_map": {"": device}}
    if load_in is None:
        return {}
    _check_installed(QUANTIZATIONS[load_in].split()[0], f"--load-in {load_in}")
    quantization = _quantization(load_in, dtype, device, _kept_plain(outline(), load_in, device))
    return {"device_map": {"": device}, "quantization_config": quantization}


def _kept_plain(model: PreTrainedModel, load_in: str, device: str) -> list[str] | None:
    """Modules that are not quantized; None if Transformers' own choice will do."""
    from softprompt.models.transformers_compat import modules_of, plain_by_default

    odd = list[str]()
    for name, layer in modules_of(model).items():
        rows = getattr(layer, "out_features", 0)
        unfit = load_in == "int4" and device == "cpu" and rows % ROWS
        if rows and (unfit or name.endswith(_READ_AS_TENSORS)):
            odd.append(name)
    return [*plain_by_default(model), *odd] if odd else None


def usable_on_load() -> list[str]:
    """The quantizations on load whose package is installed."""
    return [load_in for load_in, kind in QUANTIZATIONS.items() if importlib.util.find_spec(kind.split()[0]) is not None]


def _quantization(
    load_in: str, dtype: torch.dtype, device: str, plain: list[str] | None
) -> BitsAndBytesConfig | TorchAoConfig:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if load_in == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=plain,
        )
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=plain)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    if load_in == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), plain)
    if device == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False), plain)
    if device.startswith("cuda") and str(dtype) != "torch.bfloat16":
        what = "int4 computes in bfloat16 on a GPU"
        raise ConfigError(what, where="--load-in int4", got=str(dtype), hint="--dtype bfloat16, or --load-in int8")
    packing = Int4PackingFormat.TILE_PACKED_TO_4D  # of kernels that are part of torch
    return TorchAoConfig(Int4WeightOnlyConfig(GROUP, set_inductor_config=False, int4_packing_format=packing), plain)


def _settings(config: PreTrainedConfig) -> Mapping[str, object]:
    """The config's section on quantization as plain data; empty if there is none."""
    section = getattr(config, "quantization_config", None)
    if section is not None and not isinstance(section, Mapping):
        section = section.to_dict()
    return cast("Mapping[str, object]", section or {})


def _method(settings: Mapping[str, object]) -> str:
    """Transformers' `quant_method`; checkpoints of bitsandbytes may go without."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    method = settings.get("quant_method") or ""
    return str(getattr(method, "value", method))


def _torchao_format(quant_type: object) -> str:
    """ "int4" or "int8" for torchao's config of one of these, as an object or as data; "" for another."""
    plain = str(quant_type).lower().replace("_", "")
    return next((short for short in ("int4", "int8") if f"{short}weightonly" in plain), "")


def _check_installed(method: str, where: str) -> None:
    """Raise MissingExtraError, with the command that installs what lacks."""
    missing = [module for module in _MODULES.get(method, ()) if importlib.util.find_spec(module) is None]
    if missing and method in _IN_EXTRA:
        raise missing_extra(missing[0], "quant", where=where)
    if missing:
        packages = " ".join(module.replace("_", "-") for module in missing)
        what = f"weights quantized by {method} need {', '.join(missing)}"
        raise MissingExtraError(what, where=where, hint=f"pip install {packages}")
