"""LoRA and other PEFT adapters of the base model itself, merged into its weights.

A base model with an adapter is another base model: its soft prompts fit nothing else. It is merged when it is loaded,
so that everything that runs the model (packed rows, paged caches, graphs) sees plain layers. Each matrix is merged in
float32 and rounded once. Where merging would change the model (quantised weights), the adapter stays attached.

The PEFT package is imported only here, and only if there is an adapter.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.errors import ModelError, UnsupportedModelError, first_line, missing_extra
from softprompt.files import read_json
from softprompt.models.geometry import SAMPLE_TOLERANCE, SMALLEST, AdaptedWeight
from softprompt.models.sources import ADAPTER_CONFIG
from softprompt.models.transformers_compat import modules_of
from softprompt.models.weights import spread

if TYPE_CHECKING:
    from peft import PeftModel

_TENSORS = "adapter_model.safetensors"
_PROBED = 16  # parameters of which a card lists a weight
_TABLES = re.compile(r"\b(embed_tokens|lm_head|wte|shared|embed_in|embed_out|word_embeddings)(\.base_layer)?\.weight$")
_WRAPPERS = (".base_layer", ".original_module")  # that PEFT puts around a module
_PREFIX = "base_model.model."  # of the names in a PeftModel
_TASKS = {False: ("CAUSAL_LM", None), True: ("SEQ_2_SEQ_LM", None)}  # by whether it is an encoder–decoder
# How the weights began. After the others the base is not the one that the adapter names, or other files are read.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "olora", "pissa")


def with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the LoRA adapter in this folder attached to it.

    Raises:
        MissingExtraError: PEFT is not installed.
        ModelError: no LoRA adapter, not in safetensors, or one of another model.
    """
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "peft", where=folder)
    _check_config(folder, bool(model.config.is_encoder_decoder))
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            rows, table = table_length(folder), model.get_input_embeddings()
            if rows is not None and rows != len(table.get_parameter("weight")):
                model.resize_token_embeddings(rows, mean_resizing=False)
            adapted = cast("Any", PeftModel).from_pretrained(model, str(folder), torch_device=str(model.device))
            if stray := _left_out(model, _stored_shapes(folder)):
                raise ValueError(f"the file holds more than the config names, e.g. {stray[0]}")
            return adapted
        except Exception as error:  # a foreign file read by foreign code may raise anything
            got = f"{type(error).__name__}: {first_line(error)}"
            hint = "give the base model that it was trained on"
            raise ModelError(
                "the adapter does not fit the base model", where=folder, got=got[:300], hint=hint
            ) from error


def plain_model(model: PreTrainedModel | PeftModel, name: str) -> tuple[PreTrainedModel, tuple[AdaptedWeight, ...]]:
    """A model without PEFT's layers that computes the same, and the weights that an adapter moved most.

    A model without adapters is returned as it is. Of a PeftModel, or a model that Transformers itself attached adapters
    to (`add_adapter`), everything is shared but the adapted layers, and the model itself stays as it was.

    Raises UnsupportedModelError for prompts of PEFT, and for adapters that cannot be merged.
    """
    base = model
    if _is_peft(model):
        base = model.get_base_model()
        if model.active_peft_config.is_prompt_learning:
            hint = "softprompt import reads such an adapter; the base model is model.get_base_model()"
            raise UnsupportedModelError("a PeftModel with a soft prompt is no base model", where=name, hint=hint)
    elif not getattr(model, "_hf_peft_config_loaded", False):
        return cast("PreTrainedModel", model), ()
    return _attached(base) if getattr(base, "is_quantized", False) else _merged(model, name)


def _is_peft(model: nn.Module) -> TypeGuard[PeftModel]:
    peft = sys.modules.get("peft")  # a model of PEFT's cannot exist without it
    return peft is not None and isinstance(model, peft.PeftModel)


def _merged(model: nn.Module, name: str) -> tuple[PreTrainedModel, tuple[AdaptedWeight, ...]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})  # other modules, the same tensors
    before = dict(_base_parameters(model))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of merged layers, which are merged already
        try:
            for layer in twin.modules():
                if isinstance(layer, BaseTunerLayer):
                    _merge_layer(layer)
            tuner: Any = twin.base_model
            merged = tuner.merge_and_unload() if _is_peft(twin) else _without_layers(twin)
        except Exception as error:  # of any kind of adapter
            got = f"{type(error).__name__}: {first_line(error)}"[:300]
            raise UnsupportedModelError("the adapter cannot be merged", where=name, got=got) from error
    plain = cast("PreTrainedModel", merged)
    after = plain.named_parameters(remove_duplicate=False)
    return plain, _moved_most({key: (before.get(key), weight) for key, weight in after})


def _merge_layer(layer: Any) -> None:
    """Merge in float32, and round once to the dtype of the base's weights, which are replaced and never changed."""
    base = layer.get_base_layer()
    dtypes = {key: weight.dtype for key, weight in base.named_parameters(recurse=False)}
    for module in layer.modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            own = weight.detach().to(torch.float32, copy=True)
            module.register_parameter(key, nn.Parameter(own, requires_grad=False))
    layer.merge(safe_merge=True)
    for key, dtype in dtypes.items():
        base.register_parameter(key, nn.Parameter(base.get_parameter(key).detach().to(dtype), requires_grad=False))


