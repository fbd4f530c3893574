"""The text of single tokens as it stands in an answer, and the bytes of tokens that are only part of a character."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from softprompt.data.tokenizer import Tokenizer, decode, is_special
from softprompt.inference.detokenizer import CUT


@dataclass(frozen=True)
class TokenText:
    """What one token adds to an answer.

    Attributes:
        id: the token.
        text: its text, the replacement character where it is only part of a character.
        data: its bytes; those of all tokens of an answer, joined, are the answer's. A control token has none.
    """

    id: int
    text: str
    data: bytes

    @property
    def whole(self) -> bool:
        """Whether its bytes are whole characters."""
        return self.text.encode() == self.data or not self.data

    @property
    def escaped(self) -> str:
        r"""The text, or the bytes as OpenAI's API writes those of a part of a character: `\xf0\x9f`."""
        return self.text if self.whole else "".join(f"\\x{byte:02x}" for byte in self.data)


class TokenTexts:
    """Finds texts and bytes of tokens.

    Tokenizers write bytes in two ways: a letter for every byte (GPT-2 and all that descend from it), or `<0xF0>` for a
    byte that no other token has (SentencePiece). Both are recognized by decoding to what the tokenizer itself says.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._piece: Callable[[int], str | None] | None = getattr(tokenizer, "convert_ids_to_tokens", None)

    def of(self, token: int, before: int | None = None) -> TokenText:
        """The token's text after the token `before` of the same answer, or at its beginning."""
        alone = decode([token], self._tokenizer)
        if is_special(token, self._tokenizer):
            return TokenText(token, alone, b"")
        data = self._bytes(token, alone)
        if data is not None:
            return TokenText(token, alone, data)
        text = self._after(token, before) or alone
        return TokenText(token, text, text.encode())

    def _bytes(self, token: int, alone: str) -> bytes | None:
        """The bytes of the vocabulary's entry; None if it is not written as bytes."""
        piece = (self._piece(token) or "") if self._piece is not None else ""  # ids above the vocabulary have none
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            data = bytes.fromhex(piece[3:5])
        elif piece and all(letter in _BYTE_OF for letter in piece):
            data = bytes(_BYTE_OF[letter] for letter in piece)
        else:
            return None
        return data if data.decode(errors="replace") == alone else None

    def _after(self, token: int, before: int | None) -> str:
        """Its text in context: tokenizers leave out the space before the first word of what they decode."""
        if before is None:
            return ""
        opening, both = decode([before], self._tokenizer), decode([before, token], self._tokenizer)
        text = both[len(opening) :] if both.startswith(opening) else ""
        return "" if CUT in text else text


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are counted from U+0100."""
    printable = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
