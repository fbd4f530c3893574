"""Detokenizer: tokens to streamed text, with stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.data.tokenizer import Tokenizer

CUT = "\N{REPLACEMENT CHARACTER}"  # what a token that ends inside a character decodes to


class Detokenizer:
    """An answer's text in the making: tokens in, text out; half a character, or what may become a stop string, waits.

    Only the last tokens are decoded again with each new one, as much as a character or a word may need.

    Args:
        stop: strings that end the text.
        skip_special_tokens: leave special tokens out of the text.

    Attributes:
        ids: the tokens so far.
        text: their text, up to the first stop string.
        stopped: a stop string was found.
        shown: length of the text that `take` has returned.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self.shown = 0
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._skip_special_tokens = skip_special_tokens
        self._held = max(0, max(map(len, self._stop), default=0) - 1)
        self._sure = ""  # text of the tokens before `_next`, which no later token changes
        self._start, self._next = 0, 0  # tokens between the two are decoded again, as context of later ones

    def append(self, token: int) -> None:
        """Take the next token."""
        self.ids.append(token)
        before, now = self._decoded(self._start, self._next), self._decoded(self._start, len(self.ids))
        if not now.startswith(before):  # a tokenizer that tidies spaces up
            self._sure = ""
            self._start, self._next = 0, 0
            before, now = "", self._decoded(0, len(self.ids))
        searched = len(self._sure)
        self.text = self._sure + now[len(before) :]
        if len(now) > len(before) and not now.endswith(CUT):
            self._sure = self.text
            self._start, self._next = self._next, len(self.ids)
        cuts = [at for stop in self._stop if (at := self.text.find(stop, max(0, searched - len(stop) + 1))) >= 0]
        if cuts:
            self.text, self.stopped = self.text[: min(cuts)], True

    def take(self, *, end: bool) -> str:
        """Further text that no later token can change; with `end` all that is left."""
        stop = len(self.text)
        if not end:
            whole = len(self.text.rstrip(CUT))  # after it a character may be cut in half
            stop = max(self.shown, whole - self._held)
        new, self.shown = self.text[self.shown : stop], max(self.shown, stop)
        return new

    def _decoded(self, start: int, stop: int) -> str:
        text = self._tokenizer.decode(self.ids[start:stop], skip_special_tokens=self._skip_special_tokens)
        assert isinstance(text, str), "one sequence decodes to one text"
        return text
