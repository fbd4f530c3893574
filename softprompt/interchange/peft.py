"""Reads and writes PEFT adapters of the prompt-learning types: `adapter_config.json`, `adapter_model.safetensors`.

Layout, as in PEFT 0.21 (`peft_model.py`, `get_prompt` and `get_prompt_embedding_to_save`), https://github.com/huggingface/peft:

    PROMPT_TUNING, P_TUNING, CPT   prompt_embeddings [P, H], the embeddings before those of the text (for
                                   P_TUNING the encoder's output, for CPT tokens plus their projected change)
    MULTITASK_PROMPT_TUNING        and prefix_task_cols [T, P, r], prefix_task_rows [T, r, H]; the prompt of task t is
                                   prompt_embeddings ⊙ (cols[t] @ rows[t])
    PREFIX_TUNING, CARTRIDGE       prompt_embeddings [P, 2·L·K·D]: of each virtual token keys and values of layer 0,
                                   of layer 1, …; keys post-RoPE at positions 0…P-1

PEFT puts the virtual tokens in front of everything, BOS included. It runs an adapter in inference mode, where the
saved tensor is the prompt whatever made it. Nothing here imports PEFT.

Shapes: P virtual tokens, H embedding width, L layers, K key/value heads, D head size, T tasks, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import GeometryError, StoreError
from softprompt.files import read_json, read_tensors, write_folder, write_json
from softprompt.interchange import safe_pickle
from softprompt.interchange.base import ImportedLayout, ImportedPrompt, embedding_prompt, shown_path, usable
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.registry import Format, register_format
from softprompt.models.geometry import Geometry, LayerShape
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, check_fits
from softprompt.prompts.model_card import public_name

_NAME = "peft"
_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_FRAME = "frame.json"  # softprompt's own: template, BOS and labels
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
        StoreError: no adapter of a prompt-learning type for causal language models, or damaged.
        GeometryError: a prefix that does not fit the base model.
    """
    folder = file.path
    config = _config(folder)
    kind = config["peft_type"]
    tensors = _tensors(folder, kind)
    table = tensors["prompt_embeddings"]
    n_tokens = config.get("num_virtual_tokens")
    if table.ndim != 2 or (n_tokens is not None and table.shape[0] != n_tokens):
        expected = f"[{n_tokens}, …], as {_CONFIG} says"
        raise StoreError("prompt_embeddings has another shape", where=folder, expected=expected, got=shown_path(table))
    method: dict[str, Any] = {"name": kind.lower(), "imported_from": _NAME}
    about = {"made_for": str(config.get("base_model_name_or_path") or ""), "layout": _frame(folder)}
    if kind == _MULTITASK:
        tasks = enumerate(_multitask(tensors, folder))
        return [ImportedPrompt(prompt, method | {"task": str(t)}, task=str(t), **about) for t, prompt in tasks]
    if kind in _KV_TYPES:
        if kind == "CARTRIDGE" and isinstance(config.get("num_frozen_tokens"), int):
            method["frozen_tokens"] = config["num_frozen_tokens"]
        return [ImportedPrompt(from_flat(table, geometry, folder), method, **about)]
    return [ImportedPrompt(embedding_prompt(table, folder), method, **about)]


def write(folder: Path, prompt: SoftPrompt, card: Card, lead_NH: Tensor) -> None:
    """Write an adapter that `PeftModel.from_pretrained(base, folder)` loads.

    An embedding prompt becomes PROMPT_TUNING, a KV prompt PREFIX_TUNING, or CARTRIDGE where the card says how many
    first tokens were frozen. `frame.json` is softprompt's own: with it `softprompt import` restores the template.

    Args:
        lead_NH: embeddings of what stands in front of an embedding prompt (BOS, lead), which become its first virtual
            tokens, since PEFT puts nothing before a prompt; [0, H] if nothing does.

    Raises:
        GeometryError: layers that differ or have no keys and values of their own: PEFT keeps one flat row a token.
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
    config |= {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": public_name(card.geometry.base),
        "inference_mode": True,
        "num_virtual_tokens": plain.n_tokens,
        "num_transformer_submodules": 1,
    }
    frame = {"template": card.template, "bos": card.layout.follow_bos, "labels": list(card.labels)}

    def fill(scratch: Path) -> None:
        save_file({"prompt_embeddings": table.cpu().contiguous()}, scratch / _TENSORS, metadata={"format": "pt"})
        write_json(scratch / _CONFIG, config)
        write_json(scratch / _FRAME, frame)
        (scratch / "README.md").write_text(_readme(card, config, len(lead_NH)), encoding="utf-8")

    write_folder(folder, fill)


def from_flat(table: Tensor, geometry: Geometry, where: object) -> KVPrompt:
    """A KV prompt from PEFT's [P, 2·L·K·D]. Raises GeometryError if the base model has other layers or heads."""
    shape, layers = _uniform(geometry), len(geometry.layers)
    columns = 2 * layers * shape.kv_heads * shape.key_dim
    if table.ndim != 2 or table.shape[1] != columns or not table.is_floating_point():
        expected = f"[P, 2·{layers}·{shape.kv_heads}·{shape.key_dim} = {columns}]: layers, kv heads, head size"
        raise GeometryError(
            f"the prefix does not fit {geometry.base}", where=where, expected=expected, got=shown_path(table)
        )
    parts = usable(table).view(len(table), 2 * layers, shape.kv_heads, shape.key_dim).permute(1, 2, 0, 3)
    return KVPrompt(tuple((parts[2 * i].contiguous(), parts[2 * i + 1].contiguous()) for i in range(layers)))


