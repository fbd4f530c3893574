"""`--to llama-slot` by bytes: slot files of every number format and layout, patched and read again."""

from __future__ import annotations

import http.server
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import softprompt.export
from softprompt.errors import ConfigError, MissingExtraError, StoreError, UnsupportedModelError, WrongBaseError
from softprompt.export.base import ExportOptions
from softprompt.export.registry import find_target
from softprompt.export.slot_file import KV_TYPES, find_blocks, read_block, row_bytes
from softprompt.export.slot_patch import LayerArrays, SlotLayout, compiled, patch_slot, prove_layout
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from tests.export.source import source_of
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer
from tests.support.tiny_gguf import write_gguf

TARGET = find_target("llama-slot")
HEAD, TAIL = b"ggsq" + bytes(range(77)), b"end of file"
IDS = (10, 20, 30, 40, 50, 60, 70)
ROUNDING = {"f32": 1e-6, "f16": 1e-3, "bf16": 8e-3, "q8_0": 2e-2}


def rows(states_KTD: np.ndarray, interleaved: bool) -> np.ndarray:
    """[T, K·D] as llama.cpp has them, number by number."""
    heads, n_tokens, size = states_KTD.shape
    out = np.zeros((n_tokens, heads, size), dtype=np.float32)
    for i in range(size):
        place = (2 * i if i < size // 2 else 2 * (i - size // 2) + 1) if interleaved else i
        out[:, :, place] = states_KTD[:, :, i].T
    return out.reshape(n_tokens, heads * size)


def block(values_TC: np.ndarray, kv_type: str, transposed: bool = False) -> bytes:
    number = KV_TYPES[kv_type]
    kind = gguf.GGMLQuantizationType(number)
    if transposed:
        size = {"f32": 4, "f16": 2, "bf16": 2}[kv_type]
        flat = np.ascontiguousarray(values_TC.T.reshape(1, -1))
        return struct.pack("<iII", number, size, values_TC.shape[1]) + gguf.quantize(flat, kind).tobytes()
    header = struct.pack("<iQ", number, row_bytes(values_TC.shape[1], kv_type))
    return header + gguf.quantize(np.ascontiguousarray(values_TC), kind).tobytes()


def slot(caches: list[list[LayerArrays]], kv_type: str, interleaved: bool = False, transposed: bool = False) -> bytes:
    parts = [HEAD]
    for layers in caches:
        parts.append(struct.pack("<II", transposed, len(layers)))
        parts += [block(rows(keys, interleaved), kv_type) for keys, _ in layers]
        parts += [block(rows(values, False), kv_type, transposed) for _, values in layers]
    return b"".join([*parts, TAIL])


@pytest.mark.parametrize(
    ("kv_type", "transposed"), [*((kind, False) for kind in KV_TYPES), ("f16", True), ("f32", True)]
)
def test_every_number_format_is_patched_and_nothing_else(kv_type: str, transposed: bool) -> None:
    random = np.random.default_rng(0)

    def drawn() -> np.ndarray:
        return random.normal(size=(2, 5, 32)).astype(np.float32)

    old, new = ([(drawn(), drawn()) for _ in range(3)] for _ in "ab")
    data = slot([old], kv_type, transposed=transposed)
    found = find_blocks(data, [[(64, 64)] * 3], 5, kv_type)
    assert [blocks.values.transposed for blocks in found] == [transposed] * 3
    wanted = slot([new], kv_type, transposed=transposed)
    layout = SlotLayout((0, 1, 2), tuple(found), "as in Transformers", 0.0)
    assert patch_slot(data, layout, dict(enumerate(new)), kv_type) == wanted
    got = read_block(wanted, found[1].values, kv_type)
    np.testing.assert_allclose(got, rows(new[1][1], False), rtol=0, atol=4 * ROUNDING[kv_type])


@pytest.mark.parametrize(
    ("family", "interleaved", "n_caches"), [("llama", True, 1), ("qwen2", False, 1), ("gemma3", False, 2)]
)
def test_the_layout_is_proven_on_the_file(family: str, interleaved: bool, n_caches: int) -> None:
    lm = tiny_lm(family)
    saved = compiled(lm, Prefix(None, IDS))
    full = [i for i in saved if lm.geometry.windows[i] is None] if n_caches == 2 else list(saved)
    sliding = [i for i in saved if i not in full]
    data = slot([[saved[i] for i in part] for part in (full, sliding) if part], "f16", interleaved)
    layout = prove_layout(data, lm, saved, "f16")
    assert layout.order == ("interleaved" if interleaved else "as in Transformers")
    assert list(layout.layers) == [*full, *sliding] and layout.difference < 1e-3
    other = compiled(lm, Prefix(None, IDS[::-1]))
    wanted = slot([[other[i] for i in part] for part in (full, sliding) if part], "f16", interleaved)
    assert patch_slot(data, layout, other, "f16") == wanted


def test_keys_and_values_of_another_model_are_refused() -> None:
    lm, other = tiny_lm(), FrozenLM(tiny_model("llama", seed=1), tiny_tokenizer(), "other")
    data = slot([list(compiled(other, Prefix(None, IDS)).values())], "f16", interleaved=True)
    with pytest.raises(WrongBaseError, match="not those of the loaded model"):
        prove_layout(data, lm, compiled(lm, Prefix(None, IDS)), "f16")


@pytest.mark.parametrize("kind", ["number format", "tokens", "layers", "cut", "text"])
def test_a_file_without_these_blocks_is_refused(kind: str) -> None:
    lm = tiny_lm()
    saved = compiled(lm, Prefix(None, IDS))
    layers = list(saved.values())
    data = slot([layers[:1] if kind == "layers" else layers], "f16", interleaved=True)
    data = {"cut": data[: len(data) // 2], "text": b"no slot at all"}.get(kind, data)
    wanted = compiled(lm, Prefix(None, IDS[1:])) if kind == "tokens" else saved
    with pytest.raises(StoreError, match="does not hold"):
        prove_layout(data, lm, wanted, "f32" if kind == "number format" else "f16")


def test_what_cannot_be_written_is_refused_and_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source_of()
    file = write_gguf(tmp_path / "model.gguf", made.lm, "llama")
    with pytest.raises(ConfigError, match="--kv-type"):
        TARGET.write(tmp_path / "out", replace(made, options=ExportOptions(gguf=file, kv_type="q4_k")))
    with pytest.raises(ConfigError, match="--llama-server"):
        TARGET.write(tmp_path / "out", replace(made, options=ExportOptions(gguf=file, llama_server=tmp_path / "no")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match="pip install xllamacpp"):
        TARGET.write(tmp_path / "out", replace(made, options=ExportOptions(gguf=file)))
    assert list(tmp_path.iterdir()) == [file]


def test_a_model_with_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="recurrent states"):
        TARGET.write(tmp_path / "out", source_of(odd_lm("mamba2")))


@pytest.fixture
def fake_server() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A llama-server of two slots that remembers what it was sent; slot 1 has lost its prefix."""
    sent: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer([{"id": 0}, {"id": 1}])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append({"path": self.path, **body})
            cached = 3 if body.get("id_slot") == 0 else 1
            self.answer({"n_restored": 3, "content": "hello", "timings": {"cache_n": cached}})

        def answer(self, body: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


def test_the_scripts_restore_all_slots_and_notice_a_lost_prefix(
    tmp_path: Path, fake_server: tuple[str, list[dict[str, object]]]
) -> None:
    url, sent = fake_server
    (tmp_path / "prefix.json").write_text(json.dumps({"ids": [7, 8, 9], "opening": "Q: ", "closing": "\nA:"}))
    for script in ("restore_slots.py", "ask_slot.py"):
        (tmp_path / script).write_bytes((Path(softprompt.export.__path__[0]) / script).read_bytes())

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(tmp_path / name), url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    assert run("restore_slots.py").stdout.split("\n")[:2] == ["slot 0: 3 tokens", "slot 1: 3 tokens"]
    assert [call["path"] for call in sent] == ["/slots/0?action=restore", "/slots/1?action=restore"]
    assert run("ask_slot.py", "hi").stdout == "hello\n"
    assert sent[-1]["prompt"] == [7, 8, 9, "Q: hi\nA:"] and sent[-1]["cache_prompt"] is True
    lost = run("ask_slot.py", "hi", "1")
    assert lost.returncode == 1 and "restore_slots.py again" in lost.stderr
