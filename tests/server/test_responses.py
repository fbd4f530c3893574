"""/v1/responses with OpenAI's own client: whole and streamed, its events in order, and what needs stored state."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseTextDeltaEvent

from tests.support.live_server import BASE, USER, Live

SAY: list[Any] = [{"role": "user", "content": "Hi there"}]


def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0, timeout=120)


@pytest.mark.parametrize("model", ["talk", "asked", BASE])
def test_a_response_is_the_chat_answer(model: str, server: Live) -> None:
    with client(server) as ai:
        chat = ai.chat.completions.create(model=model, messages=SAY, temperature=0, max_completion_tokens=6)
        raw = ai.responses.with_raw_response.create(model=model, input="Hi there", temperature=0, max_output_tokens=6)
        made = raw.parse()
        items = ai.responses.create(model=model, input=SAY, temperature=0, max_output_tokens=6, store=False)
    assert made.output_text == items.output_text == chat.choices[0].message.content
    assert (made.status, made.incomplete_details and made.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert made.usage is not None and chat.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (chat.usage.prompt_tokens, 6)
    assert made.id.startswith("resp_") and made.output[0].type == "message"
    assert raw.headers["x-softprompt-ignored"] == "store"
    Response.model_validate_json(raw.text, strict=True)


def test_turns_and_answers_sent_back(server: Live) -> None:
    """Instructions and a developer's turn are one system turn; output items come back as they are."""
    with client(server) as ai:
        first = ai.responses.create(
            model="talk", input=SAY, instructions="Be brief.", temperature=0, max_output_tokens=3
        )
        history = [{"role": "developer", "content": "A."}, *SAY, *(item.model_dump() for item in first.output)]
        history.append({"role": "user", "content": [{"type": "input_text", "text": "And?"}]})
        ai.responses.create(model="talk", input=history, instructions="B.", temperature=0, max_output_tokens=1)  # type: ignore[arg-type]
        told = server.engine.seen[-1].ids
        turns: list[Any] = [{"role": "system", "content": "B.\n\nA."}, *SAY]
        turns += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And?"}]
        ai.chat.completions.create(model="talk", messages=turns, temperature=0, max_tokens=1)
    assert told == server.engine.seen[-1].ids


def test_a_stream(server: Live) -> None:
    """Every event is one of the client's types, in order and numbered; its helper builds the whole from them."""
    asked: dict[str, Any] = {"model": "talk", "input": "Hi", "temperature": 0, "max_output_tokens": 7}
    server.engine.ends_after = 6
    reply = server.ask("POST", "/v1/responses", asked | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [part.split("\n") for part in reply.raw.decode().strip().split("\n\n")]
    events = [json.loads(line[-1].removeprefix("data: ")) for line in lines]
    assert [line[0] for line in lines] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    opening = ["created", "in_progress", "output_item.added", "content_part.added"]
    closing = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds == [*opening, *["output_text.delta"] * deltas, *closing] and deltas
    with client(server) as ai:
        whole = ai.responses.create(**asked)
        with ai.responses.stream(**asked) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        checked = list(ai.responses.create(stream=True, **asked))
    assert text == final.output_text == whole.output_text == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert final.usage == whole.usage and final.status == whole.status == "completed"
    for event in checked:
        type(event).model_validate(event.model_dump(), strict=True)

    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=USER) as ai:
            events = await ai.responses.create(stream=True, **asked)
            return "".join([event.delta async for event in events if isinstance(event, ResponseTextDeltaEvent)])

    assert asyncio.run(streamed()) == text


def test_logprobs(server: Live) -> None:
    with client(server) as ai:
        chat = ai.chat.completions.create(
            model="talk", messages=SAY, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
        )
        made = ai.responses.create(
            model="talk",
            input=SAY,
            temperature=0,
            max_output_tokens=4,
            top_logprobs=2,
            include=["message.output_text.logprobs"],
        )
    (item,) = made.output
    assert item.type == "message" and item.content[0].type == "output_text" and chat.choices[0].logprobs
    found = [token.model_dump() for token in item.content[0].logprobs or ()]
    assert found == [token.model_dump() for token in chat.choices[0].logprobs.content or ()] and len(found) == 4


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Nothing is stored"),
        ({"conversation": "conv_1"}, "conversation", "Nothing is stored"),
        ({"background": True}, "background", "stream"),
        ({"tools": [{"type": "web_search"}]}, "tools", "no built-in tools"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "Nothing is stored"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", ""),
        ({"input": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}, "input[1].content", ""),
        ({"input": []}, "input", ""),
        ({"max_output_tokens": 0}, "max_output_tokens", ""),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "at most"),
        ({"truncation": "auto"}, "truncation", ""),
        ({"colour": 1}, "colour", "Unknown field"),
        ({"stream_options": {}}, "stream_options", ""),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, words: str, server: Live) -> None:
    reply = server.ask("POST", "/v1/responses", {"model": "talk", "input": "Hi"} | fields)
    error = reply.json["error"]
    assert reply.status == 400 and reply.code
    assert error["param"] == param and words in error["message"]


def test_nothing_is_stored(server: Live) -> None:
    with client(server) as ai:
        with pytest.raises(openai.NotFoundError, match="not stored"):
            ai.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="not stored"):
            ai.responses.delete("resp_1")
        with pytest.raises(openai.NotFoundError, match="Embeddings are not supported"):
            ai.embeddings.create(model="talk", input="Hi")
        with pytest.raises(openai.NotFoundError, match="model 'nobody'"):
            ai.responses.create(model="nobody", input="Hi")


def test_an_error_in_a_stream_is_an_event(server: Live) -> None:
    """As OpenAI's type of it, numbered on."""
    server.engine.pace = 0.05
    with client(server) as ai:
        stream = ai.responses.create(model="talk", input="Hi", max_output_tokens=40, stream=True)
        events = []
        for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                server.engine.broken = "torn"
    last = events[-1]
    assert last.type == "error" and last.code == "engine_error"
    assert last.sequence_number == len(events) - 1
