"""`--to gguf-lora` by bytes: what llama.cpp's own reader finds in the adapter, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from softprompt.errors import ConfigError, GeometryError, ModelError, SoftpromptError, StoreError, WrongBaseError
from softprompt.export.base import ExportOptions, ExportSource
from softprompt.export.gguf_file import read_gguf
from softprompt.export.registry import find_target
from softprompt.export.reserved_ids import choose_reserved_ids
from softprompt.models.frozen_lm import FrozenLM
from tests.export.source import source_of
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer
from tests.support.tiny_gguf import write_gguf

TARGET = find_target("gguf-lora")


def source(tmp_path: Path, lm: FrozenLM | None = None, number_format: str = "f16") -> ExportSource:
    found = source_of(lm)
    file = write_gguf(tmp_path / "model.gguf", found.lm, "llama", number_format)
    return replace(found, options=ExportOptions(gguf=file))


def looked_up(adapter: Path, base: Path) -> np.ndarray:
    """[V, H]: the embedding that llama.cpp looks up, the GGUF's own row and what the adapter adds."""
    tensors = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(adapter).tensors
    }
    model = read_gguf(base)
    a_VR, b_HR = tensors["token_embd.weight.lora_a"], tensors["token_embd.weight.lora_b"]
    return model.rows(range(model.vocab)).numpy() + a_VR @ b_HR.T


def test_llama_cpp_looks_up_the_virtual_tokens(tmp_path: Path) -> None:
    made = source(tmp_path)  # in f16, so that the file's rows are not the loaded model's
    TARGET.write(tmp_path / "out", made)
    adapter = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    kinds = {name: adapter.fields[name].contents() for name in ("general.type", "adapter.type", "general.architecture")}
    assert kinds == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    rank = adapter.tensors[1].shape[0]
    assert rank == 32 and adapter.fields["adapter.lora.alpha"].contents() == rank
    assert adapter.tensors[0].tensor_type == gguf.GGMLQuantizationType.Q4_0
    table = looked_up(tmp_path / "out" / "adapter.gguf", tmp_path / "model.gguf")
    ids = list(choose_reserved_ids(made.lm, 3).ids)
    embeddings = made.prompt.input_embeddings()
    assert embeddings is not None
    np.testing.assert_allclose(table[ids], embeddings.numpy(), rtol=0, atol=1e-6)
    rest = np.setdiff1d(np.arange(len(table)), ids)
    own = read_gguf(tmp_path / "model.gguf").rows(rest.tolist()).numpy()
    assert (table[rest] == own).all() and not np.allclose(own, made.lm.embedding_table[rest].numpy(), rtol=0, atol=1e-7)


def test_a_scaled_embedding_is_scaled_back(tmp_path: Path) -> None:
    found = source_of(tiny_lm("gemma3"))
    file = write_gguf(tmp_path / "model.gguf", found.lm, "gemma3")  # with output weights of its own
    TARGET.write(tmp_path / "out", replace(found, options=ExportOptions(gguf=file)))
    table = looked_up(tmp_path / "out" / "adapter.gguf", file)
    embeddings = found.prompt.input_embeddings()
    assert embeddings is not None
    got = table[list(choose_reserved_ids(found.lm, 3).ids)] * 32**0.5
    np.testing.assert_allclose(got, embeddings.numpy(), rtol=0, atol=1e-5)


def test_tied_output_weights_are_refused_and_mended(tmp_path: Path) -> None:
    made = source_of()
    file = write_gguf(tmp_path / "model.gguf", made.lm, "llama", tied=True)
    with pytest.raises(ConfigError, match=r"no output weights[\s\S]*--untie .*model\.gguf[\s\S]*llama-slot"):
        TARGET.write(tmp_path / "out", replace(made, options=ExportOptions(gguf=file)))
    assert not (tmp_path / "out").exists()
    exported = TARGET.write(tmp_path / "out", replace(made, options=ExportOptions(gguf=file, untie=True)))
    before, after = gguf.GGUFReader(file), gguf.GGUFReader(tmp_path / "out" / "model-untied.gguf")
    assert [tensor.name for tensor in after.tensors] == [*(tensor.name for tensor in before.tensors), "output.weight"]
    for old, new in zip(before.tensors, after.tensors[:-1], strict=True):
        assert (old.data == new.data).all() and old.tensor_type == new.tensor_type
    table = next(tensor for tensor in before.tensors if tensor.name == "token_embd.weight")
    assert (after.tensors[-1].data == table.data).all() and after.tensors[-1].shape.tolist() == table.shape.tolist()
    assert before.fields.keys() == after.fields.keys()
    assert "model-untied.gguf" in exported.command and any("output weights" in note for note in exported.notes)


def test_ollama_gets_the_text_of_the_reserved_ids(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|reserved_{i}|>" for i in range(4)]})
    made = source(tmp_path, FrozenLM(tiny_model("llama"), tokenizer, "tiny-llama"))
    TARGET.write(tmp_path / "out", made)
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    found = re.search(r'TEMPLATE """(.*)"""', modelfile, re.DOTALL)
    assert found is not None and f"FROM {tmp_path / 'model.gguf'}\nADAPTER ./adapter.gguf\n" in modelfile
    lead, follow = made.around
    ids = [*lead, *choose_reserved_ids(made.lm, 3).ids, *follow, *made.lm.encode(" hello\nA:")]
    assert tokenizer.encode(found[1].replace("{{ .Prompt }}", "hello")) == ids


def test_ids_without_text_leave_ollama_out(tmp_path: Path) -> None:
    exported = TARGET.write(tmp_path / "out", source(tmp_path))
    assert not (tmp_path / "out" / "Modelfile").exists()
    assert any("not Ollama" in note for note in exported.notes)


def test_keys_and_values_are_refused_with_the_target_for_them(tmp_path: Path) -> None:
    made = source_of(form="kv")
    with pytest.raises(GeometryError, match="llama-slot"):
        TARGET.write(tmp_path / "out", made)


@pytest.mark.parametrize("kind", ["other", "wider", "cut", "text", "missing", "none"])
def test_a_wrong_file_is_refused_and_nothing_written(tmp_path: Path, kind: str) -> None:
    made = source(tmp_path)
    file = tmp_path / "model.gguf"
    expected: type[SoftpromptError] = ModelError
    if kind == "other":
        write_gguf(file, FrozenLM(tiny_model("llama", seed=1), tiny_tokenizer(bos=True), "other"), "llama")
        expected = WrongBaseError
    elif kind == "wider":
        made = replace(source_of(tiny_lm("gpt2")), options=made.options)
        write_gguf(file, tiny_lm("qwen3"), "qwen3")
        expected = WrongBaseError
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind == "text":
        file.write_text("not a model")
    elif kind == "missing":
        file.unlink()
    else:
        made, expected = replace(made, options=ExportOptions()), ConfigError
    with pytest.raises(expected):
        TARGET.write(tmp_path / "out", made)
    assert [path.name for path in tmp_path.iterdir() if path != file] == []


def test_a_destination_that_exists_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    with pytest.raises(StoreError, match="nothing was written"):
        TARGET.write(out, source(tmp_path))
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_number_format_without_a_decoder_is_named(tmp_path: Path) -> None:
    source(tmp_path)
    odd = replace(read_gguf(tmp_path / "model.gguf"), number_format="Q8_K")
    with pytest.raises(ModelError, match="Q8_K"):
        odd.rows([0])
