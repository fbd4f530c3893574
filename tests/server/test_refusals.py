"""What is refused, and how: OpenAI's error object, the field by name, a status that clients understand."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.errors import ConfigError
from softprompt.server.limits import Limits, parse_limits
from softprompt.server.schema import IGNORED, NEUTRAL, CompletionRequest
from tests.support.live_server import BASE, Live, live

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAY = [{"role": "user", "content": "Hi"}]


def refused(server: Live, path: str, **fields: Any) -> tuple[int, str, str | None]:
    """Status, code and param of a request with these fields on top of a good one."""
    good = {"model": "talk", "max_tokens": 1} | ({"messages": SAY} if path == CHAT else {"prompt": "Hi"})
    reply = server.ask("POST", path, good | fields)
    return reply.status, reply.code, reply.json["error"]["param"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"temperature": -0.1}, "temperature"),
        (CHAT, {"temperature": 2.1}, "temperature"),
        (CHAT, {"temperature": "1"}, "temperature"),
        (CHAT, {"temperature": True}, "temperature"),
        (CHAT, {"top_p": 0}, "top_p"),
        (CHAT, {"top_k": -2}, "top_k"),
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"n": 1.5}, "n"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 1}, "max_tokens"),
        (CHAT, {"seed": 2**63}, "seed"),
        (CHAT, {"presence_penalty": 3}, "presence_penalty"),
        (CHAT, {"repetition_penalty": 0}, "repetition_penalty"),
        (CHAT, {"min_p": 1.1}, "min_p"),
        (CHAT, {"min_tokens": 2}, "min_tokens"),
        (CHAT, {"logit_bias": {"5": 101}}, "logit_bias"),
        (CHAT, {"logit_bias": {"300": 1}}, "logit_bias"),
        (TEXT, {"logit_bias": {"-1": 1}}, "logit_bias"),
        (CHAT, {"stop": ""}, "stop"),
        (CHAT, {"stop": ["a", 1]}, "stop[1]"),
        (CHAT, {"model": None}, "model"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (TEXT, {"logprobs": -1}, "logprobs"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ["a", ""]}, "prompt"),
        (TEXT, {"prompt": {"a": 1}}, "prompt"),
        (TEXT, {"prompt": [5, 6]}, "prompt"),
        (TEXT, {"prompt": [300], "model": BASE}, "prompt"),
        (TEXT, {"prompt": [-1], "model": BASE}, "prompt"),
    ],
)
def test_a_value_that_is_wrong(path: str, fields: dict[str, Any], param: str, server: Live) -> None:
    assert refused(server, path, **fields) == (400, "invalid_value", param)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"n": 17}, "choices"),
        ({"stop": ["x"] * 9}, "stops"),
        ({"stop": "x" * 257}, "stop_chars"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"top_k": 1001}, "top_k"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "biases"),
        ({"max_tokens": 4097}, "new_tokens"),
        ({"messages": SAY * 257}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200_001}]}, "chars"),
    ],
)
def test_more_than_the_server_gives(fields: dict[str, Any], limit: str, server: Live) -> None:
    status, code, _ = refused(server, CHAT, **fields)
    assert (status, code) == (400, "over_limit")
    message = server.ask("POST", CHAT, {"model": "talk", "messages": SAY} | fields).json["error"]["message"]
    assert f"--limit {limit}={getattr(Limits(), limit)}" in message


def test_more_texts_than_the_server_takes(server: Live) -> None:
    """They are refused as what they are; n times the texts, too."""
    for fields, param in (({"prompt": ["A"] * 2049}, "prompt"), ({"prompt": ["A"] * 1025, "n": 2}, "n")):
        reply = server.ask("POST", TEXT, {"model": "talk"} | fields)
        assert (reply.status, reply.code, reply.json["error"]["param"]) == (400, "over_limit", param)
        assert "at most 2048" in reply.json["error"]["message"]
        assert "--limit prompts=2048" in reply.json["error"]["message"]


@pytest.mark.parametrize("name", sorted(NEUTRAL.keys() - CompletionRequest.model_fields.keys()))
def test_what_would_change_the_answer_is_refused_by_name(name: str, server: Live) -> None:
    """But not a value that changes nothing."""
    assert refused(server, TEXT, **{name: {"type": "json_object"}}) == (400, "unsupported_parameter", name)
    for value in (None, *NEUTRAL[name]):
        good = {"model": "talk", "prompt": "Hi", "max_tokens": 1}
        assert server.ask("POST", TEXT, good | {name: value}).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_changes_nothing_is_ignored(stream: bool, server: Live) -> None:
    """And named in a header of the response, errors included."""
    body = {"model": "talk", "messages": SAY, "max_tokens": 1, "stream": stream} | {
        name: {"a": "b"} for name in IGNORED
    }
    reply = server.ask("POST", CHAT, body)
    assert (reply.status, reply.headers["x-softprompt-ignored"]) == (200, ", ".join(sorted(IGNORED)))
    unasked = server.ask("POST", CHAT, {"model": "talk", "messages": SAY, "max_tokens": 1, "user": None})
    assert "x-softprompt-ignored" not in unasked.headers
    failed = server.ask("POST", CHAT, {"model": "none", "messages": SAY, "user": "me"})
    assert (failed.status, failed.headers["x-softprompt-ignored"]) == (404, "user")


def test_an_unknown_field_is_refused_with_a_near_name(server: Live) -> None:
    assert refused(server, CHAT, temprature=1) == (400, "unknown_parameter", "temprature")
    reply = server.ask("POST", CHAT, {"model": "talk", "messages": SAY, "temprature": 1})
    assert "Did you mean temperature?" in reply.json["error"]["message"]
    for field, value in (("tool_call_id", "x"), ("tool_calls", [{"function": {"name": "a", "arguments": "{}"}}])):
        reply = server.ask("POST", CHAT, {"model": "talk", "messages": [SAY[0] | {field: value}]})
        assert (reply.status, reply.json["error"]["param"]) == (400, f"messages[0].{field}")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b'"x"', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"model": NaN}', 400, "invalid_json"),
        (b'{"model": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": ' + b"[" * 33 + b"]" * 33 + b"}", 400, "invalid_json"),
        (b'{"model":' * 100_000, 400, "invalid_json"),
        (b"{" + b" " * 1_048_576 + b"}", 413, "body_too_large"),
    ],
)
def test_bodies(body: bytes, status: int, code: str, server: Live) -> None:
    reply = server.ask("POST", CHAT, body)
    assert (reply.status, reply.code) == (status, code)


def test_brackets_in_texts_are_no_depth(server: Live) -> None:
    text = '[{"\\' * 40
    assert server.ask("POST", TEXT, {"model": "talk", "prompt": text, "max_tokens": 1}).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json(kind: str, server: Live) -> None:
    """What a browser may send to another site without asking is not read."""
    reply = server.ask("POST", CHAT, b'{"model": "talk"}', headers={"content-type": kind})
    assert (reply.status, reply.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "br, gzip"])
def test_no_compressed_body(encoding: str, server: Live) -> None:
    reply = server.ask("POST", CHAT, b"\x1f\x8b", headers={"content-encoding": encoding})
    assert (reply.status, reply.code) == (415, "unsupported_encoding") and encoding in reply.json["error"]["message"]
    body = {"model": "talk", "prompt": "Hi", "max_tokens": 1}
    assert server.ask("POST", TEXT, body, headers={"content-encoding": "identity"}).status == 200


def test_a_slash_at_the_end(server: Live) -> None:
    """As no slash."""
    assert server.ask("GET", "/v1/models/").json["object"] == "list"
    assert server.ask("GET", "/v1/models/talk/").json["id"] == "talk"
    assert server.ask("POST", f"{TEXT}/", {"model": "talk", "prompt": "Hi", "max_tokens": 1}).status == 200


def test_other_parts_of_the_api(server: Live) -> None:
    """Their refusal says that they are not served, and why; a forgotten /v1 is pointed out."""
    jobs = "serve --jobs"
    for path, word in (("embeddings", "soft prompt steers"), ("files/f-1", jobs), ("fine_tuning/jobs", jobs)):
        reply = server.ask("POST", f"/v1/{path}", {"model": "talk", "input": "A"})
        assert (reply.status, reply.code) == (404, "unsupported_path")
        assert word in reply.json["error"]["message"]
    assert "under /v1" in server.ask("POST", "/chat/completions", {}).json["error"]["message"]


def test_paths_and_methods(server: Live) -> None:
    assert (server.ask("GET", "/nope").status, server.ask("GET", "/nope").code) == (404, "unknown_path")
    reply = server.ask("GET", CHAT)
    assert (reply.status, reply.code, reply.headers["allow"]) == (405, "unknown_method", "POST")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert server.ask("GET", path).status == 404


@pytest.mark.parametrize("name", ["../review", "/etc/passwd", "review\0", "x" * 5000, "", "REVIEW", ".review", "a:b:c"])
def test_names_that_are_none(name: str, server: Live) -> None:
    assert refused(server, TEXT, model=name) == (404, "model_not_found", "model")


@pytest.mark.parametrize(("model", "virtual"), [(BASE, ""), ("talk", ", 8 of them of the soft prompt")])
def test_the_words_that_clients_look_for(model: str, virtual: str, server: Live) -> None:
    """litellm recognizes this sentence, LangChain the code in it; a soft prompt is named where there is one."""
    for body, param in (
        ({"prompt": "x" * 300}, "prompt"),
        ({"messages": [SAY[0] | {"content": "x" * 300}]}, "messages"),
    ):
        reply = server.ask("POST", TEXT if param == "prompt" else CHAT, {"model": model, "max_tokens": 7} | body)
        assert (reply.status, reply.code) == (400, "context_length_exceeded")
        message = reply.json["error"]["message"]
        assert message.startswith("This model's maximum context length is 256 tokens. However, you requested ")
        held, requested = int(message.split("(")[1].split()[0]), int(message.split("requested ")[1].split()[0])
        assert held > 300 and requested == held + 7
        assert f"in the {param}{virtual}, 7 in the completion)" in message
        assert message.endswith(f"of the {param} or of the completion (context_length_exceeded).")


def test_a_text_longer_than_the_context(server: Live) -> None:
    assert refused(server, TEXT, prompt="x" * 300) == (400, "context_length_exceeded", "prompt")


def test_limits_are_settings() -> None:
    assert parse_limits(["choices=2", "drain_s=0"]) == Limits(choices=2, drain_s=0)
    for text, message in [
        ("choises=2", "did you mean choices"),
        ("choices", "whole number"),
        ("choices=-1", "whole number"),
        ("choices=0", ">= 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_limits([text])


def test_limits_count(prompts: Any) -> None:
    """Prompt tokens, and places in the queue."""
    with live(prompts, limits=Limits(prompt_tokens=40, jobs=3, drain_s=1)) as server:
        assert refused(server, TEXT, prompt="x" * 40) == (400, "context_length_exceeded", "prompt")
        reply = server.ask("POST", TEXT, {"model": "talk", "prompt": "x" * 40})
        assert "--limit prompt_tokens=40" in reply.json["error"]["message"]
        assert refused(server, TEXT, n=4) == (400, "over_limit", "n"), "it can never be served"
        assert server.ask("POST", TEXT, {"model": "talk", "prompt": "Hi", "n": 3, "max_tokens": 1}).status == 200
        server.idle()


def test_a_slow_body(prompts: Any) -> None:
    """A client that does not send what it promised is not waited for."""
    with live(prompts, limits=Limits(body_s=1, drain_s=1)) as server:
        reply = server.ask("POST", TEXT, b"{", headers={"content-length": "10"})
        assert (reply.status, reply.code) == (408, "body_timeout")
