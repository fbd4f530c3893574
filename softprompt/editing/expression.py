"""Parses the expressions of `softprompt compose` into trees of names and numbers; no tensors are involved.

    a | b                    one after the other
    0.7*a + 0.3*b - c        weighted sum, token by token
    average(a, b, c)         mean, token by token
    resize(a, 16)            another length
    ( … )                    grouping; otherwise * binds before + and -, and those before |

A name may hold `-`, `.`, `_`, digits and, as a path, Hub name or URL, `/`, `@` and `:`; so `a-b` is a name, and
`a - b` with spaces a difference.

    all    := sum ("|" sum)*
    sum    := term (("+" | "-") term)*
    term   := NUMBER "*" term | operand
    operand := NAME | "(" all ")" | "average" "(" all ("," all)* ")" | "resize" "(" all "," NUMBER ")"
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from softprompt.errors import ConfigError

_HINT = 'for example "0.7*a + 0.3*b", "a | b", "average(a, b)" or "resize(a, 16)", with spaces around + - |'
_MAX_DEPTH = 50  # of nested parentheses
_TOKEN = re.compile(r"\s*(?:([A-Za-z0-9._~/:@-]+)|([|+*(),])|(\S))")


@dataclass(frozen=True)
class PromptName:
    """A saved soft prompt."""

    name: str


@dataclass(frozen=True)
class Sum:
    """weights[0]·parts[0] + weights[1]·parts[1] + …"""

    weights: tuple[float, ...]
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Concatenation:
    """Virtual tokens of all parts, one part after the other."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Average:
    """The mean, token by token."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Resized:
    """A part with another number of virtual tokens."""

    part: Expression
    n_tokens: int


Expression = PromptName | Sum | Concatenation | Average | Resized


def parse_expression(text: str) -> Expression:
    """Parse an expression into a tree. Raises ConfigError with the position of a mistake."""
    return _Parser(text).whole()


def prompt_names(expression: Expression) -> list[str]:
    """The names of all soft prompts in the expression, each once, in order."""
    return list(dict.fromkeys(part.name for part in _walk(expression) if isinstance(part, PromptName)))


def moves_tokens(expression: Expression) -> bool:
    """Whether virtual tokens change their positions; KV prompts then need the base model."""
    return any(isinstance(part, Concatenation | Resized) for part in _walk(expression))


def _walk(expression: Expression) -> Iterator[Expression]:
    yield expression
    parts = (expression.part,) if isinstance(expression, Resized) else getattr(expression, "parts", ())
    for part in parts:
        yield from _walk(part)


class _Parser:
    """Recursive descent, one method a rule."""

    def __init__(self, text: str) -> None:
        self.text, self.depth = text, 0
        self.tokens = [(match[0].strip(), match.end()) for match in _TOKEN.finditer(text)]
        self.at = 0
        for match in _TOKEN.finditer(text):
            if match[3]:
                raise self._error(f"{match[3]!r} has no meaning here", match.end())

    def whole(self) -> Expression:
        tree = self._all()
        if self._next() is not None:
            raise self._unexpected("an operator")
        return tree

    def _all(self) -> Expression:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ConfigError("too many parentheses in parentheses", where="expression", expected=f"<= {_MAX_DEPTH}")
        parts = [self._sum()]
        while self._take("|"):
            parts.append(self._sum())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _sum(self) -> Expression:
        terms, sign = [self._term()], 1.0
        while self._next() in ("+", "-"):
            sign = 1.0 if self._word() == "+" else -1.0
            weight, part = self._term()
            terms.append((sign * weight, part))
        if len(terms) == 1 and terms[0][0] == 1.0:
            return terms[0][1]
        return Sum(tuple(weight for weight, _ in terms), tuple(part for _, part in terms))

    def _term(self) -> tuple[float, Expression]:
        weight = 1.0
        while self._next(1) == "*":
            weight *= self._number()
            self._word()
        return weight, self._operand()

    def _operand(self) -> Expression:
        if self._take("("):
            part = self._all()
            self._expect(")")
            return part
        word = self._next()
        if word is None or word in "|+-*(),":
            raise self._unexpected("the name of a soft prompt")
        if self._next(1) != "(":
            return PromptName(self._word())
        if word not in ("average", "resize"):
            raise self._unexpected("average(…), resize(…) or an operator")
        self.at += 2
        parts = [self._all()]
        while word == "average" and self._take(","):
            parts.append(self._all())
        if word == "average":
            self._expect(")")
            return Average(tuple(parts))
        self._expect(",")
        n_tokens = self._count()
        self._expect(")")
        return Resized(parts[0], n_tokens)

    def _number(self) -> float:
        word = self._next()
        try:
            value = float(word or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._unexpected("a weight, as in 0.7*a,")
        self.at += 1
        return value

    def _count(self) -> int:
        word = self._next() or ""
        if not re.fullmatch(r"[1-9][0-9]{0,5}", word):
            raise self._unexpected("a number of virtual tokens")
        self.at += 1
        return int(word)

    def _next(self, ahead: int = 0) -> str | None:
        return self.tokens[self.at + ahead][0] if self.at + ahead < len(self.tokens) else None

    def _word(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][0]

    def _take(self, token: str) -> bool:
        if self._next() != token:
            return False
        self.at += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self._unexpected(repr(token))

    def _unexpected(self, wanted: str) -> ConfigError:
        """An error at the next token."""
        if self._next() is None:
            return self._error(f"the expression ends where {wanted} should be", len(self.text))
        return self._error(f"{self._next()!r} stands where {wanted} should be", self.tokens[self.at][1])

    def _error(self, what: str, end: int) -> ConfigError:
        return ConfigError(what, where=f"expression, character {max(end, 1)}", got=self.text, hint=_HINT)
