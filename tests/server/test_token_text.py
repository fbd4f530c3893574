"""Texts and bytes of single tokens: joined they are the answer, in both ways that tokenizers write bytes."""

from __future__ import annotations

import pytest
import transformers as tf
from tokenizers import Tokenizer, decoders, models

from softprompt.inference.detokenizer import Detokenizer
from softprompt.server.token_text import TokenTexts
from tests.support.tiny import tiny_tokenizer

TEXT = "Ĝis 👍🏻!\n 日本 the <0x41> é"


def sentencepiece() -> tf.PreTrainedTokenizerBase:
    """Words with their space, and a token for every byte, as Llama 2 has them."""
    words = ["▁the", "the", "▁▁", "▁", "é", "!", "日"]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    return tf.PreTrainedTokenizerFast(tokenizer_object=core)


def pieces_of(ids: list[int], tokenizer: tf.PreTrainedTokenizerBase) -> list[bytes]:
    texts = TokenTexts(tokenizer)
    return [texts.of(token, before).data for before, token in zip([None, *ids], ids, strict=False)]


@pytest.mark.parametrize("length", [*range(1, 40, 3), None])
def test_bytes_of_byte_level_tokens(length: int | None) -> None:
    """Cut anywhere, also within a character: what is left decodes to what the tokenizer makes of it."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)[:length]
    assert len(ids) > 20 or length is not None
    joined = b"".join(pieces_of(ids, tokenizer))
    assert joined == TEXT.encode()[: len(joined)]
    assert joined.decode(errors="replace") == tokenizer.decode(ids)


def test_bytes_of_sentencepiece_tokens() -> None:
    """The first word without its space, as in the text; the same word later with it."""
    tokenizer = sentencepiece()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    thumb = [f"<0x{byte:02X}>" for byte in "👍".encode()]
    ids = [vocabulary[piece] for piece in ("▁the", "▁the", "!", "▁", "the", "日", *thumb, "é")]
    detokenizer = Detokenizer(tokenizer)
    for token in ids:
        detokenizer.append(token)
    pieces = pieces_of(ids, tokenizer)
    assert b"".join(pieces).decode() == detokenizer.take(end=True) == "the the! the日👍é"
    assert pieces[:2] == [b"the", b" the"] and pieces[6:10] == [bytes([byte]) for byte in "👍".encode()]


def test_control_tokens_have_no_bytes() -> None:
    tokenizer = tiny_tokenizer()
    end = TokenTexts(tokenizer).of(tokenizer.get_vocab()["<|im_end|>"])
    assert (end.text, end.data, end.escaped) == ("<|im_end|>", b"", "<|im_end|>")


def test_parts_of_characters_are_escaped() -> None:
    r"""As OpenAI writes them."""
    tokenizer = tiny_tokenizer()
    thumb = tokenizer.encode("👍", add_special_tokens=False)
    texts = TokenTexts(tokenizer)
    assert "".join(texts.of(token).escaped for token in thumb) == r"\xf0\x9f\x91\x8d"
    assert texts.of(tokenizer.encode("a", add_special_tokens=False)[0]).escaped == "a"
