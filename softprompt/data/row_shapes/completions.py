"""Instructions: a prompt with its completion, under the names of the usual data sets, or as lists of messages.

{"prompt": "Name a color.", "completion": "Blue"}
{"input": "Name a color.", "target": "Blue"}
{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello!"}]}
{"instruction": "Translate into French.", "input": "Hello", "output": "Bonjour"}
{"context": "Blue is a color.", "question": "What is blue?", "answers": {"text": ["a color"], "answer_start": [8]}}
{"prompt": "And yours?", "response": "Blue.", "history": [["Your favorite fruit?", "Pear."]]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, final

from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, brief
from softprompt.data.row_shapes.conversations import CONVERSATIONS
from softprompt.data.row_shapes.values import answer_list
from softprompt.errors import DataError

__all__ = ["INPUT_TARGET", "PROMPT_COMPLETION", "SHAPES", "UNANSWERABLE", "CompletionShape"]

UNANSWERABLE = "unanswerable"  # learned where a list of answers is empty, as SQuAD 2 has it
_HISTORY = "history"


@final
@dataclass(frozen=True)
class CompletionShape(RowShape):
    """A prompt with its completion.

    Templates may call the prompt {prompt} and, by their own names, the columns that it is made of.

    Attributes:
        texts: the columns that make up the prompt, a line each, in their order; `source` if empty. Those that are
            `optional` may be missing or empty.
        own: whether this is our own writing, in which answers are strings and nothing else.
    """

    source: tuple[str, ...]
    target: str | None
    example: str
    title: str = ""
    texts: tuple[str, ...] = ()
    optional: tuple[str, ...] = (_HISTORY,)
    own: bool = False
    kind = "completion"
    description = "prompts with completions"

    def match(self, row: RowFields) -> Match:
        """A truth value as the answer is a label."""
        match = super().match(row)
        is_label = match == Match.COMPLETE and not self.own and isinstance(row[str(self.target)], bool)
        return Match.NO if is_label else match

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Message lists become a conversation of which the completion alone is learned, a history becomes its turns."""
        if self.source == ("prompt",) and isinstance(row.get("prompt"), list):
            assert self.target is not None
            return CONVERSATIONS.parse_lists(row, where, "prompt", self.target, require_target=require_target)
        fields = self._fields(row, where, first)
        answers, remark = self._answers(row, where, require_target)
        target = answers[0] if answers else None
        references = tuple(dict.fromkeys((*answers, *self.references(row, target, where))))
        if self.own and {"prompt", "input"} <= row.keys():
            raise self.error(where, "the row has both 'prompt' and 'input', which mean the same")
        if isinstance(first.get(_HISTORY), list) or (_HISTORY in first and isinstance(row.get(_HISTORY), list)):
            return self._conversation(row, where, fields, target, references)
        return Record(fields, target, self.kind, references=references, where=where, remark=remark)

    def parse_target(self, row: RowFields, where: str, *, require_target: bool) -> str | None:
        """The completion. Raises DataError with a hint where it is missing: rewards need none."""
        try:
            return super().parse_target(row, where, require_target=require_target)
        except DataError as error:
            if row.get(str(self.target)) is None and error.hint is None:
                error.hint = "prompts alone are for the objective grpo, which rewards generated answers"
            raise

    def default_text(self, record: Record) -> str:
        """The prompt alone."""
        return "{prompt}"

    def write(self, record: Record) -> dict[str, object]:
        """The prompt whole; the columns that it was made of are not repeated."""
        row: dict[str, object] = {"prompt": record.fields["prompt"]}
        if record.target is not None:
            row["completion"] = record.target
        rest = self.write_rest(record, row)
        return row | {name: value for name, value in rest.items() if name not in ("input", "target")}

    def _fields(self, row: RowFields, where: str, first: RowFields) -> dict[str, str]:
        """The prompt and its columns; the optional ones are empty where a row lacks them."""
        columns: dict[str, str] = {}
        for name in self.texts or self.source:
            if name in self.source:
                columns[name] = self.string(row, name, where)
            elif name in first or name in row:
                value = row.get(name)
                columns[name] = self._optional_text(value, name, where)
        prompt = "\n".join(text for text in columns.values() if text)
        same = {"prompt": prompt, "input": prompt} if self.own else {"prompt": prompt}
        return self.other_strings(row) | same | columns

    def _optional_text(self, value: object, name: str, where: str) -> str:
        """A column that may be missing or empty."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        if not isinstance(value, str):
            hint = f"--columns prompt={self.source[0]},completion={self.target} leaves it out"
            raise self.error(where, f"field {name!r} must be a string", got=brief(value), hint=hint)
        return self.text(value, f"field {name!r}", where)

    def _answers(self, row: RowFields, where: str, require_target: bool) -> tuple[list[str], str]:
        """Every right answer, the one to learn first, and a remark."""
        if self.own or isinstance(row.get(str(self.target)), str):
            target = self.parse_target(row, where, require_target=require_target)
            return ([] if target is None else [target]), ""
        assert self.target is not None
        value = row.get(self.target)
        if value is None:
            return ([self.string(row, self.target, where)] if require_target else []), ""
        answers = [self.text(answer, f"field {self.target!r}", where) for answer in answer_list(value)]
        if not answers and isinstance(value, Mapping) and "text" not in value and value:
            raise self.error(where, f"field {self.target!r} holds no answer", got=brief(cast(object, value)))
        if answers or not require_target:
            return answers, ""
        return [UNANSWERABLE], f"no answer is given: {UNANSWERABLE!r} is learned"

    def _conversation(
        self, row: RowFields, where: str, fields: dict[str, str], target: str | None, references: tuple[str, ...]
    ) -> Record:
        """The turns of the history, the prompt and the answer."""
        turns = CONVERSATIONS.system_turn(row, where)
        history = row.get(_HISTORY) or list[object]()
        if not isinstance(history, list):
            raise self.error(where, f"field {_HISTORY!r} must be a list of turns", got=brief(history))
        for i, item in enumerate(cast(list[object], history)):
            turns += self._past(item, f"{_HISTORY}[{i}]", where)
        turns.append(Message("user", fields["prompt"]))
        turns += [Message("assistant", target)] if target is not None else []
        rest = {name: text for name, text in self.other_strings(row).items() if name != "system"}
        return Record(rest, target, CONVERSATIONS.kind, tuple(turns), references, where)

    def _past(self, item: object, name: str, where: str) -> list[Message]:
        """A question with its answer, or one turn."""
        pair = cast(list[object], item) if isinstance(item, list) else list[object]()
        if len(pair) == 2:
            user, assistant = (self.text(text, name, where) for text in pair)
            return [Message("user", user), Message("assistant", assistant)]
        return [CONVERSATIONS.turn(cast(object, item), name, where)]


PROMPT_COMPLETION = CompletionShape(
    ("prompt",), "completion", '{"prompt": "Name a color.", "completion": "Blue"}', own=True
)
INPUT_TARGET = CompletionShape(("input",), "target", '{"input": "Name a color.", "target": "Blue"}', own=True)


def _foreign(title: str, source: str, target: str, texts: tuple[str, ...] = ()) -> CompletionShape:
    """A shape whose example is made of its columns."""
    columns = texts or (source,)
    words = [f'"{name}": "{"Name a color." if name == source else "..."}"' for name in columns]
    optional = tuple(name for name in columns if name != source)
    example = f'{{{", ".join(words)}, "{target}": "Blue"}}'
    return CompletionShape((source,), target, example, title, columns, (*optional, _HISTORY))


SHAPES = (
    PROMPT_COMPLETION,
    INPUT_TARGET,
    _foreign("Alpaca", "instruction", "output", ("instruction", "input")),
    _foreign("Dolly", "instruction", "response", ("context", "instruction")),
    _foreign("prompt and response", "prompt", "response"),
    _foreign("prompt and response", "query", "response"),
    _foreign("question and response", "question", "response"),
    _foreign("input and output", "input", "output"),
    _foreign("question and answer", "question", "answer", ("context", "passage", "question")),
    CompletionShape(
        ("context", "question"),
        "answers",
        '{"context": "Blue is a color.", "question": "What is blue?", "answers": {"text": ["a color"]}}',
        "SQuAD",
    ),
    _foreign("problem and solution", "problem", "solution"),
    _foreign("document and summary", "document", "summary"),
    _foreign("article and highlights", "article", "highlights"),
    _foreign("dialogue and summary", "dialogue", "summary"),
)
