"""Reads and writes PEFT adapters of the prompt-learning types: `adapter_config.json`, `adapter_model.safetensors`.

Layout, as in PEFT 0.21 (`peft_model.py`, `get_prompt` and `get_prompt_embedding_to_save`), https://github.com/huggingface/peft:

    PROMPT_TUNING, P_TUNING, CPT   prompt_embeddings [P, H], the embeddings before those of the text (for
                                   P_TUNING the encoder's output, for CPT tokens plus their projected change)
    MULTITASK_PROMPT_TUNING        and prefix_task_cols [T, P, r], prefix_task_rows [T, r, H]; the prompt of task t is
                                   prompt_embeddings ⊙ (cols[t] @ rows[t])
    PREFIX_TUNING, CARTRIDGE       prompt_embeddings [P, 2·L·K·D]: of each virtual token keys and values of layer 0,
                                   of layer 1, …; keys post-RoPE at positions 0…P-1 (`peft_layers`)

PEFT puts the virtual tokens in front of everything, BOS included. It runs an adapter in inference mode, where the
saved tensor is the prompt whatever made it. Nothing here imports PEFT.

For an encoder–decoder (task_type SEQ_2_SEQ_LM) `num_transformer_submodules` is 2 unless it is set. Embeddings are then
[2·P, H], of which the first P stand before the text in the encoder and the others are not used, but by multitask prompt
tuning, which puts them into the decoder. Keys and values are those of the decoder's self-attention.

Shapes: P virtual tokens, H embedding width, L layers, K key/value heads, D head size, T tasks, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.files import read_json, read_tensors, write_folder, write_json
from softprompt.interchange import safe_pickle
from softprompt.interchange.base import ImportedPrompt, embedding_prompt, shown_path
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.frame import FRAME, frame_of, read_frame
from softprompt.interchange.peft_layers import from_flat, layer_count, the_shape, to_flat
from softprompt.interchange.peft_readme import adapter_readme
from softprompt.interchange.registry import Format, register_format
from softprompt.json_types import JSONObject
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import EmbeddingPrompt, check_fits
from softprompt.prompts.model_card import loadable_name

_NAME = "peft"
_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING", "CPT")
_KV_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
_MULTITASK = "MULTITASK_PROMPT_TUNING"
_TYPES = (*_EMBEDDING_TYPES, _MULTITASK, *_KV_TYPES)
_MULTITASK_TENSORS = ("prefix_task_cols", "prefix_task_rows")


def _matches(file: ForeignFile) -> bool:
    return (file.path / _CONFIG).exists()


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The prompts of an adapter: one, or one per task of a multitask adapter.

    Args:
        file: the adapter's folder.
        geometry: of the base model, by which a flat prefix is cut into layers and heads.

    Raises:
        StoreError: no adapter of a prompt-learning type for this kind of language model, or damaged.
        GeometryError: a prefix that does not fit the base model.
    """
    folder = file.path
    config = _config(file, is_encoder_decoder=bool(geometry.sites))
    kind = str(config["peft_type"])
    tensors = _tensors(file, kind)
    tensors["prompt_embeddings"] = table = _table(tensors["prompt_embeddings"], config, folder)
    method: dict[str, object] = {"name": kind.lower(), "imported_from": _NAME}
    about = {"made_for": str(config.get("base_model_name_or_path") or ""), "layout": read_frame(file)}
    if kind == _MULTITASK:
        tasks = enumerate(_multitask(tensors, folder))
        return [ImportedPrompt(prompt, {**method, "task": str(t)}, task=str(t), **about) for t, prompt in tasks]
    if kind in _KV_TYPES:
        if kind == "CARTRIDGE" and isinstance(config.get("num_frozen_tokens"), int):
            method["frozen_tokens"] = config["num_frozen_tokens"]
        return [ImportedPrompt(from_flat(table, geometry, folder), method, **about)]
    return [ImportedPrompt(embedding_prompt(table, folder), method, **about)]


