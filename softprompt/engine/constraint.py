"""Answers within a grammar: the tokens that may come next, by llguidance (https://github.com/guidance-ai/llguidance).

A grammar is Lark text in llguidance's dialect, which holds JSON schemas and regular expressions, too. vLLM reads the
same. Each row of a batch has a state of its own, so that rows with and without a grammar are sampled together.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from softprompt.errors import DataError, EngineError, missing_extra
from softprompt.models.frozen_lm import FrozenLM

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 32  # compiled grammars
# llguidance is recursive, and what is too deep ends the process: brackets in each other, and chains of rules.
DEEPEST = 64
MOST_RULES = 500
_STACK_BYTES = 64 * 2**20  # of the thread that compiles; a chain of 1,000 rules takes 8 MiB
_LEXER_STATES = 50_000  # of a grammar, about 2 kB each
_MESSAGE_CHARS = 300
# White space between the parts of JSON: enough to indent by, and an end, since a small model may write blanks forever.
_BLANKS = r"[ \n\r\t]{0,20}"
ANY_TEXT = "/(?s:.*)/"
# Else llguidance allows one token where one text alone may come, and takes the letters of "</s>" for the token.
_ALL_TOKENS = '%llguidance {"no_forcing": true}\n'


def json_rule(schema: object) -> str:
    """Lark for the JSON values of a schema; the fields of an object come in the schema's order."""
    own = {} if schema is True else schema
    if isinstance(own, dict):
        own = {**own, "x-guidance": {"whitespace_pattern": _BLANKS}}
    return f"%json {json.dumps(own, ensure_ascii=False)}"


def text_rule(texts: Sequence[str]) -> str:
    """Lark for one of these texts."""
    return " | ".join(map(quoted, texts))


def quoted(text: str) -> str:
    """Lark for a text; "" for none."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") if text else ""


def text_up_to(name: str, end: str) -> str:
    """The Lark rule of this name for the text up to where `end` first ends it, and `end`."""
    return f"{name}[suffix={quoted(end)}]: {ANY_TEXT}"


def regex_rule(pattern: str) -> str:
    """Lark for the texts that a regular expression matches as a whole, in Rust's syntax. Raises DataError."""
    from llguidance import regex_to_lark

    check_depth(pattern)
    try:
        return f"/{regex_to_lark(pattern, use_ascii='')}/"
    except ValueError as error:
        raise DataError("it is no regular expression", got=_brief(str(error))) from error


def read_grammar(text: str) -> str:
    """A whole grammar, in Lark or in GBNF of llama.cpp (EBNF of XGrammar). Raises DataError."""
    from llguidance.gbnf_to_lark import any_to_lark

    check_depth(text)
    try:
        return any_to_lark(text)
    except Exception as error:  # a parser of its own, which fails in many ways
        raise DataError("the grammar is neither Lark nor GBNF", got=_brief(str(error))) from error


def check_depth(text: str) -> None:
    """Raises DataError for text with more brackets in each other than a recursive parser may read."""
    depth, deepest = 0, 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise DataError("it is nested too deep", expected=f"at most {DEEPEST} brackets", got=deepest)


@final
class Constraint:
    """A compiled grammar.

    Attributes:
        lark: its text.
    """

    def __init__(self, lark: str, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self.lark, self._matcher = lark, matcher
        self.ends: frozenset[int] = frozenset(tokenizer.eos_tokens)

    def begin(self) -> ConstraintState:
        """The state of a new answer."""
        return ConstraintState(self._matcher.deep_copy(), self.ends)


@final
class ConstraintState:
    """Where an answer is in its grammar.

    Args:
        ends: end tokens by which the matcher says that an answer may end.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def allowed(self, size: int, ends: Collection[int], *, may_end: bool) -> Tensor:
        """Which tokens may come next, as booleans [size].

        Args:
            size: of the vocabulary.
            ends: tokens that end this answer, allowed where the grammar allows an end.
            may_end: whether the answer is long enough; where nothing but an end may come, it ends anyway.

        Raises:
            EngineError: the grammar has become too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed_V = torch.zeros(size, dtype=torch.bool)
        known = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=min(size, 8 * len(bits))).view(bool))
        allowed_V[: len(known)] = known
        own = torch.tensor(sorted(end for end in self._ends if end < size), dtype=torch.long)
        accepts = bool(allowed_V[own].any())
        allowed_V[own] = False
        if ends:
            allowed_V[torch.tensor(sorted(ends))] = accepts and (may_end or not allowed_V.any())
        return allowed_V

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed. Raises EngineError."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError("the answer cannot go on in its grammar", got=_brief(self._matcher.get_error()))


@final
class GrammarCompiler:
    """Compiles grammars for one model's tokenizer, and keeps the latest.

    Args:
        lm: its tokenizer must be a fast one.
    """

    def __init__(self, lm: FrozenLM) -> None:
        self._lm, self._lock = lm, threading.Lock()
        self._kept: OrderedDict[str, Constraint] = OrderedDict()
        self._tokenizer: LLTokenizer | None = None

    def compile(self, lark: str) -> Constraint:
        """A grammar ready for answers. Takes up to a second, the first time two; call it in a worker thread.

        Raises:
            DataError: llguidance refuses the grammar.
            MissingExtraError: llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise missing_extra("llguidance", "serve", where="structured output") from error
        with self._lock:
            if lark in self._kept:
                self._kept.move_to_end(lark)
                return self._kept[lark]
            _check_rules(lark)
            whole = lark if lark.lstrip().startswith("%llguidance") else _ALL_TOKENS + lark
            tokenizer = self._read_tokenizer()
            limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
            grammar = LLMatcher.grammar_from_lark(whole)
            matcher = _on_a_large_stack(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=limits))
            first = matcher.deep_copy()
            first.compute_bitmask()  # so that a grammar too complex from its first token is refused, too
            if first.is_error():
                raise DataError("it cannot be used", got=_brief(first.get_error()))
            self._kept[lark] = Constraint(whole, matcher, tokenizer)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[lark]

    def _read_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            from llguidance import hf

            tokenizer = self._lm.tokenizer
            try:
                size = max(self._lm.geometry.vocab, len(tokenizer))
                self._tokenizer = hf.from_tokenizer(tokenizer, n_vocab=size)  # type: ignore[arg-type]
            except ValueError as error:
                what = "structured output needs a fast tokenizer (tokenizer.json), which this model does not have"
                raise DataError(what, got=_brief(str(error))) from error
        return self._tokenizer


def _check_rules(lark: str) -> None:
    """Raises DataError for more rules and references than a recursive compiler may follow."""
    count = sum(":" in line for line in lark.splitlines()) + lark.count('ref"') + lark.count("\\u")
    if count > MOST_RULES:
        raise DataError("it has too many rules or references", expected=f"at most {MOST_RULES}", got=count)


def _on_a_large_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """What the work returns or raises, done in a thread with more stack than others have."""
    done: Future[LLMatcher] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised again where the result is asked for
            done.set_exception(error)

    before = threading.stack_size(_STACK_BYTES)
    try:
        threading.Thread(target=run).start()
    finally:
        threading.stack_size(before)
    return done.result()


def _brief(message: str) -> str:
    """The beginning of a message of llguidance, on one line, without the lines of the grammar around the place."""
    kept = [line for line in message.splitlines() if "|" not in line[:8]]
    return " ".join(" ".join(kept).split())[:_MESSAGE_CHARS]
