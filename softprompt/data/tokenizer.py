"""The few calls of a Hugging Face tokenizer that softprompt.data makes, and how a chat is rendered with them.

Tokenizers come in as arguments, so nothing here imports transformers. Token ids are made without special
tokens (`encode`), and every BOS is left to the caller (`bos_ids`): a rendered chat never starts with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import jinja2

from softprompt.data.records import Message
from softprompt.errors import DataError

__all__ = [
    "Tokenizer",
    "answer_ends",
    "bos_ids",
    "chat_template_text",
    "closing_ids",
    "decode",
    "encode",
    "encode_answer",
    "eos_id",
    "has_chat_template",
    "is_special",
    "preceding_ids",
    "render_chat",
    "writes_system_turn",
]

_SYSTEM = "SOFTPROMPTSYSTEMTEXT"  # letters alone: a chat template may trim or escape anything else


class Tokenizer(Protocol):
    """A Hugging Face tokenizer.

    Its `bos_token_id` and `eos_token_id` are not listed: transformers makes them in `__getattr__`, which no
    type checker matches with a protocol. `bos_ids` and `eos_id` read them.
    """

    @property
    def chat_template(self) -> object:
        """The Jinja text (or named texts) of the chat template; None or empty: the model has none."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Text to token ids."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str | list[str]:
        """Token ids to text."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tools: None,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool,
        enable_thinking: bool,
        thinking: bool,
    ) -> object:
        """A conversation as text; chat templates ignore names they do not use."""
        ...


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a piece of text; no BOS, no EOS."""
    return tokenizer.encode(text, add_special_tokens=False) if text else []


def decode(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text of token ids, special tokens as they are written."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    assert isinstance(text, str), "one sequence decodes to one text"
    return text


def is_special(token: int, tokenizer: Tokenizer) -> bool:
    """Whether the token is a control token, which decoding may leave out."""
    return tokenizer.decode([token], skip_special_tokens=True) == "" and decode([token], tokenizer) != ""


def _special_id(tokenizer: Tokenizer, name: str) -> int | None:
    value: object = getattr(tokenizer, name, None)
    return value if isinstance(value, int) else None


def eos_id(tokenizer: Tokenizer) -> int | None:
    """The id of the tokenizer's EOS token, if it has one."""
    return _special_id(tokenizer, "eos_token_id")


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """`[bos]` when the tokenizer puts a BOS before every text, else `[]`."""
    bos = _special_id(tokenizer, "bos_token_id")
    starts = bos is not None and tokenizer.encode("x", add_special_tokens=True)[:1] == [bos]
    return [bos] if bos is not None and starts else []


def closing_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids the tokenizer puts after every text: `</s>` for T5, none for most causal models."""
    return _around(encode("x", tokenizer), tokenizer.encode("x", add_special_tokens=True))[1]


def preceding_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids the tokenizer puts before every text, but not BOS: the source language for NLLB."""
    before = _around(encode("x", tokenizer), tokenizer.encode("x", add_special_tokens=True))[0]
    return before[len(bos_ids(tokenizer)) :]


def encode_answer(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of an encoder–decoder's answer; a translator (Marian) splits it by the target language's rules."""
    return _as_answer(text, tokenizer, special=False) if text else []


def answer_ends(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids the tokenizer puts before every answer of an encoder–decoder and after it: `<s>` and `</s>` for BART."""
    plain, whole = (_as_answer("x", tokenizer, special=special) for special in (False, True))
    return _around(plain, whole)


def _as_answer(text: str, tokenizer: Tokenizer, *, special: bool) -> list[int]:
    if not callable(tokenizer):  # all of Transformers' are
        return tokenizer.encode(text, add_special_tokens=special)
    call = cast("Callable[..., Mapping[str, list[int]]]", tokenizer)
    return call(text_target=text, add_special_tokens=special)["input_ids"]


def _around(plain: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What stands before the plain text in the whole one and after it; nothing if it is not in there."""
    size = len(plain)
    for start in range(len(whole) - size + 1):
        if whole[start : start + size] == plain:
            return whole[:start], whole[start + size :]
    return [], []


def has_chat_template(tokenizer: Tokenizer) -> bool:
    """Whether the model can be spoken to in turns."""
    return bool(tokenizer.chat_template)


def chat_template_text(tokenizer: Tokenizer) -> str:
    """The Jinja text of the chat template that writes conversations; "" if there is none."""
    found = tokenizer.chat_template
    if isinstance(found, Mapping):  # several, by name: "tool_use" and the like are for other purposes
        found = cast("Mapping[str, object]", found).get("default")
    return found if isinstance(found, str) else ""


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool,
    thinking: bool = False,
    chat_template: str = "",
) -> str:
    """The conversation as the model's chat template writes it, without the BOS that `bos_ids` stands for.

    A BOS at the start is kept when the tokenizer does not add one by itself: some templates use the BOS
    token as the opening of a turn.

    Args:
        thinking: whether a model that may think before it answers does so; off, an empty thought stands in the
            generation prompt of most of them.
        chat_template: Jinja text in place of the tokenizer's own.

    Raises:
        DataError: there is no chat template, or it refuses the conversation.
    """
    if not chat_template and not has_chat_template(tokenizer):
        raise DataError(
            "the tokenizer has no chat template",
            hint="use a plain template (--no-chat --template '...') or an instruction-tuned model",
        )
    tools = next((message.tools for message in messages if message.tools), "")
    try:
        text = tokenizer.apply_chat_template(
            # Transformers declares neither nested values nor lists of definitions as this Protocol could name them.
            cast("list[dict[str, str]]", [_turn(message) for message in messages]),
            tools=cast("None", json.loads(tools) if tools else None),
            chat_template=None if chat_template in ("", chat_template_text(tokenizer)) else chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=thinking,  # Qwen3, SmolLM3, GLM and most others
            thinking=thinking,  # DeepSeek V3.1, Granite
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise DataError(
            "the model's chat template refuses this conversation",
            expected="the roles and the order of turns that the model was trained with",
            got=f"{', '.join(message.role for message in messages)}: {error}",
        ) from error
    assert isinstance(text, str), "tokenize=False gives text"
    _check_functions(text, tools, "definitions of tools")
    for message in messages:
        _check_functions(text, message.calls, "tool calls")
    bos = bos_ids(tokenizer)
    return text.removeprefix(decode(bos, tokenizer)) if bos else text


def _turn(message: Message) -> dict[str, object]:
    """A turn as chat templates read it."""
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.calls:
        turn["tool_calls"] = json.loads(message.calls)
    if message.name:
        turn["name"] = message.name
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    return turn


def _check_functions(text: str, functions: str, what: str) -> None:
    """Raise DataError if a rendered conversation lacks a function: many chat templates leave them out."""
    names = [str(entry["function"]["name"]) for entry in json.loads(functions)] if functions else []
    if lacking := [name for name in names if name not in text]:
        raise DataError(
            f"the model's chat template does not write {what}: the model would not see them",
            got=", ".join(lacking),
            hint="choose a model whose chat template knows tools, or leave them out of the rows",
        )


def writes_system_turn(tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes a system turn, instead of refusing or dropping it."""
    turns = (Message("system", _SYSTEM), Message("user", "text"))
    try:
        return _SYSTEM in render_chat(turns, tokenizer, add_generation_prompt=True)
    except DataError:
        return False
