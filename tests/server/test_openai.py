"""OpenAI's own client is content: sync, async, streaming, logprobs, several answers, lists, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from softprompt.server.responses import Usage
from tests.support.live_server import ADMIN, BASE, TEMPLATES, USER, Live

SAY = [{"role": "user", "content": "Hi there"}]


def client(server: Live, key: str = USER) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


def test_a_conversation(server: Live) -> None:
    with client(server) as ai:
        made = ai.chat.completions.create(model="talk", messages=SAY, temperature=0, max_completion_tokens=9)  # type: ignore[arg-type]
        again = ai.chat.completions.create(model="talk", messages=SAY, temperature=0, max_completion_tokens=9)  # type: ignore[arg-type]
    assert made.object == "chat.completion" and made.model == "talk"
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None and made.usage.completion_tokens == 9
    assert made.usage.total_tokens == made.usage.prompt_tokens + 9
    assert made.choices == again.choices and made.id != again.id
    assert made.system_fingerprint == again.system_fingerprint


def test_an_answer_is_sent_back_as_it_came(server: Live) -> None:
    """As clients do it in a conversation."""
    messages: list[Any] = list(SAY)
    with client(server) as ai:
        for turn in range(3):
            made = ai.chat.completions.create(model="talk", messages=messages, temperature=0, max_tokens=5)
            assert len(server.engine.seen) == turn + 1
            messages += [made.choices[0].message, {"role": "user", "content": "And?"}]
        made = ai.chat.completions.create(model="talk", messages=messages, temperature=0, max_tokens=5)
        dumped = [made.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
        assert ai.chat.completions.create(model="talk", messages=[*SAY, *dumped], max_tokens=1)  # type: ignore[list-item]


def test_a_stream_is_the_whole(server: Live) -> None:
    with client(server) as ai:
        whole = ai.chat.completions.create(model="asked", messages=SAY, n=3, seed=4, max_tokens=9)  # type: ignore[arg-type]
        stream = ai.chat.completions.create(
            model="asked",
            messages=SAY,  # type: ignore[arg-type]
            n=3,
            seed=4,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    texts, ends = [""] * 3, [None] * 3
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]  # type: ignore[assignment]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_at_a_time(server: Live) -> None:
    """Async, a mix of models; each gets what it gets alone."""

    async def ask(ai: openai.AsyncOpenAI, name: str) -> str:
        made = await ai.completions.create(model=name, prompt=text(name), temperature=0, max_tokens=7)
        return made.choices[0].text

    def text(name: str) -> str:
        return '{"text": "A", "text2": "B"}' if name == "pair" else "A"

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as ai:
            return await asyncio.gather(*(ask(ai, name) for name in [*TEMPLATES, BASE] * 4))

    together = asyncio.run(all_of_them())
    with client(server) as ai:
        alone = [
            ai.completions.create(model=name, prompt=text(name), temperature=0, max_tokens=7).choices[0].text
            for name in [*TEMPLATES, BASE]
        ]
    assert together == alone * 4
    assert len(set(alone)) == len(alone)
    assert server.service.prompt_cache.evictions > 0, "seven prompts in four places"


def test_an_async_stream(server: Live) -> None:
    async def stream() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=USER) as ai:
            chunks = await ai.completions.create(model="review", prompt="A", temperature=0, max_tokens=9, stream=True)
            return "".join([chunk.choices[0].text async for chunk in chunks])

    with client(server) as ai:
        whole = ai.completions.create(model="review", prompt="A", temperature=0, max_tokens=9)
    assert asyncio.run(stream()) == whole.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_conversation(stream: bool, server: Live) -> None:
    """Of every token, the chosen one among the likeliest when greedy, and the text is theirs."""
    asked = {"model": "talk", "messages": SAY, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    reply = server.ask("POST", "/v1/chat/completions", asked | {"stream": stream})
    if stream:
        found = [event["choices"][0]["logprobs"] for event in reply.events]
        content = [token for part in found if part for token in part["content"]]
    else:
        content = reply.json["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for token in content:
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}
        values = [other["logprob"] for other in token["top_logprobs"]]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] <= 0
        assert token["token"].startswith("\\x") or token["bytes"] == list(token["token"].encode())
    reply = server.ask("POST", "/v1/chat/completions", asked | {"top_logprobs": 0})
    assert all(token["top_logprobs"] == [] for token in reply.json["choices"][0]["logprobs"]["content"])


def test_logprobs_of_a_completion(server: Live) -> None:
    with client(server) as ai:
        made = ai.completions.create(model="question", prompt="A", temperature=0, max_tokens=8, logprobs=2)
    found = made.choices[0].logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 8
    assert all(top[token] == max(top.values()) for top, token in zip(found.top_logprobs, found.tokens, strict=True))
    whole = [i for i, token in enumerate(found.tokens) if token.isprintable() and "\ufffd" not in token]
    text = made.choices[0].text
    for i in whole:
        if "\ufffd" not in text:
            assert text[found.text_offset[i] :].startswith(found.tokens[i])


def test_logprobs_end_with_the_stop_string(server: Live) -> None:
    """Tokens after it are not reported, and those before it all are; streamed or not."""
    asked = {"model": "talk", "messages": SAY, "temperature": 0, "max_tokens": 40, "logprobs": True}
    text = server.ask("POST", "/v1/chat/completions", asked).json["choices"][0]["message"]["content"]
    for stream in (False, True):
        reply = server.ask("POST", "/v1/chat/completions", asked | {"stop": text[5:7], "stream": stream})
        choices = [event["choices"][0] for event in reply.events] if stream else reply.json["choices"]
        content = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
        cut = text[: text.index(text[5:7])]
        joined = b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace")
        assert len(content) < 40
        assert joined.startswith(cut) or "\ufffd" in cut


def test_models(server: Live) -> None:
    """The base model, and what fits it: not the damaged one's tensors, for a list reads cards alone."""
    with client(server) as ai:
        rows = {row.id: row.model_dump() for row in ai.models.list()}
        one = ai.models.retrieve("review").model_dump()
        by_full_name = ai.models.retrieve(f"{BASE}:review").model_dump()
    assert list(rows) == [BASE, *sorted([*TEMPLATES, "torn"])]
    assert (rows[BASE]["parent"], rows[BASE]["root"]) == (None, BASE)
    assert one == by_full_name == rows["review"]
    assert (one["parent"], one["root"], one["owned_by"], one["max_model_len"]) == (BASE, "review", "softprompt", 256)
    assert (one["form"], one["n_tokens"], one["fields"]) == ("kv", 5, ["text"])
    assert (rows[BASE]["form"], rows[BASE]["n_tokens"], rows[BASE]["fields"]) == ("base", 0, [])
    assert rows["pair"]["fields"] == ["text", "text2"]
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, their heads, width, bytes
    assert {row["kv_bytes_per_token"] for row in rows.values()} == {per_token}


