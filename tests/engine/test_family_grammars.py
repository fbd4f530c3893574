"""Grammars on tokenizers of Llama 3's, Gemma's and Llama 2's type: exact masks, and whole answers that are valid."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
import torch
import transformers as tf

from softprompt.data.call_format import CallFormat
from softprompt.data.tokenizer import decode
from softprompt.engine.constraint import GrammarCompiler, json_rule, text_rule
from softprompt.inference.detokenizer import Detokenizer
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.server.tools import ToolFields, free_rules, tool_use
from tests.support.engines import job, running, said
from tests.support.family_tokenizers import FAMILIES, end_token, family_tokenizer, token_bytes
from tests.support.tiny import CONFIGS

TEXTS = (
    '{"ä b": "Grüße  👍🏻", "n": 1}',
    '{"ä b": "Gr", "n": null}',
    "the weather in Köln, naïve 🎉",
    "the  wea\n\nther",  # no ▁, which these tokenizers themselves read as a space
    "  x",
    " ",
    "▁▁x",
)
CONTROL = ("<|eot_id|><eos>", "</s>")  # letters, not these tokens
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "straße": {"enum": ["Grüße aus Köln", "👍🏻 🎉", "a  b", "\n"]},
        "free": {"type": "string", "maxLength": 6},
        "list": {"type": "array", "items": {"type": ["integer", "null"]}, "maxItems": 2},
    },
    "required": ["straße", "free", "list"],
    "additionalProperties": False,
}


@functools.cache
def lm_of(family: str) -> FrozenLM:
    """A random tiny model with more rows of logits than its tokenizer has tokens."""
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.vocab_size = len(family_tokenizer(family)) + 9
    config.max_position_embeddings = 512
    return FrozenLM(tf.AutoModelForCausalLM.from_config(config).eval(), family_tokenizer(family), f"tiny-{family}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_allows_the_tokens_that_go_on_as_a_text(family: str) -> None:
    """All of them, control tokens never; and an end exactly where a text ends."""
    lm, draw = lm_of(family), random.Random(1)
    texts = TEXTS + CONTROL
    constraint, size = GrammarCompiler(lm).compile(f"start: {text_rule(texts)}"), lm.geometry.vocab
    end, language = end_token(family), [text.encode() for text in texts]
    written_by = {token: token_bytes(token, family) for token in range(len(family_tokenizer(family)))}
    ended = set[bytes]()
    for walk in range(24):
        state, so_far, ids = constraint.begin(), b"", list[int]()
        wanted = language[walk % len(language)]
        while so_far not in language or any(text.startswith(so_far) and text != so_far for text in language):
            going = [text for text in language if text.startswith(so_far)]
            following = [text[len(so_far) :] for text in going]
            right = {t for t, data in written_by.items() if data and any(text.startswith(data) for text in following)}
            right |= {end} if so_far in language else set()
            allowed = set(state.allowed(size, {end}, may_end=True).nonzero().flatten().tolist())
            assert allowed and allowed <= right, so_far
            assert {written_by[token] for token in allowed} == {written_by[token] for token in right}, so_far
            own = [t for t in sorted(allowed - {end}) if wanted.startswith(so_far + (written_by[t] or b""))]
            if not own:
                break
            ids.append(draw.choice(own))
            state.accept(ids[-1])
            so_far += written_by[ids[-1]] or b""
        assert state.allowed(size, {end}, may_end=True)[end]
        ended.add(so_far)
        shown = Detokenizer(lm.tokenizer, ())
        for token in ids:
            shown.append(token)
        assert shown.take(end=True).lstrip(" ") == so_far.decode().lstrip(" ")
    assert ended == set(language)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_the_engine_are_of_their_schema(family: str) -> None:
    """Beside a free row; the random model writes any tokens that it may, bytes of characters too."""
    lm, compiler = lm_of(family), GrammarCompiler(lm_of(family))
    end = end_token(family)
    constraint = compiler.compile(f"start: {json_rule(SCHEMA)}")
    blanks = [t for t in range(len(family_tokenizer(family))) if (data := token_bytes(t, family)) and not data.strip()]
    bias = tuple((token, -20.0) for token in blanks)

    async def run() -> list[str]:
        async with running(lm, mixed=False) as engine:
            jobs = [
                replace(
                    job(str(seed), ids=[5, 6, 7], sampling=Sampling(150, 1.0, seed=seed), ends=(end,)),
                    constraint=constraint if seed else None,
                    bias=bias,
                )
                for seed in range(13)
            ]
            answers = await asyncio.gather(*(said(engine, one) for one in jobs))
        whole = [answer for answer in answers[1:] if answer[-1].finish == "stop"]
        return [decode([token.id for token in answer[:-1]], lm.tokenizer) for answer in whole]

    texts = asyncio.run(run())
    assert len(texts) >= 8
    for text in texts:
        jsonschema_rs.validate(SCHEMA, json.loads(text))
    assert len({json.loads(text)["straße"] for text in texts}) > 2
    assert any(not json.loads(text)["free"].isascii() for text in texts)


def test_a_control_token_begins_a_call() -> None:
    """As Llama 3.1 marks some: the token alone, not its letters, and then a call of a function that is defined."""
    lm = lm_of("llama3")
    fields = {"tools": [{"type": "function", "function": {"name": "wetter", "strict": True}}]}
    tools = tool_use(ToolFields.model_validate(fields))
    assert tools is not None
    rules = free_rules(tools, CallFormat("<|python_tag|>", "", "", "parameters"), lm.tokenizer)
    end = end_token("llama3")
    (mark,) = lm.encode("<|python_tag|>")
    letters = [token for part in ("<|python", "_tag|>") for token in lm.encode(part)]
    state = GrammarCompiler(lm).compile(f"start: free\n{rules}").begin()
    for token in [*lm.encode("Grüße 👍"), *letters, mark, *lm.encode('{"name": "wetter", "parameters": {}}')]:
        allowed = state.allowed(lm.geometry.vocab, {end}, may_end=True)
        assert allowed[token]
        state.accept(token)
    assert state.allowed(lm.geometry.vocab, {end}, may_end=True)[end]
    state = GrammarCompiler(lm).compile(f"start: free\n{rules}").begin()
    for token in [mark, *lm.encode('{"name": "')]:
        state.accept(token)
    after = state.allowed(lm.geometry.vocab, {end}, may_end=True).nonzero().flatten().tolist()
    assert {(token_bytes(token, "llama3") or b"-")[:1] for token in after} == {b"w"}
