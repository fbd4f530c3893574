"""Every section on every kind of model: a reading, or the reason why there is none."""

from __future__ import annotations

import pytest

from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.inspection.inspection import READINGS, inspect
from softprompt.inspection.verbalize import verbalize
from softprompt.models.frozen_lm import FrozenLM
from tests.inspection.planted import ROWS, formatted_of
from tests.support.cases import random_prompt
from tests.support.odd_models import odd_lm
from tests.support.tiny import FAMILIES, tiny_lm, tiny_seq2seq

ODD = ("mamba2", "granite4", "lfm2", "bloom", "llama4", "diffllama", "cohere", "gemma4", "gptj", "rwkv")
ALWAYS = {"behavior", "drift", "worth", "nearest"}


def check(lm: FrozenLM, formatted: FormattedPrompt, expected: set[str]) -> None:
    found = inspect(lm, formatted, ROWS, only=[name for name in READINGS if name not in ("leak", "likeness")])
    read = {name for name in READINGS if getattr(found, name) is not None}
    assert read | set(found.left_out) == set(READINGS) - {"leak", "likeness"} and read >= expected
    assert all(reason and "Error" not in reason for reason in found.left_out.values())
    assert set(found.controls) == {"random"} and found.effect > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_attention_is_read_whole(family: str) -> None:
    lm = tiny_lm(family)
    expected = ALWAYS | {"layers", "heads", "attention", "lens"}
    check(lm, formatted_of(lm, random_prompt(lm, "embedding", 3, 1)), expected)


@pytest.mark.parametrize("family", ODD)
def test_other_kinds_say_what_cannot_be_read(family: str) -> None:
    lm = odd_lm(family)
    check(lm, formatted_of(lm, random_prompt(lm, "embedding", 3, 1)), ALWAYS)


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_encoder_decoders(form: str) -> None:
    lm = tiny_seq2seq("t5")
    template, prompt = Template("seq2seq", "Q: {text}\nA:"), random_prompt(lm, form, 3, 1)
    formatted = FormattedPrompt(prompt, template, layout_for(lm, template, form))
    check(lm, formatted, {"behavior", "drift"})
    assert verbalize(lm, formatted, [*ROWS, ROWS[0]]).rows == 4
