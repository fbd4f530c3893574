"""The tree of exceptions, and how a message is put together."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt import errors
from softprompt.errors import ConfigError, DataError, SoftpromptError, StoreError, missing_extra

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def test_a_message_says_what_where_expected_got_and_what_to_do() -> None:
    error = DataError("no such field", where="a.jsonl:3", expected="text", got="txet", hint="rename the field")
    assert str(error) == (
        "a.jsonl:3: no such field\n"
        "  expected: text\n"
        "  got:      txet\n"
        "  hint:     rename the field"
    )  # fmt: skip


def test_what_is_not_known_is_left_out() -> None:
    assert str(SoftpromptError("the disk is full")) == "the disk is full"
    assert str(SoftpromptError("too few rows", got=2)) == "too few rows\n  got:      2"


@pytest.mark.parametrize("nothing", [0, "", False, ()])
def test_a_fact_that_counts_as_false_is_still_a_fact(nothing: object) -> None:
    assert str(SoftpromptError("odd", where=nothing, got=nothing)) == f"{nothing}: odd\n  got:      {nothing}"


facts = st.none() | st.integers() | st.text(min_size=1, max_size=9)


@settings(deadline=None, max_examples=50)
@given(st.text(), facts, facts, facts, st.none() | st.text(min_size=1))
def test_fields_keep_what_was_given(what: str, where: object, expected: object, got: object, hint: str | None) -> None:
    error = StoreError(what, where=where, expected=expected, got=got, hint=hint)
    assert (error.what, error.where, error.expected, error.got, error.hint) == (what, where, expected, got, hint)
    assert what in str(error)
    for fact in (where, expected, got, hint):
        assert fact is None or str(fact) in str(error)


def test_an_error_survives_the_way_to_another_process() -> None:
    error = StoreError("damaged", where="prompts/a", expected=1, got=2, hint="restore it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is StoreError
    assert (str(again), again.where, again.hint) == (str(error), "prompts/a", "restore it")


def test_a_missing_extra_names_the_package_and_the_command() -> None:
    error = missing_extra("sacrebleu", "eval", where="--metric bleu")
    assert isinstance(error, ConfigError)
    assert str(error) == "--metric bleu: sacrebleu is not installed\n  hint:     pip install 'softprompt[eval]'"


def test_all_names_every_class_in_order() -> None:
    assert sorted(CLASSES) == list(errors.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_one_except_is_enough_and_each_says_when_it_comes(name: str) -> None:
    kind = CLASSES[name]
    assert issubclass(kind, SoftpromptError)
    assert "__doc__" in vars(kind)
    with pytest.raises(SoftpromptError, match=r"^a: b$"):
        raise kind("b", where="a")


def test_the_tree_on_top_of_the_module_is_the_tree() -> None:
    above: dict[int, str] = {}
    drawn: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"[ │├└─]*([A-Z]\w+Error)\b", line):
            column = found.start(1)
            parents = [name for at, name in sorted(above.items()) if at < column]
            above = {at: name for at, name in above.items() if at < column} | {column: found[1]}
            drawn[found[1]] = parents[-1] if parents else "Exception"
    assert drawn == {name: kind.__base__.__name__ for name, kind in CLASSES.items() if kind.__base__}
