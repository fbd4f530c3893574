"""Rows that repeat a text: together they are the text, and each fits."""

from __future__ import annotations

import pytest

from softprompt.data.template import VIRTUAL, Template
from softprompt.distillation.repetition import NAMED_WORDS, WHOLE_REQUEST, repetitions
from tests.support.tiny import tiny_tokenizer

TEXT = """# A town

The town has three gates. The eastern one was built in 1512 by Anna Lund, and burned down twice!
Nobody knows why. Its walls are of red stone.

Trade came late…   Fish and salt were sold on Mondays, cloth on Fridays, and nothing on Sundays for two centuries."""
CHAT = Template("chat", "", VIRTUAL)


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize("longest", [10_000, 120, 70])
def test_every_word_is_asked_for_once(longest: int) -> None:
    tokenizer = tiny_tokenizer()
    rows = repetitions(3, TEXT, longest, CHAT, tokenizer)
    found = list[str]()
    for i, row in enumerate(rows):
        (turn,) = row.record.messages
        answer = str(tokenizer.decode(list(row.answer[:-1])))
        assert row.chunk == 3
        if i == 0:
            assert turn.content == WHOLE_REQUEST
        opening = "" if i == 0 else turn.content.partition(": ")[2]
        assert not opening or len(words(opening)) == NAMED_WORDS
        found += [*words(opening), *words(answer)]
    assert found == words(TEXT)
    assert (len(rows) == 1) == (longest == 10_000)


def test_a_sentence_that_is_too_long_is_split_between_words() -> None:
    tokenizer = tiny_tokenizer()
    rows = repetitions(0, "word " * 100, 64, CHAT, tokenizer)
    assert len(rows) > 3 and max(len(row.answer) for row in rows) <= 65
    asked = sum(len(words(row.record.messages[0].content.partition(": ")[2])) for row in rows[1:])
    assert asked + sum(str(tokenizer.decode(list(row.answer))).count("word") for row in rows) == 100
