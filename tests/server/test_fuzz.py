"""schemathesis over the OpenAPI document: whatever is sent, no reply is a fault of ours, and each is as documented.

SOFTPROMPT_FUZZ_EXAMPLES=500 tries harder.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from softprompt.server.limits import Limits
from softprompt.server.routes.fine_tuning import GRADERS, JOB, JOBS, OPTIONS, PERMISSIONS
from softprompt.server.routes.inspections import INSPECTION, INSPECTIONS
from tests.support.fine_tuning import tuned
from tests.support.live_server import ADMIN, BASE, TEMPLATES, USER, Live

EXAMPLES = int(os.environ.get("SOFTPROMPT_FUZZ_EXAMPLES", "12"))
UNHURRIED = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
]
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response}"),
    ("DELETE", "/v1/responses/{response}"),
    ("POST", "/v1/responses/{response}/cancel"),
    ("GET", "/v1/responses/{response}/input_items"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("DELETE", "/v1/models/{model}"),
    ("GET", "/v1/cards"),
    *(("GET", f"/v1/{family}/{{model}}") for family in ("cards", "curves", "archives")),
    ("POST", INSPECTIONS),
    ("GET", INSPECTIONS),
    ("GET", INSPECTION),
    ("DELETE", INSPECTION),
    ("GET", f"{INSPECTION}/result"),
    ("GET", f"{INSPECTION}/report"),
    ("GET", "/v1/soft_prompts"),
    ("GET", "/v1/soft_prompts/{name}"),
    ("PUT", "/v1/soft_prompts/{name}"),
    ("DELETE", "/v1/soft_prompts/{name}"),
    ("GET", "/readyz"),
    ("GET", "/version"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/files/{file_id}/rows"),
    ("POST", "/v1/files/{file_id}/preview"),
    ("GET", OPTIONS),
    ("POST", JOBS),
    ("GET", JOBS),
    ("GET", JOB),
    *(("POST", f"{JOB}/{change}") for change in ("cancel", "pause", "resume")),
    ("GET", f"{JOB}/events"),
    ("GET", f"{JOB}/checkpoints"),
    ("GET", PERMISSIONS),
    ("POST", PERMISSIONS),
    ("DELETE", f"{PERMISSIONS}/{{permission_id}}"),
    ("POST", f"{GRADERS}/run"),
    ("POST", f"{GRADERS}/validate"),
]


@pytest.fixture(scope="module")
def fuzzed(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of its own: names that are unloaded stay so."""
    limits = Limits(new_tokens=4, drain_s=1, deadline_s=20)
    with tuned(tmp_path_factory.mktemp("fuzz"), prompts, limits=limits) as server:
        yield server.live


