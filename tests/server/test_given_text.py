"""`echo`, `max_tokens: 0` and `prompt_logprobs`: a request's own text, with what the plain forward pass says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from torch import Tensor

from softprompt.data.template import Template
from softprompt.data.tokenizer import bos_ids
from softprompt.formatting.formatted_prompt import from_card, layout_ids
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from tests.laws.oracle import given_logprobs
from tests.support.live_server import BASE, USER, Live, live, save_all, save_prompt
from tests.support.tiny import tiny_lm

BARE = {"bare": "embedding", "bare-kv": "kv"}
TEXT = "Where is it?"
LM = tiny_lm("llama", bos=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also soft prompts whose template leaves a text as it is."""
    folder = save_all(tmp_path_factory.mktemp("given") / "prompts")
    for seed, (name, form) in enumerate(BARE.items(), 20):
        save_prompt(folder / name, form, Template("text", "{text}"), seed)
    return folder


@pytest.fixture(scope="module")
def server(prompts: Path) -> Iterator[Live]:
    with live(prompts) as server:
        yield server
        server.idle()


def prefix_of(name: str, prompts: Path) -> Prefix:
    if name == BASE:
        return Prefix()
    prompt, card = store.load(prompts / name, LM.geometry)
    return Prefix(prompt, *layout_ids(LM, from_card(prompt, card).layout))


def ask(server: Live, **body: Any) -> Any:
    reply = server.ask("POST", "/v1/completions", {"temperature": 0} | body)
    assert reply.status == 200, reply.raw
    return reply.json["choices"]


def agree(found: Sequence[float | None], wanted: Sequence[tuple[int, Tensor | None]]) -> None:
    assert [value is None for value in found] == [before is None for _, before in wanted]
    for value, (token, before) in zip(found, wanted, strict=True):
        assert before is None or value == pytest.approx(float(before[token]), abs=1e-4)


@pytest.mark.parametrize("model", [BASE, *BARE])
def test_an_echo_with_logprobs(model: str, server: Live, prompts: Path) -> None:
    """Of the text as it was sent; BOS and virtual tokens are conditions only. The answer follows as without echo."""
    ids, prefix = LM.encode(TEXT), prefix_of(model, prompts)
    (alone,) = ask(server, model=model, prompt=TEXT, max_tokens=4, logprobs=2)
    (choice,) = ask(server, model=model, prompt=TEXT, max_tokens=4, logprobs=2, echo=True)
    (nothing,) = ask(server, model=model, prompt=TEXT, max_tokens=0, logprobs=2, echo=True)
    assert choice["text"] == TEXT + alone["text"] and nothing["text"] == TEXT
    found = choice["logprobs"]
    for field in ("tokens", "token_logprobs", "top_logprobs"):
        assert found[field] == nothing["logprobs"][field] + alone["logprobs"][field]
    assert found["text_offset"] == [*range(len(TEXT)), *(len(TEXT) + at for at in alone["logprobs"]["text_offset"])]
    assert "".join(nothing["logprobs"]["tokens"]) == TEXT and nothing["finish_reason"] == "length"
    begin = bos_ids(LM.tokenizer) if model == BASE else []
    agree(nothing["logprobs"]["token_logprobs"], given_logprobs(LM, prefix, [*begin, *ids])[-len(ids) :])
    for best, token, value in zip(
        *(nothing["logprobs"][f] for f in ("top_logprobs", "tokens", "token_logprobs")), strict=True
    ):
        assert (best is None) == (value is None) and (best is None or best[token] == value)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("model", [BASE, *BARE])
def test_token_ids(model: str, bos: bool, server: Live, prompts: Path) -> None:
    """As they are; a BOS that the prefix has is not read twice, and is reported without a log-probability."""
    begin = bos_ids(LM.tokenizer) if bos else []
    ids, prefix = LM.encode(TEXT), prefix_of(model, prompts)
    (choice,) = ask(server, model=model, prompt=[*begin, *ids], max_tokens=0, logprobs=1, echo=True)
    found = choice["logprobs"]["token_logprobs"]
    assert choice["text"] == "<s>" * bos + TEXT and len(found) == bos + len(ids)
    if model == BASE:
        agree(found, given_logprobs(LM, prefix, [*begin, *ids]))
    elif model == "bare":
        agree(found, given_logprobs(LM, prefix, ids)[not bos :])
    else:
        agree(found[bos + 1 :], given_logprobs(LM, prefix, ids)[1:])
        assert not bos or found[0] is None
        after = given_logprobs(LM, prefix, [*begin, *ids[:1]])[1:] if bos else [(0, None)]
        agree(found[bos : bos + 1], after)


