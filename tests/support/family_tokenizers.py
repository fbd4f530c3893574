"""Small tokenizers of the types of families, trained here: byte-level BPE, and pieces with byte fallback."""

from __future__ import annotations

import functools
import json

import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

LINES = [
    '{"name": "Grüße aus Köln", "age": 42, "tags": ["a b", "c\\n"]}',
    '{"ok": true, "note": null, "words": "the weather in the city of the day"}',
    "Ärger über Öl, naïve façade — 👍🏻 🎉 schön größer",
] * 4
# Each special token beside its meaning; the families' own names.
LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
LLAMA2 = ("<unk>", "<s>", "</s>")
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "llama2": "</s>"}
FAMILIES = tuple(END)


@functools.cache
def family_tokenizer(family: str) -> tf.PreTrainedTokenizerFast:
    """A tokenizer of this type with some 400 tokens, whose end token is the one that ends a turn."""
    core, names = _byte_level() if family == "llama3" else _with_fallback(family)
    bos = names[{"llama3": 0, "gemma": 2, "llama2": 1}[family]]
    core.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=END[family])


def _byte_level() -> tuple[Tokenizer, tuple[str, ...]]:
    """As Llama 3's: words of a pattern, each of bytes; control tokens behind all others."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in LLAMA3])
    return core, LLAMA3


def _with_fallback(family: str) -> tuple[Tokenizer, tuple[str, ...]]:
    """As Gemma's, where a space is ▁ and what no piece has is bytes; Llama 2's puts ▁ before a text, too."""
    names = GEMMA if family == "gemma" else LLAMA2
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    space = [normalizers.Replace(" ", "▁")]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence(space)
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    learner.train_from_iterator(LINES[:2], trainers.BpeTrainer(vocab_size=140, show_progress=False))
    model = learner.to_str()
    learned, merges = _learned(model)
    vocab = {piece: i for i, piece in enumerate([*names, *bytes_, *learned, "▁▁", "\n\n"])}
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family == "llama2":
        space = [normalizers.Prepend("▁"), *space]
        steps.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(space)
    core.decoder = decoders.Sequence(steps)
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return core, names


def _learned(saved: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces and merges of a saved BPE tokenizer."""
    model = json.loads(saved)["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in model["merges"]]


def end_token(family: str) -> int:
    """The id of the token that ends a turn."""
    token = family_tokenizer(family).convert_tokens_to_ids(END[family])
    assert isinstance(token, int)
    return token


def token_bytes(token: int, family: str) -> bytes | None:
    """What a token writes in the middle of a text, read off the vocabulary's entry; None for a control token."""
    tokenizer = family_tokenizer(family)
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str) or token in tokenizer.all_special_ids or piece in tokenizer.get_added_vocab():
        return None
    if family == "llama3":
        return bytes(_LETTERS[letter] for letter in piece)
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_LETTERS = _letters()
