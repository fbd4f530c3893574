"""What vLLM says after a compiled prefix is what `generate` says, and what cannot be right fails."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]

from softprompt.models.frozen_lm import FrozenLM
from softprompt.vllm.prefix_file import compile_prefix, write_prefix
from tests.vllm_real.shelf import NEW, Shelf, check_all, params, running, said
from tests.vllm_real.tiny import BLOCK, generated


@pytest.fixture(scope="module")
def llm(base: Path, shelf: Shelf) -> Iterator[LLM]:
    """Texts are read in parts of 40 tokens: a part ends within a prefix, a block, a text."""
    with running(base, shelf, max_num_batched_tokens=40) as llm:
        yield llm


def test_the_prefixes_matter(shelf: Shelf, lm: FrozenLM) -> None:
    """Else equality would prove nothing."""
    for i, wanted in enumerate(shelf.wanted):
        if shelf.names[i]:
            assert wanted != generated(lm, shelf.prefixes[2], shelf.texts[i], NEW)


def test_a_mixed_batch_then_from_the_prefix_cache(llm: LLM, shelf: Shelf) -> None:
    check_all(llm, shelf)
    cached = [o.num_cached_tokens for o in check_all(llm, shelf)]
    assert all(n % BLOCK == 0 or n >= kv.shape[2] for n, kv in zip(cached, shelf.kvs, strict=True))
    assert cached[5] >= 3 * BLOCK


def test_repetition_penalty_counts_no_placeholder_that_is_in_the_text(llm: LLM, shelf: Shelf) -> None:
    """What `engine` relies on: with the text's first token as placeholder the penalty sees the text alone."""
    i, penalty = 1, {"repetition_penalty": 1.5, "max_tokens": 8}
    rows = [shelf.ids(i, placeholder) for placeholder in (shelf.texts[i][0], 299)]
    first, never = said(llm, rows, [params(shelf.names[i], **penalty)] * 2)
    assert list(first.outputs[0].token_ids) == list(never.outputs[0].token_ids), "299 is a token that no answer has"


@pytest.mark.parametrize("case", ["unknown", "no id", "too short", "too short and cached", "prompt log-probabilities"])
def test_a_request_that_cannot_be_right_fails_alone(llm: LLM, shelf: Shelf, case: str) -> None:
    """And the others in its batch are answered, the engine lives."""
    name, ids, more = shelf.names[5], shelf.ids(5), dict[str, Any]()
    if case == "unknown":
        name = "0" * 32
    elif case == "no id":
        name = "../" + str(name)
    elif case == "too short":
        ids = ids[: 3 * BLOCK]
    elif case == "too short and cached":
        name, ids = shelf.names[4], shelf.ids(4)[: BLOCK + 1]
    else:
        more = {"prompt_logprobs": 1}
    rows, sampling = [ids, shelf.ids(1)], [params(name, **more), params(shelf.names[1])]
    bad, good = said(llm, rows, sampling)
    assert bad.outputs[0].finish_reason == "error"
    assert list(good.outputs[0].token_ids) == shelf.wanted[1]
    check_all(llm, shelf)


def test_another_prompt_of_the_same_length_meets_no_cached_block(llm: LLM, shelf: Shelf, lm: FrozenLM) -> None:
    """The same placeholders and the same text, other keys and values."""
    name = write_prefix(shelf.folder, -compile_prefix(lm, shelf.prefixes[5]))
    (output,) = said(llm, [shelf.ids(5)], [params(name)])
    assert list(output.outputs[0].token_ids) != shelf.wanted[5]
    (plain,) = said(llm, [shelf.ids(5)], [params(None)])
    assert list(plain.outputs[0].token_ids) != shelf.wanted[5], "placeholders are plain text without a soft prompt"
    check_all(llm, shelf)
