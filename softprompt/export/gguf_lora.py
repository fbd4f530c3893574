"""`--to gguf-lora`: an embedding prompt as a LoRA adapter of llama.cpp and Ollama on the input embedding.

As in `lora`, but the change is relative to the GGUF's own rows, which quantization may have moved. llama.cpp stores the
factors of this one tensor the other way around: `lora_a` [V, r] is looked up, `lora_b` [H, r] multiplied. In `lora_a`
row id_k holds a one at k. As Q4_0 it holds 0 and 1 exactly in 4.5 bits; so r is a multiple of 32.

Shapes: P virtual tokens, H embedding width, V vocabulary, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.embedding_delta import replaced_rows
from softprompt.export.gguf_file import ALWAYS_TIED, BaseGGUF, base_gguf, untied_size, write_untied
from softprompt.export.llama_server import ServerOptions, engine_answer, llama_server
from softprompt.export.registry import register_target
from softprompt.export.reserved_ids import ReservedIds, choose_reserved_ids
from softprompt.export.written_prompt import WrittenPrompt, write_prompt

_NAME = "gguf-lora"
ADAPTER = "adapter.gguf"
_UNTIED = "model-untied.gguf"
_BLOCK = 32  # numbers of a Q4_0 block


def _write(out: Path, source: ExportSource) -> Exported:
    rows_PH = replaced_rows(source)
    base = base_gguf(source)
    reserved = choose_reserved_ids(source.lm, len(rows_PH))
    _check_usable(base, source, reserved)
    written = write_prompt(source, reserved)
    untie = source.options.untie and base.tied
    model = (out / _UNTIED).absolute() if untie else base.path.absolute()

    def fill(folder: Path) -> None:
        write_adapter(folder / ADAPTER, base, reserved.ids, rows_PH - base.rows(reserved.ids))
        if untie:
            write_untied(base, folder / _UNTIED)
        if written.text:
            text = _modelfile(f"./{_UNTIED}" if untie else str(model), written)
            (folder / "Modelfile").write_text(text, encoding="utf-8")

    notes = [reserved.note, _size_note(base, len(rows_PH))]
    if untie:
        mib = untied_size(base) / 2**20
        notes.append(f"{_UNTIED} is {base.path.name} with the embedding once more as output weights ({mib:,.0f} MiB)")
    if not written.text:
        notes.append("No text is read as these ids here, so only requests with token ids work, and not Ollama.")
    command = f"llama-server -m {model} --lora {out / ADAPTER}"
    return write_export(out, source, fill, command, _usage(source, written), notes)


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    base = base_gguf(source)
    model = folder / _UNTIED if (folder / _UNTIED).is_file() else base.path
    reserved = choose_reserved_ids(source.lm, source.prompt.n_tokens)
    ids = write_prompt(source, reserved).ids
    context = len(ids) + max(len(row.ids) + row.max_tokens for row in rows) + 8
    started = ServerOptions(model, context, adapter=folder / ADAPTER, flash=False, binary=source.options.llama_server)
    with llama_server(started) as server:
        answers = list[EngineAnswer]()
        for row in rows:
            options = {"cache_prompt": False, "lora": [{"id": 0, "scale": float(row.with_prompt)}]}
            prompt = (*ids, *row.ids) if row.with_prompt else row.ids
            answer = engine_answer(server.complete(prompt, row.max_tokens, options))
            answers.append(_until_reserved(answer, reserved.ids) if row.with_prompt else answer)
    return answers


def _until_reserved(answer: EngineAnswer, ids: Sequence[int]) -> EngineAnswer:
    """The answer up to the first reserved id: read again, it would be a virtual token."""
    end = next((place + 1 for place, token in enumerate(answer.ids) if token in ids), len(answer.ids))
    return EngineAnswer(answer.ids[:end], answer.logprobs[:end])


def write_adapter(path: Path, base: BaseGGUF, ids: Sequence[int], deltas_PH: Tensor) -> None:
    """Write the adapter's file.

    Args:
        ids: P rows of the embedding that change.
        deltas_PH: what is added to each.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    rank = -(-len(ids) // _BLOCK) * _BLOCK
    hot_PR = np.zeros((len(ids) + 1, rank), dtype=np.float32)  # and a row without a one
    hot_PR[np.arange(len(ids)), np.arange(len(ids))] = 1
    packed = quantize(hot_PR, GGMLQuantizationType.Q4_0)
    lora_a = np.repeat(packed[-1:], base.vocab, axis=0)
    lora_a[list(ids)] = packed[:-1]
    lora_b = np.zeros((base.hidden, rank), dtype=np.float32)
    lora_b[:, : len(ids)] = deltas_PH.T.numpy()
    writer = GGUFWriter(path, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))  # llama.cpp scales by alpha / rank
    writer.add_tensor("token_embd.weight.lora_a", lora_a, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("token_embd.weight.lora_b", lora_b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_usable(base: BaseGGUF, source: ExportSource, reserved: ReservedIds) -> None:
    """Raise if llama.cpp could not run the adapter: output weights of the embedding, or ids that the file lacks."""
    if (beyond := max(reserved.ids)) >= base.vocab:
        what = "the reserved ids have no rows in this GGUF file"
        raise UnsupportedModelError(what, where=base.path, expected=f"< {base.vocab}", got=beyond)
    if base.tied and (not source.options.untie or base.architecture in ALWAYS_TIED):
        what = (
            "this GGUF file has no output weights: llama.cpp uses the embedding for them, applies an adapter on it "
            "there, too, and aborts"
        )
        mib = untied_size(base) / 2**20
        slot = "--to llama-slot"
        hint = f"--untie {base.path} writes a copy with output weights ({mib:,.0f} MiB more), or {slot}"
        raise ConfigError(
            what, where=base.path, got=base.architecture, hint=slot if base.architecture in ALWAYS_TIED else hint
        )


def _size_note(base: BaseGGUF, n_tokens: int) -> str:
    rank = -(-n_tokens // _BLOCK) * _BLOCK
    size = base.vocab * rank * 4.5 / 8 + base.hidden * rank * 4
    return f"The adapter has {size / 2**20:,.1f} MiB: the format stores a row for each of the {base.vocab:,} tokens."


def _usage(source: ExportSource, written: WrittenPrompt) -> str:
    """What follows the command in the README: requests, Ollama, llama-cpp-python."""
    words = f"{written.opening}Where is my parcel?{written.closing}" if written.one_text else "a row as in training"
    request = {"prompt": [*written.ids, words], "max_tokens": 64, "temperature": 0}
    per_request = request | {"lora": [{"id": 0, "scale": 1.0}]}
    parts = [
        "The virtual tokens are ids in the prompt, and text follows them:",
        f"```sh\ncurl http://127.0.0.1:8080/v1/completions -d '{_shell(request)}'\n```",
        "`GET /lora-adapters` lists the adapters, `POST /lora-adapters` sets their scales for all requests. With "
        "several soft prompts give `--lora` once for each and `--lora-init-without-apply`; each request chooses one:",
        f"```sh\ncurl http://127.0.0.1:8080/completion -d '{_shell(per_request)}'\n```",
    ]
    if written.text:
        whole = f"{written.text}{written.opening}TEXT{written.closing}"
        parts += [
            f"As text, in which TEXT is the user's:\n\n```json\n{json.dumps(whole, ensure_ascii=False)}\n```",
            f"Ollama: `ollama create {source.card.name} -f Modelfile` in this folder, then `ollama run "
            f"{source.card.name}`. Its newer engine takes adapters for some architectures only.",
        ]
    parts.append(
        "llama-cpp-python (not tested here):\n\n```python\nfrom llama_cpp import Llama\n\n"
        f'llm = Llama("MODEL.gguf", lora_path="{ADAPTER}")\n'
        f"prompt = {list(written.ids)} + llm.tokenize({words!r}.encode(), add_bos=False, special=True)\n"
        "print(llm.create_completion(prompt, max_tokens=64, temperature=0))\n```"
    )
    return "\n\n".join(parts)


def _shell(request: object) -> str:
    """JSON between single quotes."""
    return json.dumps(request, ensure_ascii=False).replace("'", "'\\''")


def _modelfile(model: str, written: WrittenPrompt) -> str:
    before, after = f"{written.text}{written.opening}", written.closing
    template = _go_text(before) + "{{ .Prompt }}" + _go_text(after)
    return f'FROM {model}\nADAPTER ./{ADAPTER}\nTEMPLATE """{template}"""\n'


def _go_text(text: str) -> str:
    """Constant text of a template of Go's text/template."""
    quoted = text.replace("{{", '{{ "{{" }}')
    return quoted.replace('"""', '{{ "\\"\\"\\"" }}')


register_target(
    ExportTarget(_NAME, "llama.cpp, Ollama: a GGUF adapter on the input embedding (embeddings)", _write, _answers)
)
