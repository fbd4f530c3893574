"""What the test suites of vLLM's and llama.cpp's servers ask of a server, in our own words."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.server.test_generation_stream import until
from tests.support.live_server import BASE, USER, Live

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("usage", "continuous"), [*itertools.product([None, False, True], repeat=2)])
def test_stream_options(path: str, usage: bool | None, continuous: bool | None, server: Live) -> None:
    """Usage in a last event without choices if it is asked for, and in every event if that is, too."""
    options = {"include_usage": usage, "continuous_usage_stats": continuous}
    body = {"model": "talk", "max_tokens": 5, "temperature": 0, "stream": True, "stream_options": options}
    events = server.ask("POST", path, body | ({"messages": ASK} if path == CHAT else {"prompt": "Hi"})).events
    assert all(event["choices"] for event in events[:-1])
    assert (not events[-1]["choices"]) == bool(usage)
    with_usage = [event for event in events if event.get("usage")]
    assert len(with_usage) == (0 if not usage else len(events[path == CHAT :]) if continuous else 1)
    if usage:
        counts = events[-1]["usage"]
        assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
        assert counts["completion_tokens"] == 5
    refused = server.ask("POST", path, body | {"stream": False, "messages": ASK, "prompt": "Hi"})
    assert refused.status == 400


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_several_texts(stream: bool, server: Live) -> None:
    """Numbered text by text, each with an end of its own; a stream says what one reply does."""
    body = {"model": "review", "prompt": ["A", "B", "C"], "n": 2, "max_tokens": 4, "seed": 5}
    wanted = [one["text"] for one in server.ask("POST", TEXT, body).json["choices"]]
    texts, ends = [""] * 6, list[int]()
    reply = server.ask("POST", TEXT, body | {"stream": stream})
    for event in reply.events if stream else [reply.json]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == wanted and sorted(ends) == list(range(6))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_repeats_an_answer_however_it_comes(seed: int, server: Live) -> None:
    body = {"model": "talk", "messages": ASK, "temperature": 1, "seed": seed, "max_tokens": 8}
    whole = server.ask("POST", CHAT, body).json["choices"][0]["message"]["content"]
    events = server.ask("POST", CHAT, body | {"stream": True}).events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole


@pytest.mark.parametrize("logprobs", [0, 1, 20])
def test_as_many_logprobs_as_asked_for(logprobs: int, server: Live) -> None:
    """The chosen token's is always there, so one more at most; too many are refused, and nothing else suffers."""
    body = {"model": BASE, "prompt": "Hi", "temperature": 0, "max_tokens": 3, "logprobs": logprobs}
    found = server.ask("POST", TEXT, body).json["choices"][0]["logprobs"]
    assert len(found["tokens"]) == 3
    assert all(max(1, logprobs) <= len(top) <= logprobs + 1 for top in found["top_logprobs"])
    assert server.ask("POST", TEXT, body | {"logprobs": 21}).code == "over_limit"
    assert server.ask("POST", TEXT, body).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_context_that_is_full(path: str, stream: bool, server: Live) -> None:
    """A refusal with its own status in streams, too; the exact length still fits."""
    long = {"messages": [ASK[0] | {"content": "x" * 400}]} if path == CHAT else {"prompt": "x" * 400}
    reply = server.ask("POST", path, {"model": BASE, "max_tokens": 1, "stream": stream} | long)
    assert (reply.status, reply.code) == (400, "context_length_exceeded")
    fitting = {"model": BASE, "prompt": [5] * 250, "max_tokens": 6, "stream": stream}
    assert server.ask("POST", TEXT, fitting).status == 200
    assert server.ask("POST", TEXT, fitting | {"max_tokens": 7}).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("turns", "status"),
    [
        ([{"role": "system", "content": "Be."}, *ASK], 200),
        ([{"role": "developer", "content": "Be."}, *ASK], 200),
        ([*ASK, {"role": "assistant", "content": "So"}], 200),
        ([*ASK, {"role": "assistant", "content": "So"}, {"role": "assistant", "content": "so"}], 400),
        ([{"role": "assistant", "content": "So"}], 400),
        ([], 400),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}], 200),
        ([{"role": "robot", "content": "Hi"}], 400),
    ],
)
def test_turns(turns: list[Any], status: int, server: Live) -> None:
    assert server.ask("POST", CHAT, {"model": BASE, "messages": turns, "max_tokens": 1}).status == status


def test_many_that_are_cancelled_at_once(server: Live) -> None:
    """As a load test's end does it: afterwards nothing runs, and the server answers at once."""
    server.engine.pace = 0.5  # no answer ends before it is canceled, however late the client's loop wakes

    async def cancelled() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as ai:
            asked = [ai.completions.create(model="review", prompt="A", max_tokens=200) for _ in range(60)]
            tasks = [asyncio.ensure_future(one) for one in asked]
            await asyncio.sleep(0.5)
            for task in tasks:
                task.cancel()
            assert all(isinstance(one, BaseException) for one in await _ended(tasks))

    asyncio.run(cancelled())
    until(lambda: server.engine.running == server.engine.waiting == server.service.rate_limit.jobs == 0, 60)
    server.engine.pace = 0.0
    assert server.ask("POST", TEXT, {"model": "review", "prompt": "A", "max_tokens": 1}).status == 200


async def _ended(tasks: list[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_the_client_reads_headers_and_comments(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's client skips comments, and shows the ids and the fields without effect."""
    monkeypatch.setattr("softprompt.server.generation_stream.FIRST_EVENT_S", 0.01)
    server.engine.pace = 0.1
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as ai:
        made = ai.chat.completions.with_raw_response.create(
            model="talk",
            messages=ASK,  # type: ignore[arg-type]
            max_tokens=2,
            stream=True,
            user="me",
            extra_headers={"x-request-id": "mine"},
        )
        assert made.headers["x-request-id"] == "mine" and made.headers["x-softprompt-ignored"] == "user"
        assert len(list(made.parse())) >= 2
    with httpx.stream(
        "POST",
        f"{server.url}{TEXT}",
        json={"model": "review", "prompt": "A", "max_tokens": 2, "stream": True},
        headers={"authorization": f"Bearer {USER}"},
    ) as raw:
        assert next(raw.iter_lines()) == ": waiting"