def write(folder: Path, prompt: SoftPrompt, card: Card, lead_NH: Tensor) -> None:
    """Write an adapter that `PeftModel.from_pretrained(base, folder)` loads.

    An embedding prompt becomes PROMPT_TUNING, a KV prompt PREFIX_TUNING, or CARTRIDGE where the card says how many
    first tokens were frozen; of an encoder–decoder both are for SEQ_2_SEQ_LM. `frame.json` is softprompt's own: with it
    `softprompt import` restores the template.

    Args:
        lead_NH: embeddings of what comes before an embedding prompt (BOS, lead), which become its first virtual
            tokens, since PEFT puts nothing before a prompt; [0, H] if nothing does.

    Raises:
        GeometryError: layers that differ or have no keys and values of their own: PEFT keeps one flat row a token. Keys
            and values in an encoder or in cross-attention, where PEFT puts none.
        StoreError: the folder exists, or cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise StoreError("this is there already, nothing was written", where=folder, hint="choose another --out")
    plain = prompt.materialize()
    embeddings = plain.input_embeddings()
    if embeddings is not None:
        table = torch.cat([lead_NH.to(embeddings), embeddings])
        plain, config = EmbeddingPrompt(table), _prompt_config(card)
    else:
        table, config = to_flat(plain, card.geometry), _prefix_config(card)
    check_fits(plain, card.geometry)
    apart, base = bool(card.geometry.sites), loadable_name(card.geometry.base)
    config |= {
        "task_type": "SEQ_2_SEQ_LM" if apart else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": plain.n_tokens,
        "num_transformer_submodules": 2 if apart and embeddings is None else 1,
    }

    def fill(scratch: Path) -> None:
        save_file({"prompt_embeddings": table.cpu().contiguous()}, scratch / _TENSORS, metadata={"format": "pt"})
        write_json(scratch / _CONFIG, config)
        write_json(scratch / FRAME, frame_of(card))
        (scratch / "README.md").write_text(adapter_readme(card, config, len(lead_NH)), encoding="utf-8")

    write_folder(folder, fill)


def _config(file: ForeignFile, *, is_encoder_decoder: bool) -> JSONObject:
    """adapter_config.json, of a type that is a soft prompt for this kind of language model."""
    path = file.path / _CONFIG
    config = read_json(file.member(_CONFIG))
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(kind, str) or kind not in _TYPES:
        hint = "a LoRA adapter is part of a base model: give it with --base-adapter" if kind == "LORA" else None
        raise StoreError(
            "this adapter is no soft prompt", where=path, expected=f"peft_type {', '.join(_TYPES)}", got=kind, hint=hint
        )
    task, submodules = config.get("task_type"), config.get("num_transformer_submodules")
    wanted = "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM"
    if task not in (wanted, None) or (submodules not in (1, None) and not is_encoder_decoder):
        models = "an encoder-decoder" if is_encoder_decoder else "a causal language model"
        got = task if submodules in (1, None) else f"{task}, num_transformer_submodules {submodules}"
        raise StoreError(f"this adapter is not for {models}", where=path, expected=wanted, got=got)
    if is_encoder_decoder:
        config["num_transformer_submodules"] = submodules = 2 if submodules is None else submodules
        _check_encoder_decoder(kind, submodules, path)
    return config


def _check_encoder_decoder(kind: str, submodules: object, path: Path) -> None:
    """Refuse an adapter of an encoder–decoder that no soft prompt is equal to."""
    reason = ""
    if kind == "CPT":
        reason = "PEFT has CPT for causal language models alone"
    elif kind == _MULTITASK and submodules != 1:
        reason = "it has virtual tokens in the decoder, too, which PEFT's own generate leaves out"
    elif kind in _KV_TYPES and submodules != 2:
        reason = "PEFT itself does not run such a prefix: the decoder's two attentions would share one cache"
    elif submodules not in (1, 2):
        reason = "an encoder-decoder has two parts"
    if reason:
        got = f"{kind}, num_transformer_submodules {submodules}"
        raise StoreError(f"this adapter is not read: {reason}", where=path, got=got)


def _table(table: Tensor, config: Mapping[str, object], where: object) -> Tensor:
    """The P rows of `prompt_embeddings` that are used, checked against the config."""
    n_tokens = config.get("num_virtual_tokens")
    twice = config.get("num_transformer_submodules") == 2 and config["peft_type"] in _EMBEDDING_TYPES
    rows = 2 * n_tokens if twice and isinstance(n_tokens, int) else n_tokens
    if table.ndim != 2 or (n_tokens is not None and table.shape[0] != rows):
        expected = f"[{rows}, …], as {_CONFIG} says"
        raise StoreError("prompt_embeddings has another shape", where=where, expected=expected, got=shown_path(table))
    return table[: len(table) // 2] if twice else table


def _tensors(file: ForeignFile, kind: str) -> dict[str, Tensor]:
    """The tensors of the adapter, no more and no fewer than its type has."""
    path = file.path / _TENSORS
    if not path.exists() and (file.path / _PICKLE).exists():
        path = file.path / _PICKLE
        with path.open("rb") as stream:
            tensors: object = safe_pickle.read_torch_file(stream, path)
    else:
        tensors = read_tensors(file.member(_TENSORS))
    wanted = {"prompt_embeddings", *(_MULTITASK_TENSORS if kind == _MULTITASK else ())}
    if not isinstance(tensors, dict) or tensors.keys() != wanted:
        got = ", ".join(map(str, list(tensors)[:6])) if isinstance(tensors, dict) else shown_path(tensors)
        raise StoreError(f"other tensors than those of {kind}", where=path, expected=", ".join(sorted(wanted)), got=got)
    if odd := [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise StoreError(f"{odd[0]} is no tensor", where=path)
    return tensors


def _multitask(tensors: Mapping[str, Tensor], where: object) -> list[EmbeddingPrompt]:
    """One prompt per task; Wang et al. 2023, https://arxiv.org/abs/2303.02861, equation 1."""
    shared = tensors["prompt_embeddings"].float()
    cols, rows = (tensors[name].float() for name in _MULTITASK_TENSORS)
    tasks, ranks = len(cols), cols.shape[-1]
    if tuple(cols.shape) != (tasks, len(shared), ranks) or tuple(rows.shape) != (tasks, ranks, shared.shape[1]):
        raise StoreError(
            "the task tensors do not fit together",
            where=where,
            expected="[T, P, r] and [T, r, H]",
            got=f"{shown_path(cols)} and {shown_path(rows)}",
        )
    return [embedding_prompt(shared * (col @ row), where) for col, row in zip(cols, rows, strict=True)]


def _prompt_config(card: Card) -> dict[str, object]:
    return {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM", "token_dim": card.geometry.hidden}


def _prefix_config(card: Card) -> dict[str, object]:
    shape, layers = the_shape(card.geometry), layer_count(card.geometry)
    width = shape.kv_heads * shape.key_dim
    sizes = {"token_dim": width, "num_attention_heads": shape.kv_heads, "num_layers": layers}
    frozen = card.method.get("frozen_tokens")
    if isinstance(frozen, int) and 0 < frozen <= card.n_tokens:
        return {"peft_type": "CARTRIDGE", "num_frozen_tokens": frozen, **sizes}
    return {"peft_type": "PREFIX_TUNING", "prefix_projection": False, "encoder_hidden_size": width, **sizes}


register_format(Format(_NAME, _matches, read, write, marker=_CONFIG))
