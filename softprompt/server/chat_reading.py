"""How the conversation of a request becomes token ids, with what the request and the server's operator choose.

A request may begin the answer itself, with a last turn of the assistant, and give the chat template variables, such as
a switch for thinking. The operator, or a soft prompt's card, says what becomes of system turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, final

from softprompt.data.records import Message
from softprompt.data.targets import target_text
from softprompt.data.template import VIRTUAL, Template, head, thoughts_of
from softprompt.data.tokenizer import Tokenizer, chat_template_text, encode
from softprompt.errors import DataError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import chat_input_ids
from softprompt.json_types import JSON
from softprompt.server.error_responses import invalid
from softprompt.server.schema import ChatRequest

SystemTurns = Literal["", "keep", "ignore", "refuse"]

_THINKING = ("enable_thinking", "thinking")  # the switches of chat templates
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What the conversation itself is, and arguments of Transformers' `apply_chat_template`: not for a request.
_RESERVED = re.compile(
    r"messages|conversation|tools|documents|chat_template|tokenize|padding|truncation|max_length|return_\w+"
    r"|\w+_kwargs|\w+_tokens?|add_generation_prompt|continue_final_message"
)


@final
@dataclass(frozen=True)
class ChatOptions:
    """What one request chooses.

    Attributes:
        thinking: whether the answer begins with a thought; None: as the soft prompt was trained, or none.
        variables: of the chat template, as a JSON object.
    """

    thinking: bool | None = None
    variables: str = "{}"

    @property
    def names(self) -> list[str]:
        """The fields of the request that it holds."""
        names = [] if self.thinking is None else ["enable_thinking"]
        return names + list(json.loads(self.variables))


NO_OPTIONS = ChatOptions()


def chat_options(request: ChatRequest) -> ChatOptions:
    """The choices of a request. Raises ApiError for choices that contradict the conversation or each other."""
    begun = request.messages[-1].role == "assistant"
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid("continue_final_message goes with add_generation_prompt: false.", "add_generation_prompt")
    if request.continue_final_message and not begun:
        raise invalid("continue_final_message needs a last turn of the assistant.", "continue_final_message")
    if begun and (request.add_generation_prompt or request.continue_final_message is False):
        what = "The last turn is the assistant's, which is continued. Leave it out, or let a user's turn follow."
        raise invalid(what, "add_generation_prompt" if request.add_generation_prompt else "continue_final_message")
    if request.add_generation_prompt is False and not begun:
        what = "add_generation_prompt: false needs a last turn of the assistant, which is then continued."
        raise invalid(what, "add_generation_prompt")
    given = dict(request.chat_template_kwargs or {})
    for name in given:
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise invalid("This variable of the chat template is not for requests.", "chat_template_kwargs")
    thinking = [given.pop(name) for name in _THINKING if name in given]
    if any(not isinstance(value, bool) for value in thinking) or len(set(map(str, thinking))) > 1:
        raise invalid("enable_thinking and thinking are true or false, and one switch.", "chat_template_kwargs")
    if request.reasoning_effort not in (None, "none"):
        given.setdefault("reasoning_effort", request.reasoning_effort)
    return ChatOptions(bool(thinking[0]) if thinking else None, json.dumps(given, sort_keys=True))


def read_conversation(
    messages: Sequence[Message],
    options: ChatOptions,
    system_turns: SystemTurns,
    formatted: FormattedPrompt,
    tokenizer: Tokenizer,
    shown: Callable[[Sequence[Message]], Sequence[Message]] = tuple,
) -> tuple[list[int], tuple[str, ...]]:
    """The ids of a conversation up to the answer, and the options that change nothing. Raises DataError.

    Args:
        messages: a last turn of the assistant is the beginning of the answer.
        system_turns: of a system turn other than the soft prompt's own: "keep", "ignore" or "refuse" it; "": as the
            card says, or else as it was trained.
        shown: adds the definitions of functions.
    """
    messages = shown(_with_system_turns(messages, system_turns or formatted.template.system_turns, formatted.template))
    written = _with_options(options, formatted, tokenizer)
    formatted, tokenizer = written.formatted, written.tokenizer
    begun = messages[-1] if messages[-1].role == "assistant" else None
    if begun is not None and begun.calls:
        raise DataError("a turn that calls functions is whole: it cannot be continued", where="messages[-1]")
    given = messages if begun is None else messages[:-1]
    ids = chat_input_ids(given, formatted, tokenizer)
    if begun is not None and begun.content:
        ids = ids + encode(target_text(begun.content, formatted.template), tokenizer)
    return ids, written.ignored


@dataclass(frozen=True)
class _Writing:
    """Prompt and tokenizer under the options of a request, and those that change nothing."""

    formatted: FormattedPrompt
    tokenizer: Tokenizer
    ignored: tuple[str, ...] = ()


def _with_system_turns(messages: Sequence[Message], choice: SystemTurns, template: Template) -> Sequence[Message]:
    """The turns without their system turn, or with it as part of a user's turn, where the soft prompt takes none."""
    first = messages[0]
    if not choice or first.role != "system" or (template.system and first.content == template.system):
        return messages
    if choice == "refuse":
        hint = "leave the system turn out"
        raise DataError("this soft prompt is served without other system turns", where="messages[0]", hint=hint)
    takes = template.kind == "chat" and not template.text and template.system != VIRTUAL
    if takes and choice == "keep":
        return messages
    rest = Message.without_first(messages)
    if choice == "ignore" or not rest:
        return rest or messages
    # Of a plain text only the last turn of the user is read, of a conversation all are.
    users = [i for i, message in enumerate(rest) if message.role == "user"]
    if not users or len(template.names) > 1:
        what = "a system turn cannot stand before the fields of this soft prompt's template"
        raise DataError(what, where="messages[0]", hint="leave the system turn out")
    at = users[0] if template.kind == "chat" else users[-1]
    joined = replace(rest[at], content=f"{first.content}\n\n{rest[at].content}")
    return (*rest[:at], joined, *rest[at + 1 :])


