"""`--to llama-slot`: keys and values of a soft prompt of either form as a slot file of a stock llama-server.

The server takes the tokens of the prefix for known ones, and goes on after them. Its file format changes with its
versions, and has no other writer; so the installed server saves a slot with as many other tokens, and the numbers in
that file are replaced.

Shapes: T tokens of the prefix.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from softprompt.data.tokenizer import bos_ids
from softprompt.errors import ConfigError, EngineError, UnsupportedModelError
from softprompt.export.base import EngineAnswer, EngineRow, Exported, ExportSource, ExportTarget, write_export
from softprompt.export.gguf_file import BaseGGUF, base_gguf
from softprompt.export.llama_server import (
    ServerOptions,
    cached_tokens,
    engine_answer,
    llama_server,
    server_name,
)
from softprompt.export.registry import register_target
from softprompt.export.reserved_ids import ReservedIds, choose_reserved_ids
from softprompt.export.restore_slots import SLOT
from softprompt.export.slot_file import KV_TYPES
from softprompt.export.slot_patch import compiled, patch_slot, prove_layout, smallest_window
from softprompt.export.written_prompt import WrittenPrompt, write_prompt
from softprompt.files import read_json, write_json
from softprompt.prefix.kv import Prefix

_NAME = "llama-slot"
_FACTS = "prefix.json"  # what the scripts beside it read
_SCRIPTS = ("restore_slots.py", "ask_slot.py")
_ROOM = 64  # tokens of context beyond the prefix


def _write(out: Path, source: ExportSource) -> Exported:
    kv_type = source.options.kv_type
    if kv_type not in KV_TYPES:
        raise ConfigError("no such number format", where="--kv-type", expected=", ".join(KV_TYPES), got=kv_type)
    lm = source.lm
    layers = compiled(lm, source.formatted.prefix(lm))
    base = base_gguf(source)
    written = _placeholders(source)
    saved = _saved_slot(base, source, written.ids)
    layout = prove_layout(saved, lm, compiled(lm, Prefix(None, written.ids)), kv_type)
    patched = patch_slot(saved, layout, layers, kv_type)
    flash = "off" if layout.blocks[0].values.transposed else "on"
    facts = {"ids": list(written.ids), "opening": written.opening, "closing": written.closing}

    def fill(folder: Path) -> None:
        (folder / SLOT).write_bytes(patched)
        write_json(folder / _FACTS, facts)
        for script in _SCRIPTS:
            (folder / script).write_bytes(Path(__file__).with_name(script).read_bytes())

    command = (
        f"llama-server -m {base.path.absolute()} --slot-save-path {out}/ -np 4 --kv-unified --no-cache-idle-slots "
        f"-fa {flash} -ctk {kv_type} -ctv {kv_type}{_swa(source, len(written.ids))}\npython {out}/restore_slots.py http://127.0.0.1:8080\n"
        f"python {out}/ask_slot.py http://127.0.0.1:8080 'Where is my parcel?'"
    )
    notes = (
        f"{SLOT} holds {len(written.ids)} tokens as {kv_type}, for {server_name(_options(base, source, 0))}; another "
        "version of the server may refuse it, and then needs an export with --llama-server FILE.",
        f"The server's own keys and values differ from softprompt's by {layout.difference:.1%} at most in a layer.",
        "A request must begin with the ids of prefix.json. ask_slot.py fails unless the server found them cached: "
        "without that it would run these ids as words.",
    )
    return write_export(out, source, fill, command, _usage(written, kv_type), notes)


def _answers(folder: Path, source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    base, ids = base_gguf(source), slot_ids(folder)
    longest = max(len(row.ids) + row.max_tokens for row in rows)
    with llama_server(_options(base, source, len(ids) + longest, folder)) as server:
        answers = list[EngineAnswer]()
        for row in rows:
            if not row.with_prompt:
                options = {"cache_prompt": False, "id_slot": 0}
                answers.append(engine_answer(server.complete(row.ids, row.max_tokens, options)))
                continue
            server.post("/slots/0?action=restore", {"filename": SLOT})
            options = {"cache_prompt": True, "id_slot": 0}
            answer = server.complete((*ids, *row.ids), row.max_tokens, options)
            if (cached := cached_tokens(answer)) < len(ids):
                what = "llama-server did not use the restored keys and values"
                raise EngineError(what, where=folder / SLOT, expected=f"{len(ids)} cached tokens", got=cached)
            answers.append(engine_answer(answer))
    return answers


def slot_ids(folder: Path) -> tuple[int, ...]:
    """The token ids that a slot file stands for."""
    facts = read_json(folder / _FACTS)
    ids = facts.get("ids") if isinstance(facts, dict) else None
    return tuple(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else ()


def _placeholders(source: ExportSource) -> WrittenPrompt:
    """The prefix with other ids in place of virtual tokens: reserved ones, so that no text is taken for it."""
    n_tokens = source.prompt.n_tokens
    try:
        reserved = choose_reserved_ids(source.lm, n_tokens)
    except UnsupportedModelError:  # any will do, in an order that no text has
        lm = source.lm
        usable = [i for i in lm.tokenizer.get_vocab().values() if i < lm.geometry.vocab and i not in lm.end_ids]
        ids = islice(cycle(sorted(set(usable) - set(bos_ids(lm.tokenizer)), reverse=True)), n_tokens)
        reserved = ReservedIds(tuple(ids), "rare", "")
    return write_prompt(source, reserved)


def _saved_slot(base: BaseGGUF, source: ExportSource, ids: Sequence[int]) -> bytes:
    """The slot file that the server saves after it has run these ids. Raises EngineError."""
    with (
        tempfile.TemporaryDirectory() as folder,
        llama_server(_options(base, source, len(ids), Path(folder))) as server,
    ):
        server.complete(ids, 0, {"cache_prompt": True, "id_slot": 0, "n_probs": 0})
        saved = server.post("/slots/0?action=save", {"filename": SLOT})
        if saved.get("n_saved") != len(ids):
            what = "llama-server saved another number of tokens"
            raise EngineError(what, where=base.path, expected=len(ids), got=saved.get("n_saved"))
        return (Path(folder) / SLOT).read_bytes()


def _options(base: BaseGGUF, source: ExportSource, n_tokens: int, slots: Path | None = None) -> ServerOptions:
    kv_type = source.options.kv_type
    return ServerOptions(
        base.path,
        n_tokens + _ROOM,
        kv_type,
        slots=slots,
        swa_full=bool(_swa(source, n_tokens)),
        flash=kv_type != "f32",  # whoever wants it exact
        binary=source.options.llama_server,
    )


def _swa(source: ExportSource, n_tokens: int) -> str:
    """The server's flag for a prefix that is longer than a window, which it would forget."""
    window = smallest_window(source.lm)
    return " --swa-full" if window is not None and n_tokens > window else ""


