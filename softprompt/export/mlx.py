"""`--to mlx`: keys and values as a prompt cache of mlx-lm.

Lead, virtual tokens and follow are compiled into the file, so that a text follows it directly. Keys are as in
Transformers: MLX rotates the same pairs of numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from softprompt.errors import UnsupportedModelError
from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.mlx_cache import KeysValues, has_mlx, mlx_answers, older_rope, save_cache
from softprompt.export.registry import register_target
from softprompt.export.row_text import RowText, row_text
from softprompt.export.transformers_answers import base_path
from softprompt.files import read_json
from softprompt.models.sources import PUBLISHED_AS, find_source
from softprompt.prefix.prepare import compute_keys_values

_FILE = "prompt_cache.safetensors"
_QUERY = "<query>"  # mlx_lm.generate renders a conversation with this text to find where the user's text begins
_LINES = """from mlx_lm import generate, load
from mlx_lm.models.cache import load_prompt_cache

model, tokenizer = load({base})
cache = load_prompt_cache({file})  # load it anew for each text: it grows
ids = tokenizer.encode({before} + "your text" + {after}, add_special_tokens=False)
print(generate(model, tokenizer, ids, prompt_cache=cache))"""


def _write(out: Path, source: ExportSource) -> Exported:
    layers, base = _layers(source), _base(source)
    around = row_text(source)
    tokenizer_config = json.dumps({"chat_template": _chat_template(around or RowText("", ""))})
    metadata = {"model": base, "tokenizer_config": tokenizer_config}
    size = layers[0][0].shape[1]
    dtype = str(source.lm.dtype).removeprefix("torch.")
    notes = [
        f"{size} tokens of keys and values in {dtype}, computed with the weights of {source.lm.name} as loaded here;"
        " --dtype bfloat16 writes half the bytes, for a model that MLX runs in bfloat16.",
        f"The file names the model {base}; mlx_lm.generate takes no other with it, Python does.",
    ]
    notes += _rope_note(base)
    if not has_mlx():
        notes.append("mlx-lm is not installed here: the file has the format of mlx-lm 0.32.")
    if around is None:
        notes.append("The template has several fields: give the text of a whole row, written as below.")
    command = f'mlx_lm.generate --prompt-cache-file {out / _FILE} --prompt "your text"'
    lines = _LINES.format(
        base=json.dumps(base),
        file=json.dumps(str(out / _FILE)),
        before=json.dumps(around.before if around else "", ensure_ascii=False),
        after=json.dumps(around.after if around else "", ensure_ascii=False),
    )
    usage = (
        "The file brings a chat template of its own, which writes the text around yours; so leave"
        " `--ignore-chat-template` out, and give neither a system prompt nor BOS.\n\n"
        f"In Python:\n\n```python\n{lines}\n```"
    )
    return write_export(
        out, source, lambda folder: save_cache(folder / _FILE, source.lm, layers, metadata), command, usage, notes
    )


def _layers(source: ExportSource) -> list[KeysValues]:
    """Keys [K, T, D] and values of every layer that has some, in the model's dtype.

    Raises UnsupportedModelError for a model that carries more than these.
    """
    lm = source.lm
    if lm.is_encoder_decoder:
        what = "mlx-lm runs no encoder-decoders"
        raise UnsupportedModelError(what, where=lm.name, hint="--to peft")
    computed = compute_keys_values(lm, source.formatted.prefix(lm))
    return [(kv[0][0].to(lm.dtype), kv[1][0].to(lm.dtype)) for kv in computed if kv is not None]


def _base(source: ExportSource) -> str:
    """What mlx-lm loads: the model's id on the Hub, or its folder."""
    name = source.lm.name
    path = Path(find_source(name).path if name.endswith(".gguf") else name)
    return str(path.absolute()) if path.is_dir() else PUBLISHED_AS.get(name, name)


def _rope_note(base: str) -> list[str]:
    """For a folder whose config.json mlx-lm misreads: what to add to it."""
    if not Path(base).is_dir() or not (missing := older_rope(read_json(Path(base) / "config.json"))):
        return []
    added = json.dumps(missing)[1:-1]
    return [f"Add {added} to {base}/config.json: Transformers 5 writes it where mlx-lm does not look for it."]


def _chat_template(around: RowText) -> str:
    """Jinja text that writes the row around the last turn, for mlx_lm.generate.

    That renders two conversations, with the user's text and with "<query>" in its place, and keeps of the first what
    comes after the place where "<query>" is in the second. So "<query>" is written alone: all of the row is kept.
    """
    before, after = (json.dumps(text, ensure_ascii=False) for text in (around.before, around.after))
    return (
        "{%- set text = messages[-1]['content'] -%}"
        f"{{{{ text if text == '{_QUERY}' else {before} + text + {after} }}}}"
    )


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    dtype = str(source.lm.dtype).removeprefix("torch.")
    return mlx_answers(base_path(source.lm), dtype, folder / _FILE, rows)


register_target(ExportTarget("mlx", "mlx-lm: a prompt cache of keys and values (both forms)", _write, _answers))
