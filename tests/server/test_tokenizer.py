"""/tokenize and /detokenize: the ids that a model reads, without virtual tokens."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.data.tokenizer import bos_ids
from tests.support.live_server import BASE, TEMPLATES, Live
from tests.support.tiny import tiny_lm

LM = tiny_lm("llama", bos=True)
BOS = bos_ids(LM.tokenizer)
SAY = [{"role": "user", "content": "Hi"}]


def tokenized(server: Live, **body: Any) -> Any:
    reply = server.ask("POST", "/tokenize", body)
    assert reply.status == 200, reply.raw
    assert reply.json["count"] == len(reply.json["tokens"])
    assert reply.json["max_model_len"] == LM.geometry.max_positions
    return reply.json


@pytest.mark.parametrize("model", [BASE, *TEMPLATES])
def test_as_many_as_usage_counts(model: str, server: Live) -> None:
    """And the ids that are read, the words of the prefix before those of the job."""
    text = '{"text": "A", "text2": "B"}' if model == "pair" else "Hi there"
    for path, given in [("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": SAY})]:
        reply = server.ask("POST", path, {"model": model, "max_tokens": 1, **given})
        if reply.status != 200:
            assert model == "pair" and "chat" in path
            assert server.ask("POST", "/tokenize", {"model": model, **given}).json == reply.json
            continue
        found = tokenized(server, model=model, **given)
        assert found["count"] == reply.json["usage"]["prompt_tokens"] and found["token_strs"] is None
        ids = list(server.engine.seen[-1].ids)
        assert found["tokens"][-len(ids) :] == ids


def test_text_and_back(server: Live) -> None:
    """As vLLM's clients ask: no model is the base model, BOS can be left out, tokens come as strings, too."""
    text = "Hi <|im_end|> \N{SNOWMAN}"
    plain = tokenized(server, prompt=text, add_special_tokens=False, return_token_strs=True)
    assert plain["tokens"] == LM.encode(text)
    assert plain["token_strs"] == LM.tokenizer.convert_ids_to_tokens(plain["tokens"])
    assert tokenized(server, prompt=text)["tokens"] == BOS + plain["tokens"]
    assert server.ask("POST", "/detokenize", {"tokens": plain["tokens"]}).json == {"prompt": text}
    assert server.ask("POST", "/detokenize", {"model": "talk", "tokens": []}).json == {"prompt": ""}
    question = tokenized(server, model="question", prompt="Hi")["tokens"]
    assert LM.tokenizer.decode(question) == "<s>Q: Hi\nA:"
    assert tokenized(server, model="question", prompt="Hi", add_special_tokens=False)["tokens"] == question[1:]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": SAY}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "nobody"}, 404, "model"),
        ("/tokenize", {"messages": SAY, "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("/tokenize", {"prompt": "x" * 200_001}, 400, "prompt"),
        ("/detokenize", {"tokens": [0, 10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "nobody"}, 404, "model"),
    ],
)
def test_what_is_refused(path: str, body: dict[str, Any], status: int, param: str, server: Live) -> None:
    reply = server.ask("POST", path, body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param) and reply.code
