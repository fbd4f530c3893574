"""`--to transformers`: tensors, and a Python file of a few lines that answers with Transformers alone.

Embeddings are fed as `inputs_embeds`, between the token ids before and after them. Keys, values and states are put into
Transformers' own cache (`past_key_values`); the P positions that they take up get placeholder ids, which `generate`
leaves out since the cache has them already.

Shapes: P virtual tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.registry import register_target
from softprompt.export.row_text import row_text
from softprompt.export.transformers_answers import base_path, transformers_answers
from softprompt.formatting.context import end_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prefix.state import compute_states
from softprompt.prompts.base import LayerState
from softprompt.prompts.model_card import loadable_name

_TENSORS = "prompt.safetensors"
_SCRIPT = "use.py"

_OPENING = '''"""Answers after the soft prompt {name}, by Transformers alone: python use.py "a text"."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import {classes}

BASE = {base}
{constants}
BEFORE, AFTER = {before}, {after}  # text around the input
END = {end}  # token ids that end an answer
TENSORS = load_file(Path(__file__).parent / "prompt.safetensors")


'''
_EMBEDDINGS = '''def answer(model, ids, **options):
    """What `generate` returns for a text, given as token ids, after the soft prompt."""
    embed = model.get_input_embeddings()
    lead, rest = (torch.tensor(part, dtype=torch.long, device=model.device) for part in (LEAD, FOLLOW + ids))
    virtual = TENSORS["embeddings"].to(model.device, model.dtype)
    embeds = torch.cat([embed(lead){scale}, virtual, embed(rest){scale}])[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device)
    return model.generate(inputs_embeds=embeds, attention_mask=mask, **options)
'''
_CACHE = '''def soft_prompt(model):
    """A cache that holds the soft prompt, at positions 0 to {last}."""
    cache = DynamicCache(config=model.config)
    layers = {{}}
    for name, tensor in TENSORS.items():
        _, i, part = name.split(".", 2)
        layers.setdefault(int(i), {{}})[part] = tensor[None].to(model.device)
    for i, layer in sorted(layers.items()):
        if "k" in layer:
            cache.update(layer["k"].to(model.dtype), layer["v"].to(model.dtype), i)
{states}    return cache


def answer(model, ids, **options):
    """What `generate` returns for a text, given as token ids, after the soft prompt. It begins with the {first} ids
    before the text, of which those of virtual tokens are 0."""
    given = torch.tensor([[0] * {size} + FOLLOW + ids], device=model.device)
    renamed = tuple(map(int, __version__.split(".")[:2])) >= (5, 24)
    past = {{"cache" if renamed else "past_key_values": soft_prompt(model)}}
    return model.generate(given, attention_mask=torch.ones_like(given), **past, **options)