def _usage(written: WrittenPrompt, kv_type: str) -> str:
    request = {
        "prompt": [*written.ids, f"{written.opening}Where is my parcel?{written.closing}"],
        "id_slot": 0,
        "cache_prompt": True,
        "n_predict": 64,
        "temperature": 0,
    }
    if not written.one_text:
        request["prompt"] = [*written.ids, "a row as in training"]
    return (
        "`restore_slots.py` puts the keys and values into every slot of a running server, or into those that are given "
        "after its address; `ask_slot.py` is an example of a client. Both need Python alone. A request by hand:\n\n"
        f"```json\n{json.dumps(request, ensure_ascii=False)}\n```\n\n"
        f"The server must have been started with these number formats of keys and values ({kv_type}) and the same "
        "flash attention. A slot that answered other requests in between has lost the prefix: restore it again, or "
        "give the server a slot for each soft prompt.\n\n"
        "llama-cpp-python's `Llama.load_state` takes the state of a whole context, not this file; its low-level "
        f"`llama_state_seq_load_file(ctx, b'{SLOT}', 0, …)` reads the format, if its llama.cpp has the same version. "
        "Neither is tested here."
    )


register_target(ExportTarget(_NAME, "llama-server: keys and values as a slot file (both forms)", _write, _answers))
