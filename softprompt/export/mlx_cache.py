# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The border to MLX: keys and values as a prompt cache of mlx-lm, and mlx-lm's greedy answers after one.

An installed mlx-lm makes the cache objects of the model and saves them itself, so that any of its versions reads the
file. Without it the file is written in the format of mlx-lm 0.32 (`models/cache.py`, `save_prompt_cache`): of layer i
the tensors `i.0` keys, `i.1` values and `i.2` the number of tokens; class names and kinds of scalars as metadata.

Shapes: T tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import FOREIGN_ERRORS, MissingExtraError, UnsupportedModelError, first_line
from softprompt.export.base import EngineAnswer, EngineRow
from softprompt.files import read_json
from softprompt.json_types import JSON
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import local_folder
from softprompt.prefix.rope import rope_layouts, uses_rope

if TYPE_CHECKING:
    import mlx.core as mx

KeysValues = tuple[Tensor, Tensor]  # [K, T, D] and [K, T, D'] of one layer
# Architectures whose layers keep plain keys and values in mlx-lm, as tests/engines_real/test_mlx.py shows.
PLAIN = ("llama", "olmo2", "qwen2", "qwen3")
_DTYPES = ("float32", "float16", "bfloat16")
_LISTED = 20  # likeliest tokens of a step


def has_mlx() -> bool:
    """Whether mlx-lm is installed."""
    return importlib.util.find_spec("mlx_lm") is not None


def missing_mlx(where: str) -> MissingExtraError:
    """The error for an environment without mlx-lm."""
    hint = "pip install mlx-lm" + (" mlx-cpu" if sys.platform != "darwin" else "")
    return MissingExtraError("mlx-lm is not installed", where=where, hint=hint)


def save_cache(path: Path, lm: FrozenLM, layers: Sequence[KeysValues], metadata: Mapping[str, str]) -> None:
    """Write the keys and values of the first T tokens, as the installed mlx-lm writes its own cache.

    Raises:
        MissingExtraError: mlx-lm alone knows how this model's layers are cached, and is not installed.
        UnsupportedModelError: mlx-lm does not have the model, or keeps something else than keys and values.
    """
    if has_mlx():
        _save_by_mlx(path, lm, layers, metadata)
    elif lm.geometry.architecture in PLAIN and not any(lm.geometry.windows):
        save_plain(path, layers, metadata)
    else:
        raise missing_mlx(f"--to mlx, {lm.geometry.architecture} models")


def save_plain(path: Path, layers: Sequence[KeysValues], metadata: Mapping[str, str]) -> None:
    """The same file for layers of class KVCache, without mlx-lm."""
    tensors, facts = dict[str, Tensor](), {f"0.{name}": value for name, value in metadata.items()}
    facts["2.0"] = ""
    for i, (keys, values) in enumerate(layers):
        tensors[f"{i}.0"], tensors[f"{i}.1"] = keys[None].cpu().contiguous(), values[None].cpu().contiguous()
        tensors[f"{i}.2"] = torch.tensor(keys.shape[1], dtype=torch.int32)
        facts |= {f"1.{i}": "KVCache", f"2.{i + 1}.0": f"{i}.2", f"2.{i + 1}.1": "scalar"}
    save_file(tensors, path, metadata=facts)