def test_ids_with_the_template(server: Live, prompts: Path) -> None:
    """The whole text as ids is what the text alone is; other ids are refused with the way out."""
    whole = LM.encode(f"Review: {TEXT}\nSentiment:")
    for logprobs in (None, 2):
        (by_ids,) = ask(server, model="review", prompt=whole, max_tokens=5, logprobs=logprobs)
        (by_text,) = ask(server, model="review", prompt=TEXT, max_tokens=5, logprobs=logprobs)
        assert by_ids == by_text
    (echo,) = ask(server, model="review", prompt=[*whole, *LM.encode(" bad")], max_tokens=0, echo=True, logprobs=0)
    agree(
        echo["logprobs"]["token_logprobs"],
        given_logprobs(LM, prefix_of("review", prompts), [*whole, *LM.encode(" bad")][7:]),
    )
    for model, ids, words in [
        ("review", LM.encode(TEXT), "Review:"),
        ("review", LM.encode(f"Review: {TEXT}"), "Sentiment:"),
        ("talk", LM.encode(TEXT), "assistant"),
    ]:
        reply = server.ask("POST", "/v1/completions", {"model": model, "prompt": ids})
        message = reply.json["error"]["message"]
        assert reply.status == 400 and words in message and "tokenized_requests=False" in message
    reply = server.ask("POST", "/v1/completions", {"model": "review", "prompt": TEXT, "echo": True, "logprobs": 1})
    assert reply.status == 400 and "token ids of the whole text" in reply.json["error"]["message"]
    (plain,) = ask(server, model="review", prompt=TEXT, max_tokens=5)
    (echo,) = ask(server, model="review", prompt=TEXT, max_tokens=5, echo=True)
    assert echo["text"] == TEXT + plain["text"]


@pytest.mark.parametrize("model", [BASE, "review", "question", "talk", "kind"])
def test_prompt_logprobs(model: str, server: Live, prompts: Path) -> None:
    """Of every token that `usage` counts, the template's words included, by id with ranks."""
    chat = model in ("talk", "kind")
    path = "/v1/chat/completions" if chat else "/v1/completions"
    text: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}]} if chat else {"prompt": TEXT}
    reply = server.ask("POST", path, {"model": model, "max_tokens": 1, "prompt_logprobs": 2, **text})
    assert reply.status == 200, reply.raw
    found = (reply.json if chat else reply.json["choices"][0])["prompt_logprobs"]
    assert len(found) == reply.json["usage"]["prompt_tokens"]
    wanted = given_logprobs(LM, prefix_of(model, prompts), server.engine.seen[-1].ids)
    agree([row and row[str(token)]["logprob"] for row, (token, _) in zip(found, wanted, strict=True)], wanted)
    for row, (token, before) in zip(found, wanted, strict=True):
        assert (row is None) == (before is None)
        if row is not None and before is not None:
            assert {1, 2} <= {other["rank"] for other in row.values()} and len(row) <= 3
            assert next(iter(row)) == str(token)
            best = str(int(before.argmax()))
            assert row[best] == {
                "logprob": row[best]["logprob"],
                "rank": 1,
                "decoded_token": LM.tokenizer.decode(int(best)),
            }


def test_streams_and_lists(server: Live) -> None:
    """OpenAI's client: an echo is the beginning of a stream, too, of each of several answers to several texts."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as ai:
        asked: dict[str, Any] = {"model": "bare", "prompt": [TEXT, "No"], "n": 2, "seed": 1, "max_tokens": 3}
        asked |= {"echo": True, "logprobs": 1}
        whole = ai.completions.create(**asked)
        texts, tokens = [""] * 4, [list[str]() for _ in range(4)]
        for chunk in ai.completions.create(stream=True, **asked):
            (choice,) = chunk.choices
            texts[choice.index] += choice.text
            tokens[choice.index] += (choice.logprobs and choice.logprobs.tokens) or []
    assert texts == [choice.text for choice in whole.choices]
    assert [text[: len(TEXT)] for text in texts[:2]] == [TEXT] * 2 and texts[2][:2] == "No"
    assert tokens == [choice.logprobs and choice.logprobs.tokens for choice in whole.choices]
    assert whole.usage is not None and whole.usage.completion_tokens <= 12
    reply = server.ask("POST", "/v1/completions", {"model": BASE, "prompt": "A", "stream": True, "prompt_logprobs": 1})
    assert reply.code == "invalid_value" and reply.json["error"]["param"] == "prompt_logprobs"
    reply = server.ask("POST", "/v1/completions", {"model": BASE, "prompt": "A", "prompt_logprobs": 21})
    assert reply.code == "over_limit"
