"""The rows a user may write, turned into one normal `Record`.

    {"text": ..., "label": ...}               kind "label"       classification; "text2" for pairs
    {"prompt": ..., "completion": ...}        kind "completion"  "input"/"target" are synonyms
    {"messages": [{"role", "content"}, ...]}  kind "messages"    also: prompt and completion as message lists
    {"text": ...}                             kind "text"        language modelling, every token is learned

The shape is read off the first row, and every row is checked against it. Fields that no shape knows are
allowed and become template fields when they are strings. Knows nothing about files, templates or tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, final

from softprompt.errors import DataError

__all__ = ["Kind", "Message", "Record", "parse_rows"]

Kind = Literal["label", "completion", "messages", "text"]

ROLES = ("system", "developer", "user", "assistant", "tool")


@final
@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@final
@dataclass(frozen=True)
class Record:
    """One normal row, whatever file it came from.

    Attributes:
        fields: template fields (text, text2, prompt, ... and any further string field; never the target).
            Rows of kind "completion" have both `prompt` and `input`, with the same value.
        target: label or completion; for "messages" the last assistant turn. None: nothing to learn.
        kind: what the row is, see the module's docstring.
        messages: kind "messages": all turns.
        references: every right answer, for generation metrics; `(target,)` unless the row lists more.
        where: `file:line`.
        context: kind "messages": this many first turns are given, so assistant turns among them are not
            learned (the prompt of a prompt/completion row written as message lists).
    """

    fields: Mapping[str, str]
    target: str | None
    kind: Kind
    messages: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    where: str = ""
    context: int = 0


class _Shape(NamedTuple):
    """The keys of one accepted way to write a row."""

    kind: Kind
    source: str
    target: str | None
    example: str


_MESSAGES = _Shape(
    "messages",
    "messages",
    None,
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
)
_PROMPT = _Shape("completion", "prompt", "completion", '{"prompt": "Name a colour.", "completion": "Blue"}')
_INPUT = _Shape("completion", "input", "target", '{"input": "Name a colour.", "target": "Blue"}')
_LABEL = _Shape("label", "text", "label", '{"text": "I loved it.", "label": "positive"}')
_TEXT = _Shape("text", "text", None, '{"text": "Any text; all of it is learned."}')


def parse_rows(rows: Iterable[tuple[str, object]], *, require_target: bool = True) -> list[Record]:
    """Check rows and turn them into records.

    Args:
        rows: pairs of `file:line` and the decoded row.
        require_target: False for inference files, whose targets may be missing, null or empty.

    Raises:
        DataError: a row is not an object, has another shape than the first, lacks a field or has one of
            the wrong type. The first bad row is described; the message counts the others.
    """
    records: list[Record] = []
    first_error: DataError | None = None
    bad, shape, pair = 0, None, False
    for where, row in rows:
        try:
            fields = _object(row, where)
            if shape is None:
                shape = _detect(fields, where)
                pair = shape.source == "text" and "text2" in fields
            record = _parse(fields, where, shape, pair, require_target)
            if records and record.kind != records[0].kind:
                raise _wrong(
                    where,
                    f"this row is of kind {record.kind!r}, rows before it are {records[0].kind!r}",
                    shape,
                )
            records.append(record)
        except DataError as error:
            first_error = first_error or error
            bad += 1
    if first_error is not None:
        raise _counted(first_error, bad - 1)
    return records


def _counted(error: DataError, more: int) -> DataError:
    """The same error, saying how many further rows are wrong."""
    if more == 0:
        return error
    what = f"{error.what} (and {more} more {'row' if more == 1 else 'rows'})"
    return DataError(what, where=error.where, expected=error.expected, got=error.got, hint=error.hint)


def _wrong(where: str, what: str, shape: _Shape, got: object = None, hint: str | None = None) -> DataError:
    """An error that shows a right row of this shape."""
    return DataError(what, where=where, expected=shape.example, got=got, hint=hint)


def _object(row: object, where: str) -> Mapping[str, object]:
    """The row as a mapping."""
    if not isinstance(row, Mapping):
        raise _wrong(where, "a row must be a JSON object", _PROMPT, got=_brief(row))
    return cast(Mapping[str, object], row)


def _detect(row: Mapping[str, object], where: str) -> _Shape:
    """The shape of the first row, from its keys alone."""
    complete = [s for s in (_MESSAGES, _PROMPT, _INPUT, _LABEL) if s.source in row and (s.target or s.source) in row]
    started = [s for s in (_PROMPT, _INPUT) if s.source in row]
    if len(complete) > 1 or len(started) > 1:
        names = ", ".join(sorted({s.source for s in complete + started}))
        raise DataError(
            f"the row could be read in more than one way (it has {names})",
            where=where,
            expected="one of messages, prompt + completion, input + target, text + label, text",
            hint="rename or remove the fields that are not meant",
        )
    if complete or started:
        return (complete or started)[0]
    if "text" in row:
        _refuse_misspelt(row, where)
        return _TEXT
    raise DataError(
        "the row has none of the known fields",
        where=where,
        expected=f"{_LABEL.example}  or  {_PROMPT.example}  or  {_MESSAGES.example}",
        got=f"fields {', '.join(sorted(map(str, row))) or '(none)'}",
        hint="ShareGPT rows: rename 'conversations' to 'messages', 'from'/'value' to 'role'/'content'"
        if "conversations" in row
        else "rename your fields, for example 'question' to 'prompt' and 'answer' to 'completion'",
    )


def _refuse_misspelt(row: Mapping[str, object], where: str) -> None:
    """Text with a field that is nearly called "label" would be learned as text, and its label ignored."""
    for key in map(str, row):
        near = difflib.get_close_matches(key.lower(), ("label", "completion", "target"), n=1, cutoff=0.75)
        if near and key not in near:
            raise DataError(
                f"field {key!r} is not known, and rows of text alone are learned whole",
                where=where,
                expected=_LABEL.example,
                hint=f"did you mean {near[0]!r}? If not, rename the field",
            )


def _parse(row: Mapping[str, object], where: str, shape: _Shape, pair: bool, require_target: bool) -> Record:
    """One checked record of the given shape."""
    if row.get("tools") is not None:
        raise _wrong(where, "tool definitions ('tools') are not supported: the model would not see them", shape)
    if shape is _MESSAGES or (isinstance(row.get("prompt"), list) and shape is _PROMPT):
        return _parse_messages(row, where, shape, require_target)
    if shape is _TEXT and (stray := [key for key in ("label", "completion", "target") if key in row]):
        raise _wrong(where, f"rows of text alone have no {stray[0]!r}; the first row has none", shape)
    names = [shape.source, *(["text2"] if pair else [])]
    fields = {name: _string(row, name, where, shape) for name in names}
    target = None if shape.target is None else _target(row, where, shape, require_target)
    if shape.kind == "completion":
        if {"prompt", "input"} <= row.keys():
            raise _wrong(where, "the row has both 'prompt' and 'input', which mean the same", shape)
        fields = dict.fromkeys(("prompt", "input"), fields[shape.source])
    used = {*names, shape.target, "references"}
    fields |= {key: value for key, value in row.items() if isinstance(value, str) and key not in used}
    references = _references(row, target, where, shape)
    return Record(fields, target, shape.kind, references=references, where=where)


def _string(row: Mapping[str, object], name: str, where: str, shape: _Shape) -> str:
    """A field that must be a non-empty string."""
    if name not in row or row[name] is None:
        raise _wrong(where, f"field {name!r} is missing", shape, got=f"fields {', '.join(sorted(map(str, row)))}")
    return _text(row[name], f"field {name!r}", where, shape)


def _text(value: object, what: str, where: str, shape: _Shape) -> str:
    """A non-empty string that can be written as UTF-8."""
    if not isinstance(value, str):
        hint = "put the number in quotes" if isinstance(value, int | float) else None
        raise _wrong(where, f"{what} must be a string", shape, got=_brief(value), hint=hint)
    if not value.strip():
        raise _wrong(where, f"{what} is empty", shape, got=repr(value))
    # JSON can spell half of a surrogate pair; no tokenizer takes it.
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise _wrong(where, f"{what} holds half of a surrogate pair, which is not text", shape, got=_brief(value))
    return value


def _target(row: Mapping[str, object], where: str, shape: _Shape, require_target: bool) -> str | None:
    """The target; whole-number labels are taken as their digits, as class columns hold them."""
    assert shape.target is not None
    value = row.get(shape.target)
    if not require_target and (value is None or value == ""):
        return None
    if shape is _LABEL and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if shape is _LABEL and isinstance(value, bool | float):
        hint = 'write the word the model should answer, for example "yes" or "no"'
        raise _wrong(where, "field 'label' must be a string or a whole number", shape, got=_brief(value), hint=hint)
    return _string(row, shape.target, where, shape)


def _references(row: Mapping[str, object], target: str | None, where: str, shape: _Shape) -> tuple[str, ...]:
    """Every right answer, the target first, without repeats."""
    answers = [] if target is None else [target]
    if (listed := row.get("references")) is not None:
        if not isinstance(listed, list) or not listed:
            raise _wrong(where, "field 'references' must be a list of strings", shape, got=_brief(listed))
        answers += [_text(item, "a reference", where, shape) for item in cast(list[object], listed)]
    return tuple(dict.fromkeys(answers))


def _parse_messages(row: Mapping[str, object], where: str, shape: _Shape, require_target: bool) -> Record:
    """A conversation, from `messages` or from prompt and completion as message lists."""
    messages = _messages(row.get(shape.source), shape.source, where)
    context = 0
    if shape is _PROMPT:
        context = len(messages)
        if row.get("completion") is not None or require_target:
            messages += _messages(row.get("completion"), "completion", where)
    last = messages[-1]
    if require_target and last.role != "assistant":
        raise _wrong(where, "the last message must be the assistant's, it is what is learned", _MESSAGES, got=last.role)
    target = last.content if last.role == "assistant" and len(messages) > context else None
    used = {"messages", "prompt", "completion", "references"}
    fields = {key: value for key, value in row.items() if isinstance(value, str) and key not in used}
    references = _references(row, target, where, _MESSAGES)
    return Record(fields, target, "messages", tuple(messages), references, where, context)


def _messages(value: object, name: str, where: str) -> list[Message]:
    """A checked list of turns."""
    if not isinstance(value, list) or not value:
        raise _wrong(where, f"field {name!r} must be a list of messages", _MESSAGES, got=_brief(value))
    return [_message(item, f"{name}[{i}]", where) for i, item in enumerate(cast(list[object], value))]


def _message(item: object, name: str, where: str) -> Message:
    """One checked turn."""
    if not isinstance(item, Mapping):
        raise _wrong(where, f"{name} must be an object", _MESSAGES, got=_brief(item))
    turn = cast(Mapping[str, object], item)
    if turn.get("tool_calls"):
        raise _wrong(where, f"{name} holds tool calls, which are not supported", _MESSAGES)
    role = turn.get("role")
    if role not in ROLES:
        raise _wrong(where, f"{name} must have a role of {', '.join(ROLES)}", _MESSAGES, got=_brief(role))
    return Message(str(role), _text(turn.get("content"), f"the content of {name}", where, _MESSAGES))


def _brief(value: object) -> str:
    """A value for an error message: its type and the first 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