def test_errors_have_the_clients_types(server: Live) -> None:
    with client(server) as ai:
        with pytest.raises(openai.NotFoundError, match="Did you mean 'review'"):
            ai.completions.create(model="reviw", prompt="A")
        with pytest.raises(openai.BadRequestError) as caught:
            ai.completions.create(model="review", prompt="A", temperature=9)
        assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")
        with pytest.raises(openai.BadRequestError, match="another base model"):
            ai.completions.create(model="stranger", prompt="A")
        with pytest.raises(openai.BadRequestError, match="cannot be loaded"):
            ai.completions.create(model="torn", prompt="A")
    with client(server, "a-key-that-no-one-has") as ai, pytest.raises(openai.AuthenticationError):
        ai.models.list()
    with client(server, ADMIN) as ai:
        assert ai.models.list().data


def test_an_error_in_the_middle_of_a_stream(server: Live) -> None:
    """The client raises it; before the first token it has its own status."""
    server.engine.pace = 0.02
    with client(server) as ai:
        chunks = ai.completions.create(model="review", prompt="A", temperature=0, max_tokens=99, stream=True)
        next(chunks)
        server.engine.broken = "boom at 0x7f00"
        with pytest.raises(openai.APIError, match="could not run") as caught:
            list(chunks)
        assert "boom" not in str(caught.value.body)
        with pytest.raises(openai.InternalServerError, match="could not run") as refused:
            ai.completions.create(model="review", prompt="A", stream=True)
        assert "secret" not in str(refused.value.body) and "boom" not in str(refused.value.body)