'''
_STATES = """        for name in sorted(layer.keys() - {"k", "v"}):
            kind, number = name.split(".")
            if kind == "conv":
                state = layer[name].to(model.dtype)
                cache.update_conv_state(state, i, int(number), conv_kernel_size=state.shape[-1])
            else:
                cache.update_recurrent_state(layer[name], i, int(number))
"""
_MAIN = """

if __name__ == "__main__":
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer(BEFORE + sys.argv[1] + AFTER, add_special_tokens=False).input_ids
    out = answer(model, ids, max_new_tokens=64, do_sample=False, eos_token_id=END, pad_token_id=END[0])
    print(tokenizer.decode(out[0]{cut}, skip_special_tokens=True))
"""


@dataclass(frozen=True)
class _Carried:
    """What goes into the file.

    Attributes:
        tensors: by name: "embeddings" [P, H], or "layers.i.k" [K, P, D], "layers.i.v", "layers.i.conv.j", …
        lead, follow: token ids before the virtual tokens and after them.
        size: positions that they take up.
    """

    tensors: dict[str, Tensor]
    lead: tuple[int, ...]
    follow: tuple[int, ...]
    size: int


def _write(out: Path, source: ExportSource) -> Exported:
    carried = _carried(source)
    script = _script(source, carried)

    def fill(scratch: Path) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in carried.tensors.items()}
        save_file(plain, scratch / _TENSORS, metadata={"format": "pt"})
        (scratch / _SCRIPT).write_text(script, encoding="utf-8")

    usage = (
        f"`{_SCRIPT}`, which needs Transformers and safetensors alone:\n\n```python\n{script}```\n\n"
        "Import it as a module to answer many texts: `answer(model, ids)` takes whatever `generate` takes."
    )
    notes = [f"The tensors are for `{_base_name(source)}` alone; another model's layers give other answers."]
    if row_text(source) is None:
        notes.append("The template has several fields: give the text of a whole row, written as below.")
    return write_export(out, source, fill, f'python {out / _SCRIPT} "your text"', usage, notes)


def _carried(source: ExportSource) -> _Carried:
    """Embeddings as they are; keys, values and states as the model's cache holds them after the virtual tokens.

    Raises UnsupportedModelError if `generate` cannot go on from them.
    """
    lm, prompt = source.lm, source.prompt
    if lm.is_encoder_decoder:
        what = "an encoder-decoder's soft prompt acts inside the encoder, which these lines do not run"
        raise UnsupportedModelError(what, where=lm.name, hint="--to peft")
    prefix = source.formatted.prefix(lm)
    prepare_prefixes(lm, [prefix])  # refuses what is not exact on this model
    embeddings = prompt.input_embeddings()
    if embeddings is not None and _feeds_embeddings(lm):
        return _Carried({"embeddings": embeddings}, prefix.lead, prefix.follow, prompt.n_tokens)
    if lm.backbone.cache_argument != CACHE_ARGUMENT or not any(lm.geometry.layers):
        what = "generate counts the positions of keys, and this model has none"
        raise UnsupportedModelError(what, where=lm.name, got=lm.geometry.architecture, hint="softprompt serve")
    if embeddings is None:
        return _Carried(_named(prompt.states() or ()), (), prefix.follow, prompt.n_tokens)
    if lm.geometry.states:
        computed = compute_states(lm, prefix)
        return _Carried(_named(computed.states()), (), (), computed.n_tokens)
    pairs = [{"keys": kv[0][0], "values": kv[1][0]} if kv else {} for kv in compute_keys_values(lm, prefix)]
    tensors = _named(pairs)
    return _Carried(tensors, (), (), next(iter(tensors.values())).shape[1])


def _feeds_embeddings(lm: FrozenLM) -> bool:
    """Whether `generate` takes embeddings, and these are all that the model looks up for an id."""
    prepare = getattr(type(lm.hf_model), "prepare_inputs_for_generation", None)
    takes_some = prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters
    return takes_some and not lm.backbone.looks_up_ids


def _named(layers: Sequence[LayerState]) -> dict[str, Tensor]:
    """Tensors of layers by the names in the file."""
    names = {"keys": "k", "values": "v"}
    return {f"layers.{i}.{names.get(name, name)}": part for i, held in enumerate(layers) for name, part in held.items()}


def _script(source: ExportSource, carried: _Carried) -> str:
    lm, around = source.lm, row_text(source)
    embeds = "embeddings" in carried.tensors
    constants = [f"LEAD = {list(carried.lead)}  # token ids before the virtual tokens"] if embeds else []
    constants.append(f"FOLLOW = {list(carried.follow)}  # token ids after the virtual tokens")
    opening = _OPENING.format(
        name=source.card.name,
        classes="AutoModelForCausalLM, AutoTokenizer" + ("" if embeds else ", DynamicCache, __version__"),
        base=json.dumps(_base_name(source)),
        constants="\n".join(constants),
        before=json.dumps(around.before if around else "", ensure_ascii=False),
        after=json.dumps(around.after if around else "", ensure_ascii=False),
        end=list(end_ids(lm, source.formatted.template)),
    )
    if embeds:
        scale = lm.backbone.embedding_scale
        return opening + _EMBEDDINGS.format(scale="" if scale == 1.0 else f" * {scale}") + _MAIN.format(cut="")
    first = carried.size + len(carried.follow)
    with_states = any(name.split(".")[2] not in ("k", "v") for name in carried.tensors)
    body = _CACHE.format(last=carried.size - 1, size=carried.size, first=first, states=_STATES if with_states else "")
    return opening + body + _MAIN.format(cut=f"[{first} + len(ids) :]")


def _base_name(source: ExportSource) -> str:
    """What users load: the base model's public name."""
    return loadable_name(source.card.geometry.base)


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    lm = source.lm
    dtype = str(lm.dtype).removeprefix("torch.")
    return transformers_answers(base_path(lm), dtype, str(lm.device), rows, folder / _SCRIPT)


register_target(
    ExportTarget("transformers", "Transformers: tensors, and the lines that use them (all forms)", _write, _answers)
)