def _with_options(options: ChatOptions, formatted: FormattedPrompt, tokenizer: Tokenizer) -> _Writing:
    """Raises DataError for options that change the soft prompt's opening."""
    template, ignored = formatted.template, list[str]()
    if not options.names:
        return _Writing(formatted, tokenizer)
    written = template.chat_template or chat_template_text(tokenizer) if template.kind == "chat" else ""
    variables: dict[str, JSON] = json.loads(options.variables)
    for name in list(variables):
        if not re.search(rf"\b{name}\b", written):
            del variables[name]
            ignored.append(name if name == "reasoning_effort" else f"chat_template_kwargs.{name}")
    if options.thinking is not None and thoughts_of(replace(template, thoughts=""), tokenizer) is not None:
        template = replace(template, thoughts="given" if options.thinking else "")
    elif options.thinking is not None:
        ignored.append("chat_template_kwargs.enable_thinking")
    varied = _VariedTokenizer(tokenizer, json.dumps(variables)) if variables else tokenizer
    if head(formatted.template, tokenizer) != head(template, varied):
        what = "with these variables the chat template writes another opening than the soft prompt was trained with"
        raise DataError(what, where="chat_template_kwargs", got=", ".join(options.names))
    return _Writing(replace(formatted, template=template), varied, tuple(ignored))


@final
@dataclass(frozen=True)
class _VariedTokenizer:
    """A tokenizer whose chat template has further variables."""

    tokenizer: Tokenizer
    variables: str

    @property
    def chat_template(self) -> object:
        return self.tokenizer.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str | list[str]:
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

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
        render = cast("Callable[..., object]", self.tokenizer.apply_chat_template)
        own: Mapping[str, object] = {
            "tools": tools,
            "chat_template": chat_template,
            "tokenize": tokenize,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": enable_thinking,
            "thinking": thinking,
        }
        return render(conversation, **{**json.loads(self.variables), **own})

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)
