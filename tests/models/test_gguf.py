"""A real GGUF file, written here as llama.cpp writes it, becomes the model it holds."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as tf
from numpy.typing import NDArray

from softprompt.errors import ModelError
from softprompt.models.gguf import convert
from softprompt.models.loading import load_model
from tests.support.tiny import SPECIAL, VOCAB, tiny_model, tiny_tokenizer

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries and keys in llama.cpp's order: halves of a rotation side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: tf.PreTrainedModel) -> Path:
    """A Llama in float32, with the byte tokenizer of the tests and one merge."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    known = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in known] + ["ab"]
    tokens += [f"<unused{i}>" for i in range(len(tokens), VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(SPECIAL.index("<s>"))
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in WHOLE:
            writer.add_tensor(f"{WHOLE[stem]}.weight", tensor.numpy())
        else:
            _, _, number, part = stem.split(".", 3)
            weight = tensor.numpy()
            weight = permuted(weight, heads[BLOCK[part]]) if BLOCK[part] in heads else weight
            writer.add_tensor(f"blk.{number}.{BLOCK[part]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("ignore")  # Transformers' reader copies arrays that it may not write to
def test_a_gguf_file_is_the_model_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits, the same tokens, and read from the cache the second time."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    lm = load_model(str(path), dtype="float32", device="cpu")
    ids = torch.tensor([[7, 99, 23, 255, 120]])
    torch.testing.assert_close(lm.hf_model(ids).logits, tiny_model("llama")(ids).logits)
    assert lm.encode("cab") == [lm.tokenizer.convert_tokens_to_ids("c"), len(SPECIAL) + 256]
    monkeypatch.setattr("softprompt.models.gguf.convert", lambda *_: pytest.fail("converted twice"))
    assert load_model(str(path), dtype="float32", device="cpu").geometry == lm.geometry


@pytest.mark.filterwarnings("ignore")
def test_a_log_has_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither Transformers' bar of the conversion nor that of its weights."""
    (tmp_path / "out").mkdir()
    convert(write_gguf(tmp_path / "tiny.gguf", tiny_model("llama")), tmp_path / "out")
    assert "%" not in capfd.readouterr().err


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"tiny\.gguf: the GGUF file cannot be read"):
        convert(path, tmp_path / "out")
