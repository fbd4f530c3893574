"""`--to vocabulary`: a copy of the base model in which the virtual tokens are tokens, for engines without adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.embedding_delta import replaced_rows
from softprompt.export.registry import register_target
from softprompt.export.row_text import row_text
from softprompt.export.transformers_answers import base_path, transformers_answers
from softprompt.export.vocabulary_model import (
    BaseFiles,
    NewTokens,
    base_files,
    check_room,
    copy_size,
    new_tokens,
    write_model,
)
from softprompt.interchange.virtual_tokens import write_virtual_tokens
from softprompt.models.sources import local_folder

_NAME = "vocabulary"


def _write(out: Path, source: ExportSource) -> Exported:
    rows_PH = replaced_rows(source)
    base, added = _base(source), _added(source)
    check_room(out, copy_size(base, added))
    strings = "".join(added.strings)
    text = source.card.layout.lead + strings + source.card.layout.follow
    notes = [
        f"The tokens {added.strings[0]} to {added.strings[-1]} have the ids {added.ids[0]} to {added.ids[-1]}; the "
        f"table has {added.n_rows} rows.",
        "Transformers never emits one (suppress_tokens in generation_config.json). In other engines its logit is the"
        " mean of all logits: greedy decoding never takes it, sampling with probability 1/V at most; a logit_bias of"
        " -100 for these ids takes that away, too.",
    ]
    around = row_text(source)
    row = around.around("your text") if around else "the text of a whole row, written as below"
    usage = (
        "Every engine that loads the base model loads this folder. Put before each text:\n\n"
        f"```\n{text}\n```\n\nso that a whole prompt is\n\n```\n{text}{row}\n```\n\n"
        f"As token ids: {[*source.around[0], *added.ids, *source.around[1]]}, then those of the row"
        f"{' (these begin with BOS, which most engines add themselves)' if source.card.layout.bos else ''}.\n\n"
        "For llama.cpp, LM Studio and Ollama: `convert_hf_to_gguf.py` makes a GGUF file of it;"
        " `llama-quantize --token-embedding-type f16` keeps the virtual tokens as they are."
    )
    command = f"vllm serve {out}  # or any other engine, with the text of README.md before each input"

    def fill(folder: Path) -> None:
        write_model(folder, base, source.lm, added, rows_PH)
        embeddings = source.prompt.input_embeddings()
        assert embeddings is not None, "replaced_rows refuses others"
        write_virtual_tokens(folder, embeddings, source.card, written=[base.table.file.name])

    return write_export(out, source, fill, command, usage, notes)


def _cost(source: ExportSource) -> str:
    """What the copy takes, said before it is made. Raises as `replaced_rows`."""
    replaced_rows(source)
    size = copy_size(_base(source), _added(source))
    return f"a copy of the base model: {size / 1e9:.2f} GB of weights"


def _base(source: ExportSource) -> BaseFiles:
    return base_files(local_folder(base_path(source.lm)), source.lm)


def _added(source: ExportSource) -> NewTokens:
    return new_tokens(source.lm, source.card.name, source.prompt.n_tokens)


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    lm, ids = source.lm, _added(source).ids
    prefix = (*source.around[0], *ids, *source.around[1])
    given = [replace(row, ids=prefix + row.ids) if row.with_prompt else row for row in rows]
    return transformers_answers(str(folder), str(lm.dtype).removeprefix("torch."), str(lm.device), given)


register_target(
    ExportTarget(
        _NAME, "any engine: a copy of the base model with the virtual tokens as tokens", _write, _answers, _cost
    )
)
