"""A tokenizer of bytes in plain Python: no download, every id is plain to see, chat template like ChatML.

Ids 0...255 are bytes, 256... are control tokens. Spaces merge with the letter that follows them into one
token (ids from 1000), so that a test notices when head, body and target are cut in another place.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jinja2

SPECIAL = {"<s>": 256, "</s>": 257, "<|im_start|>": 258, "<|im_end|>": 259}
BY_ID = {number: text for text, number in SPECIAL.items()}
BOS, EOS, START, END = SPECIAL.values()
MERGED = 1000

Turns = list[dict[str, str]]
Render = Callable[[Turns, bool], str]


def chatml(turns: Turns, generation: bool) -> str:
    """ChatML with a default system turn, as SmolLM's template has."""
    text = "" if turns[0]["role"] == "system" else "<|im_start|>system\nYou are tiny.<|im_end|>\n"
    for turn in turns:
        text += f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if generation else "")


def llama2(turns: Turns, generation: bool) -> str:
    """BOS in the template, trimmed words, a space in front of EOS, no system turn."""
    text = "<s>"
    for turn in turns:
        if turn["role"] == "system":
            raise jinja2.TemplateError("System role not supported")
        content = turn["content"].strip()
        text += f"[INST] {content} [/INST]" if turn["role"] == "user" else f" {content} </s>"
    return text


class BytesTokenizer:
    """Satisfies softprompt.data.tokenizer.Tokenizer."""

    def __init__(
        self,
        chat: Render | None = chatml,
        *,
        adds_bos: bool = False,
        eos: int | None = EOS,
        bos: int | None = BOS,
    ) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos
        self.chat_template = None if chat is None else "a chat template"
        self._chat, self._adds_bos = chat, adds_bos

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [BOS] if self._adds_bos and add_special_tokens else []
        for piece in re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
            if piece in SPECIAL:
                ids.append(SPECIAL[piece])
            else:
                for token in re.findall(rb" [a-zA-Z]|.", piece.encode(), re.DOTALL):
                    ids.append(token[0] if len(token) == 1 else MERGED + token[1])
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        raw = b""
        for number in token_ids:
            if number in BY_ID:
                raw += b"" if skip_special_tokens else BY_ID[number].encode()
            else:
                raw += bytes([number]) if number < MERGED else b" " + bytes([number - MERGED])
        return raw.decode(errors="replace")

    def apply_chat_template(
        self,
        conversation: Turns,
        *,
        tools: None,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool,
        enable_thinking: bool,
        thinking: bool,
    ) -> object:
        assert chat_template is None and not tokenize and enable_thinking == thinking and self._chat is not None
        return self._chat(conversation, add_generation_prompt)
