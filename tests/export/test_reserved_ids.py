"""Token ids that stand for virtual tokens."""

from __future__ import annotations

import pytest

from softprompt.errors import UnsupportedModelError
from softprompt.export.reserved_ids import choose_reserved_ids
from tests.support.tiny import tiny_lm


def test_too_few_ids_are_refused_with_what_there_is() -> None:
    lm = tiny_lm()
    with pytest.raises(UnsupportedModelError, match="too few ids"):
        choose_reserved_ids(lm, lm.geometry.vocab)


def test_ids_are_ones_that_the_tokenizer_does_not_produce_where_there_are_some() -> None:
    lm = tiny_lm()
    chosen = choose_reserved_ids(lm, 3)
    assert len(set(chosen.ids)) == 3 and max(chosen.ids) < lm.geometry.vocab
    if chosen.kind == "padding":
        assert not set(chosen.ids) & set(lm.tokenizer.get_vocab().values())
