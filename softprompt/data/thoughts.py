"""How a reasoning model's chat template writes thoughts, found out by rendering probes.

    Qwen3              <|im_start|>assistant\\n | <think>\\nthought\\n</think>\\n\\nanswer<|im_end|>
    R1 distillations   <|Assistant|><think>\\n  | thought\\n</think>\\n\\nanswer<end>

Left of the bar is the generation prompt, which opens the thought in some templates. An answer without a thought
follows an empty one, `<think></think>`, which belongs to the given text. Templates leave thoughts of earlier turns out.
Knows nothing about masks or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

from softprompt.data.records import Message
from softprompt.data.tokenizer import Tokenizer, chat_template_text, render_chat
from softprompt.errors import DataError

__all__ = ["ThoughtFormat", "split_thought", "thought_format", "unclosed_thought"]

# How models of different families begin and end a thought.
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)

# Letters alone: a chat template may trim or escape anything else.
_ASKED = "SOFTPROMPTQUESTIONTEXT"
_THOUGHT, _ANSWER = "SOFTPROMPTTHOUGHTTEXT", "SOFTPROMPTREPLYTEXT"


@final
@dataclass(frozen=True)
class ThoughtFormat:
    """How a chat template writes thoughts.

    Attributes:
        tags: what begins and ends a thought.
        opening: text between the generation prompt and the thought; empty where that prompt opens the thought.
        closing: text between thought and answer.
        empty: text between the generation prompt and an answer without a thought: it closes an opened thought. Empty
            where the generation prompt ends with an empty thought already, or opens none.
        asks, asks_not: end of the generation prompt, from the thought's tag on, with thinking on and off; maybe empty.
    """

    tags: tuple[str, str]
    opening: str
    closing: str
    empty: str
    asks: str
    asks_not: str

    @property
    def is_opened(self) -> bool:
        """Whether the generation prompt opens the thought, so that a generated thought has no opening tag."""
        return _is_open(self.asks, self.tags)

    def before_words(self, thinking: bool) -> str:
        """The end of the given text, from the thought's tag on; the words of the model follow."""
        return self.asks if thinking else self.asks_not + self.empty

    def content(self, thought: str | None, answer: str) -> str:
        """A message's content that the chat template splits into these two."""
        opening, closing = self.tags
        return answer if thought is None else f"{opening}\n{thought}\n{closing}\n\n{answer}"

    def text(self, thought: str | None, answer: str) -> str:
        """What the model writes after the generation prompt."""
        return answer if thought is None else f"{self.opening}{thought}{self.closing}{answer}"


def split_thought(text: str, *, opened: bool) -> tuple[str | None, str]:
    """An answer's thought and the answer proper; None: no thought, or an empty one.

    Args:
        opened: whether a thought may come without its opening tag, since the generation prompt opens it.
    """
    for opening, closing in TAGS:
        if closing not in text:
            continue
        before, answer = text.split(closing, 1)
        begins = before.lstrip().startswith(opening)
        if begins or (opened and opening not in before):
            return before.strip().removeprefix(opening).strip() or None, answer.lstrip()
    return None, text


def unclosed_thought(text: str) -> str:
    """The tag of a thought that the text opens and does not close; "" if there is none."""
    tags = (opening for opening, closing in TAGS if text.lstrip().startswith(opening) and closing not in text)
    return next(tags, "")


def thought_format(tokenizer: Tokenizer, chat_template: str = "") -> ThoughtFormat | None:
    """How thoughts are written; None for a chat template that knows no thoughts, or none at all.

    Args:
        chat_template: Jinja text in place of the tokenizer's own.
    """
    return _probed(tokenizer, chat_template or chat_template_text(tokenizer))


@lru_cache(maxsize=32)
def _probed(tokenizer: Tokenizer, chat_template: str) -> ThoughtFormat | None:
    asked, answered = Message("user", _ASKED), Message("assistant", _ANSWER)

    def written(*messages: Message, generation: bool = False, thinking: bool = False) -> str:
        text = render_chat(
            messages, tokenizer, add_generation_prompt=generation, thinking=thinking, chat_template=chat_template
        )
        return text.rpartition(_ASKED)[2]

    try:
        on, off = (written(asked, generation=True, thinking=thinking) for thinking in (True, False))
        bare = written(asked, answered).partition(_ANSWER)[0]
        for tags in TAGS:
            content = f"{tags[0]}\n{_THOUGHT}\n{tags[1]}\n\n{_ANSWER}"
            thoughtful = written(asked, Message("assistant", content), thinking=True)
            if any(tag in text for tag in tags for text in (on, off, bare)) or _THOUGHT not in thoughtful:
                return _measured(tags, on, off, bare, thoughtful)
    except DataError:  # no chat template, or one that refuses such a conversation: it is reported where it matters
        return None
    return None


def _measured(tags: tuple[str, str], on: str, off: str, bare: str, thoughtful: str) -> ThoughtFormat:
    """The format, from what is written after the question.

    Args:
        on, off: the generation prompt with thinking on and off.
        bare: everything up to an answer without a thought.
        thoughtful: an answer with a thought.
    """
    asks, asks_not = _from_tag(on, tags), _from_tag(off, tags)
    line = "\n" if asks.endswith("\n") or not asks else ""
    opening, closing = "" if _is_open(asks, tags) else f"{tags[0]}\n", f"{line}{tags[1]}{line * 2}"
    if _THOUGHT in thoughtful and _ANSWER in thoughtful and thoughtful.startswith(on):
        opening, _, rest = thoughtful[len(on) :].partition(_THOUGHT)
        closing = rest.partition(_ANSWER)[0]
    empty = ""
    if _is_open(asks_not, tags):
        line = "\n" if asks_not.endswith("\n") else ""
        empty = bare[len(off) :] if bare.startswith(off) else f"{line}{tags[1]}{line * 2}"
    return ThoughtFormat(tags, opening, closing, empty, asks, asks_not)


def _from_tag(prompt: str, tags: tuple[str, str]) -> str:
    """The end of a generation prompt from its first tag on."""
    starts = [start for tag in tags if (start := prompt.find(tag)) >= 0]
    return prompt[min(starts) :] if starts else ""


def _is_open(end: str, tags: tuple[str, str]) -> bool:
    return tags[0] in end and tags[1] not in end.rpartition(tags[0])[2]
