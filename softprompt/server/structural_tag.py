"""Structural tags: free text in which marked parts follow a format, as vLLM and XGrammar name them.

structures, triggers   text until a trigger, from which on one of the structures follows
format                 a tree of const_string, any_text, json_schema, regex, sequence, or, tag, triggered_tags and
                       tags_with_separator
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, final

from pydantic import Field, WithJsonSchema

from softprompt.engine.constraint import ANY_TEXT, json_rule, quoted, regex_rule, text_up_to
from softprompt.errors import DataError
from softprompt.server.strict import Strict

_Text = Annotated[str, Field(min_length=1)]


class ConstString(Strict):
    """This text."""

    type: Literal["const_string"]
    value: str


class AnyText(Strict):
    """Any text: up to what follows, or to the end."""

    type: Literal["any_text"]


class JsonText(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, object] | bool
    style: Literal["json"] | None = None


class RegexText(Strict):
    """A match of a regular expression."""

    type: Literal["regex"]
    pattern: str


class SequenceOf(Strict):
    """One part after the other."""

    type: Literal["sequence"]
    elements: Annotated[list[TagPart], Field(min_length=1)]


class OneOf(Strict):
    """One of these parts."""

    type: Literal["or"]
    elements: Annotated[list[TagPart], Field(min_length=1)]


class Tag(Strict):
    """A part between two texts; one of several may end it."""

    type: Literal["tag"] = "tag"
    begin: str
    content: TagPart
    end: str | Annotated[list[str], Field(min_length=1)]

    @property
    def ends(self) -> list[str]:
        """The texts that end it."""
        return [self.end] if isinstance(self.end, str) else self.end


class TriggeredTags(Strict):
    """Free text, in which a trigger begins one of the tags. With `at_least_one` the text begins with a tag."""

    type: Literal["triggered_tags"]
    triggers: Annotated[list[_Text], Field(min_length=1)]
    tags: Annotated[list[Tag], Field(min_length=1)]
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(Strict):
    """Tags alone, with a text between each two."""

    type: Literal["tags_with_separator"]
    tags: Annotated[list[Tag], Field(min_length=1)]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


TagPart = Annotated[
    ConstString | AnyText | JsonText | RegexText | SequenceOf | OneOf | Tag | TriggeredTags | TagsWithSeparator,
    Field(discriminator="type"),
]


# As documents show it, which write out all that they refer to: without the parts of its parts.
_KINDS = ["const_string", "any_text", "json_schema", "regex", "sequence", "or", "tag", "triggered_tags"]
_SHOWN: dict[str, object] = {"enum": [*_KINDS, "tags_with_separator"]}
_Format = Annotated[TagPart, WithJsonSchema({"type": "object", "properties": {"type": _SHOWN}, "required": ["type"]})]


class TagStructure(Strict):
    """A structure of the older form: JSON between two texts."""

    begin: str
    json_schema: dict[str, object] | bool = Field(True, alias="schema")
    end: str


class StructuralTag(Strict):
    """Structures and triggers, or a format."""

    structures: Annotated[list[TagStructure], Field(min_length=1)] | None = None
    triggers: Annotated[list[_Text], Field(min_length=1)] | None = None
    format: _Format | None = None


def tag_grammar(tag: StructuralTag) -> str:
    """A whole grammar in Lark. Raises DataError for a part that no grammar of this kind can end."""
    older = tag.structures is not None or tag.triggers is not None
    if older == (tag.format is not None) or (tag.structures is None) != (tag.triggers is None):
        raise DataError("a structural tag has structures and triggers, or a format")
    part = tag.format
    if part is None:
        tags = [
            {"begin": one.begin, "content": {"type": "json_schema", "json_schema": one.json_schema}, "end": one.end}
            for one in tag.structures or ()
        ]
        part = TriggeredTags.model_validate({"type": "triggered_tags", "triggers": tag.triggers, "tags": tags})
    writer = _Writer()
    start = writer.part(part, "")
    return "\n".join([f"start: {start}", *writer.rules])


@final
class _Writer:
    """Writes the rules of a grammar.

    Attributes:
        rules: so far.
    """

    def __init__(self) -> None:
        self.rules = list[str]()
        self._ends: dict[str, str] = {}  # names of rules for text up to these texts

    def part(self, part: TagPart, then: str) -> str:
        """The right side of a rule for a part and the text `then` after it; "" is the end or a part of its own."""
        if isinstance(part, AnyText):
            return self._up_to(then) if then else ANY_TEXT
        if isinstance(part, SequenceOf):
            return self._sequence(part.elements, then)
        if isinstance(part, OneOf):
            return f"({' | '.join(self._rule(self.part(one, then)) for one in part.elements)})"
        if isinstance(part, Tag):
            return f"{quoted(part.begin)} {self._inside(part, then)}"
        if isinstance(part, TriggeredTags):
            return self._triggered(part, then)
        if isinstance(part, TagsWithSeparator):
            one = f"({' | '.join(self._rule(self.part(tag, '')) for tag in part.tags)})"
            more = "" if part.stop_after_first else f"({quoted(part.separator)} {one})*"
            return f"({one} {more}){'' if part.at_least_one else '?'} {quoted(then)}"
        if isinstance(part, ConstString):
            return f"{quoted(part.value)} {quoted(then)}"
        own = json_rule(part.json_schema) if isinstance(part, JsonText) else regex_rule(part.pattern)
        return f"{self._rule(own)} {quoted(then)}"

    def _sequence(self, elements: Sequence[TagPart], then: str) -> str:
        first, rest = elements[0], elements[1:]
        if not rest:
            return self.part(first, then)
        if not _ends_in_text(first):
            return f"{self.part(first, '')} {self._sequence(rest, then)}"
        following = rest[0]
        if isinstance(following, ConstString) and following.value:
            after = self._sequence(rest[1:], then) if rest[1:] else quoted(then)
            return f"{self.part(first, following.value)} {after}"
        if isinstance(following, Tag) and following.begin:
            inside = self._inside(following, "" if rest[1:] else then)
            after = self._sequence(rest[1:], then) if rest[1:] else ""
            return f"{self.part(first, following.begin)} {inside} {after}"
        expected = "a const_string or a tag after it"
        raise DataError("free text ends where a known text follows", expected=expected, got=following.type)

    def _inside(self, tag: Tag, then: str) -> str:
        """A tag without its beginning."""
        ways = [
            f"{self.part(tag.content, end)} {quoted(then)}" if end else self.part(tag.content, then) for end in tag.ends
        ]
        return self._rule(ways[0]) if len(ways) == 1 else f"({' | '.join(map(self._rule, ways))})"

    def _triggered(self, part: TriggeredTags, then: str) -> str:
        begun = list[str]()
        for tag in part.tags:
            own = [trigger for trigger in part.triggers if tag.begin.startswith(trigger)]
            if len(own) != 1:
                raise DataError("a tag begins with exactly one of the triggers", got=f"{tag.begin!r}: {own}")
            begun.append(f"{self._up_to(own[0])} {quoted(tag.begin[len(own[0]) :])} {self._inside(tag, '')}")
        in_text = self._rule(" | ".join(begun))
        at_once = self._rule(" | ".join(self.part(tag, "") for tag in part.tags)) if part.at_least_one else ""
        last = self._up_to(then) if then else ANY_TEXT
        if part.stop_after_first:
            return f"{at_once} {quoted(then)}" if at_once else f"({in_text} {quoted(then)} | {last})"
        return f"{at_once} {in_text}* {last}"

    def _up_to(self, end: str) -> str:
        """The name of the rule for text up to `end`, which it includes."""
        if end not in self._ends:
            self._ends[end] = f"text_{len(self._ends)}"
            self.rules.append(text_up_to(self._ends[end], end))
        return self._ends[end]

    def _rule(self, right: str) -> str:
        """The name of a rule of its own."""
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}: {right}")
        return name


def _ends_in_text(part: TagPart) -> bool:
    """Whether free text may be the end of a part."""
    if isinstance(part, SequenceOf):
        return _ends_in_text(part.elements[-1])
    if isinstance(part, OneOf):
        return any(map(_ends_in_text, part.elements))
    if isinstance(part, Tag):
        return "" in part.ends and _ends_in_text(part.content)
    if isinstance(part, TagsWithSeparator):
        return any(map(_ends_in_text, part.tags))
    return isinstance(part, AnyText) or (
        isinstance(part, TriggeredTags) and not (part.at_least_one and part.stop_after_first)
    )