def test_the_document_lists_every_route(fuzzed: Live) -> None:
    paths = fuzzed.app.openapi()["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {("GET", "/livez"), ("GET", "/health"), *OPERATIONS} == {(m, p.replace(":path", "")) for m, p in listed}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_is_sent_is_a_fault(method: str, path: str, fuzzed: Live) -> None:
    """Good data and bad, NUL included."""
    schema = schemathesis.openapi.from_dict(fuzzed.app.openapi())
    operation = schema[path if path in schema else path.replace("}", ":path}")][method]
    wanted = CHECKS.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "negative_data_rejection",
        ]
    )
    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    statuses = set[int]()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=UNHURRIED)
    @given(case=st.one_of(modes))
    def sent(case: Any) -> None:
        key = ADMIN if "soft_prompts" in path else USER
        response = case.call(base_url=fuzzed.url, headers={"authorization": f"Bearer {key}"}, timeout=120)
        statuses.add(response.status_code)
        case.validate_response(response, checks=wanted)

    sent()
    assert statuses


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\0", "Hi", "\ufffd", "<|im_end|>"]
)
KNOBS = st.fixed_dictionaries(
    {"model": st.sampled_from([*TEMPLATES, BASE, f"{BASE}:talk", "torn", "stranger"])},
    optional={
        "n": st.integers(0, 4),
        "max_tokens": st.integers(0, 5),
        "temperature": st.floats(-0.5, 2.5),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(-2, 400),
        "seed": st.integers(-(2**64), 2**64),
        "stop": TEXT | st.lists(TEXT, max_size=9),
        "stream": st.booleans() | st.none(),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0, 2),
        "min_p": st.floats(0, 1),
        "min_tokens": st.integers(0, 5),
        "ignore_eos": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(-1, 320).map(str), st.floats(-100, 100), max_size=3),
    },
)
ROLES = st.sampled_from(["system", "user", "user", "assistant"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT}), max_size=4)
TEXTS = {"prompt": TEXT | st.lists(TEXT, max_size=2)}
CHAT_LOGPROBS = {"logprobs": st.booleans(), "top_logprobs": st.integers(-1, 21)}
COMPLETIONS = st.fixed_dictionaries(TEXTS, optional={"logprobs": st.integers(-1, 21)})
CHATS = st.fixed_dictionaries({"messages": TURNS}, optional=CHAT_LOGPROBS)
ASKED = st.tuples(st.just("/v1/completions"), KNOBS, COMPLETIONS) | st.tuples(
    st.just("/v1/chat/completions"), KNOBS, CHATS
)


@settings(max_examples=EXAMPLES * 6, deadline=None, suppress_health_check=UNHURRIED)
@given(asked=ASKED)
def test_any_mix_of_knobs_is_answered_or_refused(
    asked: tuple[str, dict[str, Any], dict[str, Any]], fuzzed: Live
) -> None:
    """With a well-formed reply; a stream that began ends without an error."""
    path, knobs, rest = asked
    reply = fuzzed.ask("POST", path, knobs | rest)
    if reply.status != 200:
        assert reply.status == 400 and reply.code
    elif knobs.get("stream"):
        assert all("error" not in event for event in reply.events)
        assert {event["choices"][0]["finish_reason"] for event in reply.events} & {"stop", "length"}
    else:
        texts = len(rest["prompt"]) if isinstance(rest.get("prompt"), list) else 1
        assert len(reply.json["choices"]) == knobs.get("n", 1) * texts


@settings(max_examples=EXAMPLES * 2, deadline=None, suppress_health_check=UNHURRIED)
@given(steps=st.lists(st.tuples(st.sampled_from(["PUT", "DELETE", "use"]), st.sampled_from(["review", "talk"]))))
def test_any_order_of_loading_and_using(steps: list[tuple[str, str]], fuzzed: Live) -> None:
    """What was unloaded is refused, all else is answered."""
    closed = {name for name in TEMPLATES if fuzzed.service.prompt_cache.is_closed(name)}
    for action, name in steps:
        if action == "use":
            reply = fuzzed.ask("POST", "/v1/completions", {"model": name, "prompt": "A", "max_tokens": 1})
            assert reply.status == (404 if name in closed else 200)
        else:
            assert fuzzed.ask(action, f"/v1/soft_prompts/{name}", key=ADMIN).status == 200
            closed = closed | {name} if action == "DELETE" else closed - {name}


def test_what_is_no_http(fuzzed: Live) -> None:
    """Bytes at random, pieces of requests, and requests with bytes changed: the server lives."""
    draw = random.Random(1)
    body = json.dumps({"model": BASE, "prompt": "A", "max_tokens": 1})
    good = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    for _ in range(EXAMPLES * 4):
        raw = bytearray(draw.choice([good, good[: draw.randrange(1, len(good))], draw.randbytes(200)]))
        for _ in range(draw.randrange(4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=60) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            reply = connection.recv(4096)
        assert not reply.startswith(b"HTTP/1.1 5"), (bytes(raw), reply)
    assert fuzzed.ask("GET", "/readyz").status == 200
