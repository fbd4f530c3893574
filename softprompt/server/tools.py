"""Function calls: the tools of a request, and the grammar of the calls that its answer must make."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from softprompt.data.call_format import CallFormat
from softprompt.data.tokenizer import Tokenizer, decode, encode, is_special
from softprompt.engine.constraint import ANY_TEXT, json_rule, quoted, text_up_to
from softprompt.server.answer_parts import markers
from softprompt.server.error_responses import invalid
from softprompt.server.strict import Strict

MOST_CALLS = 16  # of an answer that a grammar holds to calls
_NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]


class FunctionDefinition(Strict):
    """A function that may be called. `strict` holds arguments to their schema where a call need not be made, too."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    """A function by its name."""

    name: FunctionName


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ToolFields(Strict):
    """The fields of a chat request about tools; the last two are their older names."""

    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None


@dataclass(frozen=True)
class ToolUse:
    """The functions of a request.

    Attributes:
        functions: those that may be called, in order.
        must: whether a call must be made.
        parallel: whether an answer may make several calls.
        is_old: whether calls are answered in the older field `function_call`.
        param: the field of the definitions, for error messages.
    """

    functions: tuple[FunctionDefinition, ...]
    must: bool
    parallel: bool
    is_old: bool
    param: str

    @property
    def names(self) -> frozenset[str]:
        """Names of the functions."""
        return frozenset(function.name for function in self.functions)

    @property
    def holds(self) -> bool:
        """Whether calls that need not be made are held to a grammar: one of the functions is strict."""
        return not self.must and any(function.strict for function in self.functions)

    @property
    def definitions(self) -> str:
        """The definitions for chat templates, as JSON."""
        shown = [
            {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
            for function in self.functions
        ]
        return json.dumps(shown, ensure_ascii=False)


def tool_use(fields: ToolFields) -> ToolUse | None:
    """The functions that a request's answer may call; None for none. Raises ApiError."""
    old = fields.functions is not None or fields.function_call is not None
    if old and (fields.tools is not None or fields.tool_choice is not None):
        raise invalid(
            "functions and function_call are the older names of tools and tool_choice: give one pair.", "functions"
        )
    param, choice_param = ("functions", "function_call") if old else ("tools", "tool_choice")
    functions = tuple(fields.functions or ()) if old else tuple(tool.function for tool in fields.tools or ())
    choice = fields.function_call if old else fields.tool_choice
    if len({function.name for function in functions}) < len(functions):
        raise invalid("Two functions have one name.", param)
    if not functions and choice not in (None, "none", "auto"):
        raise invalid(f"{choice_param} goes with {param}.", choice_param)
    if not functions or choice == "none":
        return None
    must = choice is not None and choice != "auto"
    named = (
        choice.function.name
        if isinstance(choice, NamedTool)
        else choice.name
        if isinstance(choice, NamedFunction)
        else ""
    )
    if named and named not in {function.name for function in functions}:
        raise invalid(f"{choice_param} names a function that {param} does not define.", choice_param)
    if named:
        functions = tuple(function for function in functions if function.name == named)
    parallel = fields.parallel_tool_calls is not False and not old and not named
    return ToolUse(functions, must, parallel, old, param)


def calls_rules(tools: ToolUse, calls: CallFormat, tokenizer: Tokenizer, opening: str | None = None) -> str:
    """Lark rules whose `calls` are calls of these functions, with arguments of their schemas. Raises DataError.

    Args:
        opening: what is written before the first call; None: all that the chat template writes.
    """
    opening = calls.opening if opening is None else opening
    closing = literal_rule(calls.closing, tokenizer)
    again = ""
    if tools.parallel and calls.between:
        again = f"({literal_rule(calls.between, tokenizer)} call){{0,{MOST_CALLS - 1}}}"
    lines = [f"calls: {literal_rule(opening, tokenizer)} call {again} {closing}"]
    lines.append(f"call: {' | '.join(f'call_{i}' for i in range(len(tools.functions)))}")
    for i, function in enumerate(tools.functions):
        is_held = function.strict or not tools.holds
        schema = (function.parameters or _NO_PARAMETERS) if is_held else {"type": "object"}
        name = quoted(calls.before_arguments(function.name))
        lines.append(f'call_{i}: {name} {json_rule(schema)} "}}"')
    return "\n".join(lines)


def free_rules(tools: ToolUse, calls: CallFormat, tokenizer: Tokenizer) -> str:
    """Lark rules whose `free` is any text, in which what opens a call goes on as a call. Raises DataError."""
    marker = markers(calls)[0]
    if not marker:  # the whole answer is calls, or does not begin as one
        first = re.escape(calls.opening.strip()[:1] or "{")
        return f"free: calls | words\nwords: /(?s:\\s*([^\\s{first}].*)?)/\n{calls_rules(tools, calls, tokenizer)}"
    after = calls.opening.partition(marker)[2]
    times = "*" if tools.parallel else "?"
    lines = [f"free: (begun calls){times} words", f"words: {ANY_TEXT}"]
    if any(is_special(token, tokenizer) for token in encode(marker, tokenizer)):
        lines.append(f"begun: words {literal_rule(marker, tokenizer)}")
    else:
        lines.append(text_up_to("begun", marker))
    return "\n".join([*lines, calls_rules(tools, calls, tokenizer, after)])


def literal_rule(text: str, tokenizer: Tokenizer) -> str:
    """Lark for a text of a chat template, in which control tokens are tokens."""
    special = {decode([token], tokenizer): token for token in encode(text, tokenizer) if is_special(token, tokenizer)}
    names = sorted(special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    rules = [f"<[{special[part]}]>" if part in special else quoted(part) for part in parts if part]
    return " ".join(rules)
