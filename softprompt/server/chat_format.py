"""How a model's conversations show functions, and how its answers are told apart and held to calls.

All is taken from the chat template: thoughts (`data.thoughts`) and calls (`data.call_format`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from softprompt.data.call_format import HERMES, CallFormat, call_format
from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.data.thoughts import ThoughtFormat, thought_format
from softprompt.data.tokenizer import Tokenizer, encode, is_special
from softprompt.engine.constraint import text_up_to
from softprompt.formatting.tool_turns import with_tools
from softprompt.models.response_events import own_response_template
from softprompt.server.answer_parts import AnswerFormat, markers, response_template
from softprompt.server.error_responses import invalid
from softprompt.server.structured_output import RequestedGrammar
from softprompt.server.tools import ToolUse, calls_rules, free_rules, literal_rule


@final
class ChatFormat:
    """The format of one soft prompt's conversations.

    Args:
        template: its template.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._reads_turns = template.kind == "chat" and not template.text

    def thinking(self, choice: bool | None) -> ChatFormat:
        """The format of answers that begin with a thought, or with none; None: as the soft prompt was trained."""
        if choice is None or self._thoughts is None:
            return self
        return ChatFormat(replace(self._template, thoughts="given" if choice else ""), self._tokenizer)

    def with_thoughts(self, messages: Sequence[Message], thoughts: Sequence[str]) -> Sequence[Message]:
        """The turns with the thoughts before their words, where the chat template knows them."""
        if self._thoughts is None or not any(thoughts):
            return messages
        pairs = zip(messages, thoughts, strict=True)
        return [replace(m, content=self._thoughts.content(thought or None, m.content)) for m, thought in pairs]

    def shown(self, messages: Sequence[Message], tools: ToolUse | None) -> Sequence[Message]:
        """The turns with the definitions of functions. Raises ApiError where there is no place for them.

        A soft prompt that was trained on texts is not shown definitions; an answer that must be a call is held to it.
        """
        if self._reads_turns:
            return with_tools(messages, tools.definitions if tools else "", self._template, self._tokenizer)
        if tools is not None and not tools.must:
            what = "This soft prompt was trained on texts, which show no functions: it could not know of them."
            hint = "With tool_choice required, or a function by its name, its answer is a call."
            raise invalid(f"{what} {hint}", tools.param, "unsupported_parameter")
        return messages

    def answer(self, tools: ToolUse | None) -> AnswerFormat | None:
        """How answers are told apart; None: they are text. Raises ApiError for calls that cannot be read."""
        thoughts, calls = self._thoughts, None if tools is None else self._calls(tools)
        tags = None if thoughts is None else thoughts.tags
        if thoughts is None and tools is None:
            return None
        own = own_response_template(self._tokenizer) if tools is not None and calls is None else None
        if tools is not None and calls is None and own is None:
            what = "The model writes calls in a form that this server does not read."
            raise invalid(
                f"{what} With tool_choice required its answer is a call.", tools.param, "unsupported_parameter"
            )
        around = ("", "") if calls is None else markers(calls)
        written = [token for text in (*around, *(tags or ())) for token in encode(text, self._tokenizer)]
        special = any(is_special(token, self._tokenizer) for token in written)
        return AnswerFormat(
            own or response_template(calls, tags),
            around,
            tags[0] if thoughts is not None and tags is not None and self._thinks and thoughts.is_opened else "",
            frozenset() if tools is None else tools.names,
            special or own is not None,
            None if tools is None or tools.parallel else 1,
            tools is not None and tools.is_old,
            own is not None,
        )

    def grammar(self, tools: ToolUse | None, wanted: RequestedGrammar | None) -> RequestedGrammar | None:
        """The grammar of answers: calls that must be made, a format that is asked for, or either. Raises ApiError.

        Without these two, calls of strict functions within words. Before all stands the thought of a model that thinks
        first.
        """
        must = tools is not None and tools.must
        is_free = tools is not None and tools.holds and wanted is None
        if not (must or is_free) and (wanted is None or (tools is None and not (self._thinks and wanted.rule))):
            return wanted
        lines, choices = list[str](), list[str]()
        param = ""
        if tools is not None and is_free:
            lines.append(free_rules(tools, self._strict_calls(tools), self._tokenizer))
            choices, param = ["free"], tools.param
        elif tools is not None:
            lines.append(calls_rules(tools, self._calls(tools) or HERMES, self._tokenizer))
            choices, param = ["calls"], tools.param
        if wanted is not None and not must:
            if not wanted.rule:
                raise invalid(f"{wanted.param} does not go with {param}.", wanted.param)
            lines.append(f"answer: {wanted.rule}")
            choices, param = [*choices, "answer"], wanted.param
        before = ""
        if self._thinks and self._thoughts is not None:
            lines.append(f"thought: {self._thought_rule(self._thoughts)}")
            before = "thought "
        return RequestedGrammar("\n".join([f"start: {before}({' | '.join(choices)})", *lines]), param)

    @property
    def _thoughts(self) -> ThoughtFormat | None:
        chat_template = self._template.chat_template
        return thought_format(self._tokenizer, chat_template) if self._template.kind == "chat" else None

    @property
    def _thinks(self) -> bool:
        return bool(self._template.thoughts) and self._thoughts is not None

    def _calls(self, tools: ToolUse) -> CallFormat | None:
        """How calls are written; of calls that must be made in any case."""
        found = call_format(self._tokenizer, self._template.chat_template) if self._reads_turns else HERMES
        return HERMES if found is None and tools.must else found

    def _strict_calls(self, tools: ToolUse) -> CallFormat:
        """How calls are written that need not be made. Raises ApiError where no grammar can hold them."""
        calls = self._calls(tools)
        if calls is None:
            what = (
                "The model writes calls in a form that is no JSON, which this server reads but cannot hold to a schema."
            )
            hint = "Leave strict out, or require a call by tool_choice."
            raise invalid(f"{what} {hint}", tools.param, "unsupported_parameter")
        return calls

    def _thought_rule(self, thoughts: ThoughtFormat) -> str:
        """Lark for a thought up to its closing tag, and the space after it."""
        opening = literal_rule(thoughts.opening, self._tokenizer) if thoughts.opening else ""
        closing = thoughts.tags[1]
        if any(is_special(token, self._tokenizer) for token in encode(closing, self._tokenizer)):
            return f"{opening} /(?s:.*)/ {literal_rule(closing, self._tokenizer)} /\\s{{0,4}}/"
        return f"{opening} thinking /\\s{{0,4}}/\n{text_up_to('thinking', closing)}"
