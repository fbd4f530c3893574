"""Answers within a grammar: beside free rows, by the library's own matcher tried token by token, always whole."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softprompt.engine.base import Job, Token
from softprompt.engine.constraint import (
    KEPT,
    GrammarCompiler,
    check_depth,
    json_rule,
    read_grammar,
    regex_rule,
    text_rule,
)
from softprompt.errors import DataError
from softprompt.inference.sampling import Sampling
from tests.support.cases import mixed_prefixes
from tests.support.engines import END, NAMES, job, running, said
from tests.support.server_oracle import OracleEngine
from tests.support.tiny import tiny_lm

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMARS = (
    f"start: {json_rule(PERSON)}",
    f"start: {json_rule({'enum': ['red', 'green', None]})}",
    f"start: {regex_rule('[0-9]{3}-[a-f]+')}",
    f"start: {text_rule(['yes', 'no', 'é, maybe'])}",
    read_grammar('root ::= "a" root | "b"'),
)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_lm("llama"))


def text_of(ids: list[int]) -> str:
    text = tiny_lm("llama").tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def test_rows_with_and_without_a_grammar_share_batches(compiler: GrammarCompiler) -> None:
    """Every grammar, soft prompt and knob: what the plainest engine says to each alone; free rows are left alone."""
    lm = tiny_lm("llama")
    jobs = [
        replace(
            job(f"{i} {grammar}", NAMES[i % 4] if i % 5 else None, sampling=Sampling(40, i % 3 / 2, seed=i)),
            constraint=None if grammar < 0 else compiler.compile(GRAMMARS[grammar]),
            min_tokens=3 * (i % 2),
            logprobs=2 if i % 3 else None,
        )
        for i in range(6)
        for grammar in range(-1, len(GRAMMARS))
    ]

    async def run() -> None:
        oracle = OracleEngine(lm)
        async with running(lm) as engine:
            for name, prefix in zip(NAMES, mixed_prefixes(lm), strict=True):
                await oracle.load(name, prefix)
            answers = await asyncio.gather(*(said(engine, one) for one in jobs))
        for one, answer in zip(jobs, answers, strict=True):
            with torch.no_grad():
                wanted = await said(oracle, one)
            assert [(token.id, token.finish) for token in answer] == [(token.id, token.finish) for token in wanted]
            for token, other in zip(answer, wanted, strict=True):
                if token.finish != "stop":
                    assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
                    assert all(value > -torch.inf for _, value in token.likeliest)

    asyncio.run(run())


def test_an_answer_that_ended_is_whole(compiler: GrammarCompiler) -> None:
    """And one that was cut says so."""
    checks: list[Any] = [
        lambda text: json.loads(text).keys() == {"name", "age"},
        lambda text: json.loads(text) in ("red", "green", None),
        lambda text: re.fullmatch("[0-9]{3}-[a-f]+", text),
        lambda text: text in ("yes", "no", "é, maybe"),
        lambda text: re.fullmatch("a*b", text),
    ]

    async def run() -> list[tuple[Job, list[Token]]]:
        async with running(tiny_lm("llama")) as engine:
            jobs = [
                replace(
                    job(f"{i} {seed}", sampling=Sampling(most, 1.0, seed=seed)), constraint=compiler.compile(grammar)
                )
                for i, grammar in enumerate(GRAMMARS)
                for seed, most in enumerate((200, 200, 200, 2))
            ]
            answers = await asyncio.gather(*(said(engine, one) for one in jobs))
            return list(zip(jobs, answers, strict=True))

    finishes = set()
    for one, answer in asyncio.run(run()):
        finishes.add(answer[-1].finish)
        if answer[-1].finish == "stop":
            assert checks[int(one.id[0])](text_of([token.id for token in answer[:-1]]))
    assert finishes == {"stop", "length"}


def test_end_tokens_of_the_job_end_where_the_grammar_may(compiler: GrammarCompiler) -> None:
    """Not the tokenizer's where the job has others; the tokenizer's where it has none; not before `min_tokens`."""
    constraint = compiler.compile('start: "a"+')

    def ids(ends: tuple[int, ...], least: int = 0) -> list[int]:
        async def run() -> list[int]:
            async with running(tiny_lm("llama"), mixed=False) as engine:
                bias = ((END, 200.0), (7, 100.0))
                one: Job = replace(job("a", sampling=Sampling(6), ends=ends), constraint=constraint, bias=bias)
                return [token.id for token in await said(engine, replace(one, min_tokens=least))]

        return asyncio.run(run())

    (a,) = tiny_lm("llama").encode("a")
    assert ids((7,)) == [a, 7]
    assert ids(()) == [a, END]
    assert ids((7, END), 4) == [a] * 4 + [END]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"if": {}, "then": {}}, 'Unimplemented keys: ["if", "then"]'),
        ({"$ref": "http://x.invalid/a"}, "does not fetch"),
        ({"type": "nope"}, "Invalid type: nope"),
        (False, "Unsatisfiable"),
        ({"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}}, "too many"),
    ],
)
def test_a_schema_that_cannot_be_kept(schema: object, words: str, compiler: GrammarCompiler) -> None:
    """A chain of references would end the process."""
    with pytest.raises(DataError) as error:
        compiler.compile(f"start: {json_rule(schema)}")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["(" * 20_000, "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(3000)), "start: (a", 'root ::= "a" ('],
)
def test_a_grammar_that_cannot_be_read(text: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(DataError):
        compiler.compile(read_grammar(text))
    with pytest.raises(DataError):
        compiler.compile(f"start: {regex_rule('(' + text[:50])}")


def test_as_many_rules_as_are_allowed_compile(compiler: GrammarCompiler) -> None:
    compiler.compile("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(497)) + '\nr497: "a"')
    check_depth("(" * 64 + ")" * 64)


def test_grammars_are_kept_up_to_a_number() -> None:
    own = GrammarCompiler(tiny_lm("llama"))
    first = own.compile('start: "0"')
    for i in range(1, KEPT):
        own.compile(f'start: "{i}"')
    assert own.compile('start: "0"') is first
    own.compile(f'start: "{KEPT}"')
    assert own.compile('start: "0"') is first, "it was used"
    own.compile('start: "1"')
    assert len(own._kept) == KEPT


@settings(max_examples=20, deadline=None)
@example("a\x7f\x00\ufffe")
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_text_is_a_choice(text: str) -> None:
    """Quotes, line ends, and what looks like a control token are text."""
    compiler = GrammarCompiler(tiny_lm("llama"))
    state = compiler.compile(f"start: {text_rule([text])}").begin()
    for token in tiny_lm("llama").encode(text):
        allowed = state.allowed(300, {END}, may_end=True)
        assert allowed[token]
        state.accept(token)
    assert state.allowed(300, {END}, may_end=True).nonzero().flatten().tolist() == [END]
