"""`--to lora`: an embedding prompt as a LoRA adapter on the input embedding, over P reserved token ids.

    A[k, id_k] = 1,  B[:, k] = p_k / s − E[id_k],  r = alpha = P   =>   (E + (B A)ᵀ)[id_k] · s = p_k

E is the table of embeddings, p_k virtual token k, s the factor by which the model scales embeddings that it looks up.
Every other row of the table stays as it is. LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685; the layout is that
of PEFT (`tuners/lora/layer.py`, `Embedding`), which vLLM and SGLang read, too.

Shapes: P virtual tokens, H embedding width, V vocabulary.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from softprompt.errors import missing_extra
from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.embedding_delta import embedding_deltas
from softprompt.export.greedy import greedy_answers
from softprompt.export.registry import register_target
from softprompt.export.reserved_ids import ReservedIds, choose_reserved_ids
from softprompt.export.written_prompt import WrittenPrompt, write_prompt
from softprompt.files import write_json
from softprompt.interchange.virtual_tokens import write_virtual_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.model_card import loadable_name

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's --max-lora-rank takes

_PEFT_LINES = """Transformers and PEFT:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, FOLDER)
ids = PREFIX + tokenizer(BEFORE + text + AFTER, add_special_tokens=False)["input_ids"]
model.generate(torch.tensor([ids]))
```

(PEFT warns of a base whose head is tied to its embedding: the adapter is for the input alone, so leave
`ensure_weight_tying` off.)"""


def _write(out: Path, source: ExportSource) -> Exported:
    """Write the adapter. Raises as `embedding_deltas` and `choose_reserved_ids`, and StoreError."""
    reserved = choose_reserved_ids(source.lm, source.prompt.n_tokens)
    deltas_PH, name = embedding_deltas(source, reserved), embedding_name(source.lm)
    one_hot_PV = torch.zeros(len(reserved.ids), source.lm.geometry.vocab, dtype=torch.bfloat16)
    one_hot_PV[torch.arange(len(reserved.ids)), list(reserved.ids)] = 1
    key = f"base_model.model.{name}.lora_embedding"

    def fill(folder: Path) -> None:
        tensors = {f"{key}_A": one_hot_PV, f"{key}_B": deltas_PH.T.contiguous()}
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        write_json(folder / _CONFIG, _config(source, name))
        embeddings = source.prompt.input_embeddings()
        assert embeddings is not None, "embedding_deltas refuses others"
        write_virtual_tokens(folder, embeddings, source.card, written=[_TENSORS])

    base = loadable_name(source.lm.name)
    prompt = source.card.name
    rank = next((rank for rank in _RANKS if rank >= len(reserved.ids)), _RANKS[-1])
    command = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {prompt}={out}"
    return write_export(out, source, fill, command, _usage(source, reserved), notes_of(reserved, source.lm))


def embedding_name(lm: FrozenLM) -> str:
    """The name of the input embedding in the Transformers model, e.g. "model.embed_tokens"."""
    return next(name for name, module in lm.hf_model.named_modules() if module is lm.embedding)


def prefix_ids(source: ExportSource, reserved: ReservedIds) -> list[int]:
    """The ids in front of a row: lead, one for each virtual token, follow."""
    lead, follow = source.around
    return [*lead, *reserved.ids, *follow]


def notes_of(reserved: ReservedIds, lm: FrozenLM) -> tuple[str, ...]:
    """What users of reserved ids need to know."""
    rounded = "" if lm.dtype == torch.float32 else f" In {str(lm.dtype).removeprefix('torch.')} the sum is rounded."
    return (reserved.note, f"The adapter adds to the embeddings of these ids and changes nothing else.{rounded}")


def _config(source: ExportSource, name: str) -> dict[str, object]:
    rank = source.prompt.n_tokens
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": loadable_name(source.card.geometry.base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [name.rpartition(".")[2]],
    }


def _usage(source: ExportSource, reserved: ReservedIds) -> str:
    written = write_prompt(source, reserved)
    lines = [
        f"A prompt begins with these {len(written.ids)} token ids, `PREFIX`: what precedes the virtual tokens, the "
        f"reserved ids, and what follows them.\n\n```json\n{list(written.ids)}\n```",
        _row_lines(written),
        _PEFT_LINES,
        "vLLM and SGLang take ids in `/v1/completions`:\n\n```json\n"
        f'{{"model": "{source.card.name}", "prompt": [PREFIX and the ids of the rest]}}\n```',
    ]
    if written.text:
        lines.append(
            "The beginning as a string, for engines that take text (write it as it is, without BOS, which engines add):"
            f"\n\n```text\n{written.text}\n```\n\nThe reserved ids alone:\n\n```text\n{reserved.text}\n```"
        )
    else:
        lines.append("No string is read as these ids, so routes that take text alone cannot use this adapter.")
    return "\n\n".join(lines)


def _row_lines(written: WrittenPrompt) -> str:
    """What else stands in the prompt."""
    if not written.one_text:
        return "Then comes the row, written as below up to where the answer begins."
    return (
        "Then comes the text, between `BEFORE` and `AFTER`:\n\n```python\n"
        f"BEFORE, AFTER = {written.opening!r}, {written.closing!r}\n```"
    )


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    """Answers of PEFT."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise missing_extra("peft", "peft", where="--check") from error
    lm, reserved = source.lm, choose_reserved_ids(source.lm, source.prompt.n_tokens)
    tensors = [*lm.hf_model.parameters(), *lm.hf_model.buffers()]
    base = copy.deepcopy(lm.hf_model, {id(tensor): tensor for tensor in tensors})  # modules alone: the base is shared
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # the head is meant to stay
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's call
        model = PeftModel.from_pretrained(base, str(folder))

        return greedy_answers(model, rows, prefix_ids(source, reserved), reserved.ids, lm.device)


register_target(
    ExportTarget("lora", "PEFT, vLLM, SGLang: LoRA on the input embedding (embedding prompts)", _write, _answers)
)