def to_flat(prompt: SoftPrompt, geometry: Geometry) -> Tensor:
    """PEFT's [P, 2·L·K·D] of a KV prompt; the inverse of `from_flat`."""
    _uniform(geometry)
    parts = torch.stack([tensor for kv in prompt.keys_values() or () if kv is not None for tensor in kv])
    return parts.permute(2, 0, 1, 3).reshape(prompt.n_tokens, -1)


def _uniform(geometry: Geometry) -> LayerShape:
    """The one shape of all layers, with keys as wide as values."""
    shapes = set(geometry.layers)
    shape = next(iter(shapes))
    if len(shapes) != 1 or shape is None or shape.key_dim != shape.value_dim:
        raise GeometryError(
            "PEFT keeps keys and values of one shape for all layers, which this base model does not have",
            where=geometry.base,
            got=", ".join(sorted(str(one) for one in shapes))[:200],
            hint="an embedding prompt can be exchanged",
        )
    return shape


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, of a type that is a soft prompt for a causal language model."""
    path = folder / _CONFIG
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in _TYPES:
        raise StoreError(
            "this adapter is no soft prompt", where=path, expected=f"peft_type {', '.join(_TYPES)}", got=kind
        )
    task = config.get("task_type")
    if task not in ("CAUSAL_LM", None) or config.get("num_transformer_submodules") not in (1, None):
        raise StoreError("this adapter is not for a causal language model", where=path, expected="CAUSAL_LM", got=task)
    return config


def _tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of the adapter, no more and no fewer than its type has."""
    if not (folder / _TENSORS).exists() and (folder / _PICKLE).exists():
        path = folder / _PICKLE
        with path.open("rb") as file:
            tensors: Any = safe_pickle.read_torch_file(file, path)
    else:
        path = folder / _TENSORS
        tensors = read_tensors(path)
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


def _frame(folder: Path) -> ImportedLayout | None:
    """The frame that softprompt wrote beside its own exports."""
    path = folder / _FRAME
    if not path.exists():
        return None
    data = read_json(path)
    labels = data.get("labels") if isinstance(data, dict) else None
    plain = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not plain or not isinstance(data.get("bos"), bool) or not isinstance(data.get("template"), dict):
        raise StoreError("not a frame that softprompt wrote", where=path, hint="remove it, and give --template")
    return ImportedLayout(Template.from_dict(data["template"]), data["bos"], tuple(labels or ()))


def _prompt_config(card: Card) -> dict[str, Any]:
    return {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM", "token_dim": card.geometry.hidden}


def _prefix_config(card: Card) -> dict[str, Any]:
    shape, layers = _uniform(card.geometry), len(card.geometry.layers)
    width = shape.kv_heads * shape.key_dim
    sizes = {"token_dim": width, "num_attention_heads": shape.kv_heads, "num_layers": layers}
    frozen = card.method.get("frozen_tokens")
    if isinstance(frozen, int) and 0 < frozen <= card.n_tokens:
        return {"peft_type": "CARTRIDGE", "num_frozen_tokens": frozen, **sizes}
    return {"peft_type": "PREFIX_TUNING", "prefix_projection": False, "encoder_hidden_size": width, **sizes}


def _readme(card: Card, config: Mapping[str, Any], n_lead: int) -> str:
    """What to feed the adapter, so that it sees what softprompt would have fed it."""
    base, bos = public_name(card.geometry.base), card.layout.follow_bos
    lead = f"The first {n_lead} virtual tokens are the tokens that stand in front of the prompt, such as BOS. "
    frame = json.dumps(card.template, ensure_ascii=False)
    lines = [
        f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [soft-prompt, softprompt]\n---",
        f"# {card.name}",
        f"A soft prompt of {config['num_virtual_tokens']} virtual tokens for the frozen model `{base}`, exported by "
        f"softprompt as a PEFT adapter of type {config['peft_type']}. {lead if n_lead else ''}",
        "PEFT puts the virtual tokens in front of everything, so tokenise the text "
        + ("with" if bos else "without")
        + " the special tokens that the tokenizer adds, and pad on the right:",
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, FOLDER)\n"
        f'batch = tokenizer(texts, add_special_tokens={bos}, padding=True, return_tensors="pt")\n'
        "logits = model(**batch).logits\n```",
        f"The texts are rows laid out as in training:\n\n```json\n{frame}\n```",
        "With kind `chat` the text is the user's turn: render it with the chat template and its generation prompt, "
        "and take a BOS that the template writes away.",
        f"`softprompt import FOLDER --model MODEL --name {card.name}` reads it back.",
    ]
    return "\n\n".join(lines) + "\n"


register_format(Format(_NAME, _matches, read, write, marker=_CONFIG))