def mlx_answers(base: str, dtype: str, cache_file: Path, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    """Greedy answers of mlx-lm.

    Args:
        base: folder or Hub id of the model, whose weights are turned into `dtype`.

    Raises:
        MissingExtraError: mlx-lm is not installed.
        UnsupportedModelError: mlx-lm cannot load the model.
    """
    if not has_mlx():
        raise missing_mlx("--check")
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache

    try:
        model = load(base, model_config=older_rope(read_json(local_folder(base) / "config.json")))[0]
    except FOREIGN_ERRORS as error:
        raise _unknown(base, error) from error
    model.set_dtype(getattr(mx, dtype))
    answers = list[EngineAnswer]()
    for row in rows:
        cache = load_prompt_cache(str(cache_file)) if row.with_prompt else make_prompt_cache(model)
        steps = generate_step(mx.array(row.ids), model, max_tokens=row.max_tokens, prompt_cache=cache)
        said = [(int(token), _likeliest(logprobs_V)) for token, logprobs_V in steps]
        answers.append(EngineAnswer(tuple(token for token, _ in said), tuple(listed for _, listed in said)))
    return answers


def older_rope(config: JSON) -> dict[str, JSON]:
    """The entries of config.json that mlx-lm reads rotary positions from, where it has only those of Transformers 5.

    Without them mlx-lm takes its own defaults for many architectures, Llama among them, and answers nonsense.
    """
    given = config.get("rope_parameters") if isinstance(config, dict) and "rope_theta" not in config else None
    if not isinstance(given, dict):
        return {}
    full, local = given.get("full_attention", given), given.get("sliding_attention")
    found: dict[str, JSON] = {}
    if isinstance(full, dict):
        found["rope_theta"] = full.get("rope_theta")
        if full.get("rope_type", "default") != "default":
            found["rope_scaling"] = {name: value for name, value in full.items() if name != "rope_theta"}
    if isinstance(local, dict):
        found["rope_local_base_freq"] = local.get("rope_theta")
    return {name: value for name, value in found.items() if value is not None}


def to_mlx(tensor: Tensor) -> mx.array:
    """The same numbers in MLX. Raises UnsupportedModelError for a dtype that it lacks."""
    import mlx.core as mx

    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsupportedModelError("MLX has no numbers of this kind", expected=", ".join(_DTYPES), got=name)
    return mx.array(tensor.detach().float().cpu().numpy()).astype(getattr(mx, name))


def _save_by_mlx(path: Path, lm: FrozenLM, layers: Sequence[KeysValues], metadata: Mapping[str, str]) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache, make_prompt_cache, save_prompt_cache
    from mlx_lm.utils import load_model

    try:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as scratch:
            lm.hf_model.config.save_pretrained(scratch)
            given = older_rope(read_json(Path(scratch) / "config.json"))
            # No weights: only its caches are needed.
            model = load_model(Path(scratch), lazy=True, strict=False, model_config=given)[0]
        caches, trial = make_prompt_cache(model), make_prompt_cache(model)
        model(mx.array([[0]]), cache=trial)  # not computed: MLX knows shapes before it computes
        found = [getattr(cache, "keys", None) for cache in trial]
        found += [getattr(cache, "values", None) for cache in trial]
    except FOREIGN_ERRORS as error:
        raise _unknown(lm.geometry.architecture, error) from error
    mine = [keys for keys, _ in layers] + [values for _, values in layers]
    theirs, ours = ([_heads(part) for part in parts] for parts in (found, mine))
    pairs = any(getattr(module, "traditional", False) for module in model.modules())
    rotated = rope_layouts(lm) if uses_rope(lm) else ()
    if theirs != ours or pairs != ("pairs" in rotated):
        what = f"mlx-lm keeps something else of {lm.geometry.architecture} models than Transformers does"
        kinds = ", ".join(sorted({type(cache).__name__ for cache in caches}))
        raise UnsupportedModelError(what, where=lm.name, got=kinds, hint="softprompt serve, or --to transformers")
    for cache, (keys, values) in zip(caches, layers, strict=True):
        pair = to_mlx(keys[None]), to_mlx(values[None])
        if type(cache) is KVCache:
            cache.state = (*pair, keys.shape[1])  # without the room that it leaves for more
        else:
            cache.update_and_fetch(*pair)
    save_prompt_cache(str(path), caches, dict(metadata))


def _heads(states: object) -> tuple[int, int] | None:
    """(K, D) of keys [1, K, T, D] or [K, T, D]; None for what is nothing of the kind."""
    shape = getattr(states, "shape", None)
    return (int(shape[-3]), int(shape[-1])) if shape is not None and len(shape) in (3, 4) else None


def _likeliest(logprobs_V: mx.array) -> dict[int, float]:
    """Log-probabilities of the likeliest tokens, whose exponentials sum to 1 exactly.

    MLX's `logsumexp` on the CPU adds up the whole vocabulary in float32, which is off by 2e-4 for 49 000 tokens.
    """
    import mlx.core as mx

    exact_V = torch.from_numpy(np.array(logprobs_V.astype(mx.float32))).double().log_softmax(-1)
    values_N, ids_N = exact_V.topk(min(_LISTED, len(exact_V)))
    return dict(zip(ids_N.tolist(), values_N.tolist(), strict=True))


def _unknown(model: str, error: Exception) -> UnsupportedModelError:
    what = "the installed mlx-lm cannot load this model"
    return UnsupportedModelError(what, where=model, got=first_line(error), hint="pip install --upgrade mlx-lm")