def _without_layers(model: nn.Module) -> nn.Module:
    """A Transformers model whose own adapters are merged, with plain layers in place of PEFT's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for place, layer in modules_of(model).items():
        if isinstance(layer, BaseTunerLayer):
            model.set_submodule(place, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    vars(model)["_hf_peft_config_loaded"] = False
    return model


def _attached(base: nn.Module) -> tuple[PreTrainedModel, tuple[AdaptedWeight, ...]]:
    """The base with the adapter's layers in it: quantised weights with an adapter merged would be other weights."""
    assert isinstance(base, PreTrainedModel), "a language model of Transformers"
    new = {key: weight for key, weight in base.named_parameters() if ".lora_" in key and weight.is_floating_point()}
    return base, _moved_most({key: (torch.zeros_like(weight), weight) for key, weight in new.items()})


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's own parameters, by the names that they have without PEFT."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        for wrapper in _WRAPPERS:
            name = name.replace(f"{wrapper}.", ".")
        yield name.removeprefix(_PREFIX), weight


def _moved_most(weights: dict[str, tuple[Tensor | None, Tensor]]) -> tuple[AdaptedWeight, ...]:
    """Of parameters before and after, the weight of each that changed by the largest share of itself."""
    changed = {key: pair for key, pair in weights.items() if pair[0] is not pair[1]}
    moved: list[AdaptedWeight] = []
    for key, (old, new) in changed.items():
        fresh = new.detach().float().reshape(-1)
        stale = torch.zeros_like(fresh) if old is None or old.shape != new.shape else old.detach().float().reshape(-1)
        scale = torch.maximum(fresh.abs(), stale.abs())
        share = (fresh - stale).abs() / (scale + scale.mean() + SMALLEST)
        index = int(share.argmax())
        difference, size = float((fresh - stale)[index].abs()), float(scale[index])
        if difference > 2 * max(SAMPLE_TOLERANCE * size, SMALLEST):
            moved.append((key, index, float(fresh[index])))
    return tuple(moved[i] for i in spread(len(moved), min(_PROBED, len(moved)))) if moved else ()


def _check_config(folder: Path, is_encoder_decoder: bool) -> None:
    """Refuse what is no LoRA adapter of a language model in safetensors, or would read or import more than that."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path.resolve())
    kind, task = (config.get(key) if isinstance(config, dict) else None for key in ("peft_type", "task_type"))
    if not isinstance(config, dict) or kind != "LORA":
        hint = (
            "softprompt import reads soft prompts of PEFT; another adapter can be merged in PEFT and saved as a model"
        )
        raise ModelError("no LoRA adapter", where=path, expected="peft_type LORA", got=str(kind)[:100], hint=hint)
    if task not in _TASKS[is_encoder_decoder]:
        what, hint = "the adapter is for another kind of model", "give the base model that it was trained on"
        expected = _TASKS[is_encoder_decoder][0]
        raise ModelError(what, where=path, expected=expected, got=str(task)[:100], hint=hint)
    beginning = config.get("init_lora_weights", True)
    began_as = beginning.split("_")[0] if isinstance(beginning, str) else beginning
    odd = [key for key in ("megatron_config", "corda_config", "alora_invocation_tokens") if config.get(key)]
    if odd or began_as not in _BEGINNINGS:
        what = "this kind of LoRA is not read: it changes more than the weights of the base model, or reads other files"
        got = odd[0] if odd else f"init_lora_weights {str(beginning)[:60]}"
        raise ModelError(what, where=path, got=got, hint="merge it in PEFT and save the model")
    if not (folder / _TENSORS).is_file():
        raise _no_safetensors(folder)


def table_length(folder: Path) -> int | None:
    """Rows of the embedding table in an adapter that brings one, which may have tokens added; None without one.

    Raises ModelError for a damaged file, or none in safetensors.
    """
    if not (folder / _TENSORS).is_file():
        raise _no_safetensors(folder)
    try:
        shapes = _stored_shapes(folder)
    except (SafetensorError, OSError) as error:
        raise ModelError("damaged weights of an adapter", where=folder, got=first_line(error)) from error
    rows = {shape[0] for key, shape in shapes.items() if _TABLES.search(key) and len(shape) == 2}
    return rows.pop() if len(rows) == 1 else None


def _no_safetensors(folder: Path) -> ModelError:
    hint = "save it anew with PEFT's save_pretrained, which writes safetensors"
    return ModelError("the adapter's weights are not in safetensors", where=folder, expected=_TENSORS, hint=hint)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    opened: Any = safe_open(folder / _TENSORS, framework="pt")
    with opened as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping


def _left_out(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors for modules of the model that have no adapter by its config: PEFT passes them over without a word."""
    modules = modules_of(model)
    targets = {key: modules.get(key.removeprefix(_PREFIX).split(".lora_")[0]) for key in shapes if ".lora_" in key}
    return sorted(key for key, module in targets.items() if module is not None and not hasattr(module, "base_layer"))
