"""A GGUF adapter on the input embedding, in a stock llama-server."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.export.base import ExportOptions
from softprompt.export.check import check_export
from softprompt.export.llama_server import ServerOptions, engine_answer, llama_server
from softprompt.export.registry import find_target
from softprompt.export.reserved_ids import choose_reserved_ids
from softprompt.export.written_prompt import write_prompt
from tests.engines_real.conftest import Record, SourceOf
from tests.engines_real.gguf_models import plain_gguf

TARGET = find_target("gguf-lora")


@pytest.mark.parametrize(("weights", "chat"), [("f32", False), ("f16", True)])
def test_llama_server_says_the_same(
    source_of: SourceOf, record: Record, tmp_path: Path, weights: str, chat: bool
) -> None:
    source = source_of("embedding", chat=chat, options=ExportOptions(gguf=plain_gguf(weights)))
    folder = TARGET.write(tmp_path / "out", source).folder
    report = check_export(TARGET, folder, source)
    record("gguf-lora (llama.cpp)", "embedding", weights, report)
    assert report.same == report.rows == 20
    assert report.difference < (0.02 if weights == "f32" else report.plain_difference + 0.02)  # f16 rounds weights


def test_the_shipped_quantized_model_is_untied(source_of: SourceOf, record: Record, tmp_path: Path) -> None:
    source = source_of("embedding", options=ExportOptions(untie=True))
    folder = TARGET.write(tmp_path / "out", source).folder
    report = check_export(TARGET, folder, source)
    record("gguf-lora (llama.cpp)", "embedding", "Q4_1, embedding Q8_0", report)
    assert report.difference < 2 * report.plain_difference + 0.05  # the engine's own arithmetic, and no more


def test_requests_choose_among_adapters(source_of: SourceOf, tmp_path: Path) -> None:
    options = ExportOptions(gguf=plain_gguf("f16"))
    source = source_of("embedding", options=options)
    TARGET.write(tmp_path / "out", source)
    written = write_prompt(source, choose_reserved_ids(source.lm, source.prompt.n_tokens))
    server_options = ServerOptions(plain_gguf("f16"), 256, adapter=tmp_path / "out" / "adapter.gguf")
    with llama_server(server_options) as server:
        mixed = [*written.ids, f"{written.opening}Where is my parcel?{written.closing}"]
        whole = [*written.ids, *source.lm.encode(f"{written.opening}Where is my parcel?{written.closing}")]
        on, off = ([{"id": 0, "scale": scale}] for scale in (1.0, 0.0))
        ours = engine_answer(server.complete(whole, 8, {"lora": on})).ids
        # as the README writes it: ids and text in one list
        body = {"prompt": mixed, "n_predict": 8, "temperature": 0.0, "lora": on, "n_probs": 1}
        assert engine_answer(server.post("/completion", body)).ids == ours
        assert engine_answer(server.complete(whole, 8, {"lora": off})).ids != ours
        said = server.post("/v1/completions", {"prompt": mixed, "max_tokens": 8, "temperature": 0, "lora": on})
        choices = said["choices"]
        assert isinstance(choices, list) and isinstance(choices[0], dict)
        assert choices[0]["text"] == source.lm.tokenizer.decode(list(ours), skip_special_tokens=True)