def test_usage_counts_no_virtual_token(server: Live) -> None:
    """Two prompts of one template and different lengths count alike."""
    usages = []
    for name in ("talk", BASE):
        body = {"model": name, "messages": SAY, "temperature": 0, "max_tokens": 1}
        usages.append(server.ask("POST", "/v1/chat/completions", body).json["usage"])
    bos = 1
    assert usages[0] == Usage(
        prompt_tokens=usages[1]["prompt_tokens"] - bos,
        completion_tokens=1,
        total_tokens=usages[1]["total_tokens"] - bos,
        prompt_tokens_details={"cached_tokens": 0},
    )


def test_usage_in_every_event(server: Live) -> None:
    """`continuous_usage_stats`, as load generators want it; with `include_usage` alone it is null but in the last."""
    asked = {"model": "talk", "messages": SAY, "temperature": 0, "max_tokens": 6, "stream": True}
    for options in ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        events = server.ask("POST", "/v1/chat/completions", asked | {"stream_options": options}).events
        usages = [event["usage"] for event in events]
        assert usages[-1]["completion_tokens"] == 6 and not events[-1]["choices"]
        if len(options) == 1:
            assert usages[:-1] == [None] * (len(events) - 1)
        else:
            counted = [usage["completion_tokens"] for usage in usages[1:]]
            assert counted == sorted(counted) and counted[0] < 6 and counted[-2:] == [6, 6]
            assert {usage["prompt_tokens"] for usage in usages[1:]} == {usages[-1]["prompt_tokens"]}


def test_bytes_of_tokens_are_those_of_the_answer(server: Live) -> None:
    """Also where a token is a part of a character; and completions keep apart what has the same text."""
    asked = {"model": BASE, "temperature": 2, "max_tokens": 60, "logprobs": 20}
    for seed in range(3):
        text = server.ask("POST", "/v1/completions", asked | {"prompt": "A", "seed": seed}).json["choices"][0]
        assert "\ufffd" in text["text"]
        for token, top in zip(text["logprobs"]["tokens"], text["logprobs"]["top_logprobs"], strict=True):
            assert len(top) in (20, 21) and token in top and "\ufffd" not in token
        chat = asked | {"messages": SAY, "logprobs": True, "top_logprobs": 20, "seed": seed}
        choice = server.ask("POST", "/v1/chat/completions", chat).json["choices"][0]
        content = choice["logprobs"]["content"]
        joined = b"".join(bytes(token["bytes"]) for token in content)
        assert joined.decode(errors="replace") == choice["message"]["content"]
        for token in content:
            likely = [bytes(top["bytes"]) for top in token["top_logprobs"] if top["bytes"]]
            assert len(likely) > 10 and len(set(likely)) == len(likely)


@pytest.mark.parametrize(("model", "cached"), [(BASE, 12), ("talk", 12 - 8), ("question", 12 - 6)])
def test_cached_tokens(model: str, cached: int, server: Live) -> None:
    """Those of the text alone, virtual ones aside, and once for all answers to it."""
    server.engine.cached = 12
    for n, texts in ((1, ["A"]), (3, ["A"]), (2, ["A", "B"])):
        body = {"model": model, "prompt": texts, "n": n, "max_tokens": 2, "stream_options": {"include_usage": True}}
        usage = server.ask("POST", "/v1/completions", body | {"stream": True}).events[-1]["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": cached * len(texts)}


def test_the_best_of_several(server: Live) -> None:
    """The likeliest by token of those that are made, the best first; all of them are counted."""
    asked = {"model": "review", "prompt": ["A", "B"], "max_tokens": 5, "seed": 3, "logprobs": 0}
    made = server.ask("POST", "/v1/completions", asked | {"n": 6}).json
    best = server.ask("POST", "/v1/completions", asked | {"n": 2, "best_of": 6}).json
    for text in range(2):
        choices = made["choices"][6 * text : 6 * text + 6]
        ranked = sorted(choices, key=lambda one: -sum(one["logprobs"]["token_logprobs"]))  # all of one length
        found = best["choices"][2 * text : 2 * text + 2]
        assert [one["text"] for one in found] == [one["text"] for one in ranked[:2]]
    assert [one["index"] for one in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == made["usage"]
    plain = server.ask("POST", "/v1/completions", asked | {"best_of": 6, "logprobs": None}).json
    assert [one["text"] for one in plain["choices"]] == [best["choices"][i]["text"] for i in (0, 2)]
    assert all(one["logprobs"] is None for one in plain["choices"])
    for fields in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"best_of": 17}):
        reply = server.ask("POST", "/v1/completions", asked | fields)
        assert (reply.status, reply.json["error"]["param"]) == (400, "best_of")
