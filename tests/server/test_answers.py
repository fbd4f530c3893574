"""Law 9: what the server returns is what the library's `answer` returns; and how requests are read."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import FormattedPrompt, no_prompt
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from tests.support.live_server import BASE, TEMPLATES, Live
from tests.support.tiny import tiny_lm

TEXTS = ("Where is my parcel?", "Hm", "\u00e9\N{GRINNING FACE}")
LONG = 12


def lm() -> FrozenLM:
    return tiny_lm("llama", bos=True)


def formatted(server: Live, name: str) -> FormattedPrompt:
    path = server.service.catalogue.path(name)
    return load_prompts(lm(), [str(path)])[str(path)]


def said(of: FormattedPrompt, text: str, sampling: Sampling) -> tuple[str, str, int]:
    """Text, finish and number of tokens, by the library."""
    (made,) = generate(lm(), {"it": of}, [Request(text, "it")], sampling)
    return made.text, made.finish, len(made.ids)


def completed(server: Live, model: str, prompt: Any, **fields: Any) -> list[tuple[str, str]]:
    reply = server.ask("POST", "/v1/completions", {"model": model, "prompt": prompt, "temperature": 0} | fields)
    assert reply.status == 200, reply.raw
    return [(choice["text"], choice["finish_reason"]) for choice in reply.json["choices"]]


def a_text(name: str, text: str) -> str:
    return f'{{"text": "{text}", "text2": "B"}}' if name == "pair" else text


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_completion_is_the_librarys_answer(name: str, text: str, server: Live) -> None:
    """Greedy, for every kind of template and both forms, whole and streamed."""
    text = a_text(name, text)
    wanted, finish, tokens = said(formatted(server, name), text, Sampling(LONG))
    asked = {"model": name, "prompt": text, "temperature": 0, "max_tokens": LONG}
    reply = server.ask("POST", "/v1/completions", asked)
    assert reply.status == 200
    (choice,) = reply.json["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted, finish)
    assert reply.json["usage"]["completion_tokens"] == tokens
    events = server.ask("POST", "/v1/completions", asked | {"stream": True}).events
    assert "".join(event["choices"][0]["text"] for event in events) == wanted
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + [finish]


def test_sampled_answers_are_those_of_the_seed(server: Live) -> None:
    """Answer i draws as row i of the library does with that seed."""
    sampling = Sampling(LONG, temperature=1.3, top_k=40, top_p=0.9, seed=5)
    requests = [Request(text, "it") for text in TEXTS[:2] for _ in range(2)]
    wanted = [made.text for made in generate(lm(), {"it": formatted(server, "review")}, requests, sampling)]
    fields = {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 5, "n": 2, "max_tokens": LONG}
    assert [text for text, _ in completed(server, "review", list(TEXTS[:2]), **fields)] == wanted
    assert len(set(wanted)) > 2


def test_bias_and_the_least_and_the_whole_length(server: Live) -> None:
    """Of the answer: an answer that would end at once and must not, and end tokens that end nothing."""
    (letter,), end = lm().encode("Z"), lm().tokenizer.eos_token_id
    assert completed(server, "review", "Hm", max_tokens=3, logit_bias={str(letter): 100}) == [("ZZZ", "length")]
    ends = {"logit_bias": {str(end): 100, str(letter): 50}, "max_tokens": LONG}
    assert completed(server, "review", "Hm", **ends) == [("", "stop")]
    assert completed(server, "review", "Hm", **ends, min_tokens=3) == [("ZZZ", "stop")]
    assert completed(server, "review", "Hm", **ends, ignore_eos=True) == [("", "length")]


def test_without_a_seed_answers_differ(server: Live) -> None:
    texts = completed(server, "review", "Hm", temperature=1.5, n=4, max_tokens=LONG)
    assert len(set(texts)) == 4
    assert set(completed(server, "review", "Hm", temperature=1.5, n=4, max_tokens=LONG)).isdisjoint(texts)


def test_a_stop_string(server: Live) -> None:
    """Cut where the library cuts it, and the job ends there."""
    of = formatted(server, "review")
    whole, _, _ = said(of, "Hm", Sampling(40))
    stop = whole[3:5]
    wanted, finish, tokens = said(of, "Hm", Sampling(40, stop=(stop,)))
    assert finish == "stop" and len(wanted) < len(whole)
    assert completed(server, "review", "Hm", max_tokens=40, stop=[stop]) == [(wanted, "stop")]
    events = server.ask(
        "POST",
        "/v1/completions",
        {"model": "review", "prompt": "Hm", "temperature": 0, "max_tokens": 40, "stop": stop, "stream": True}
        | {"stream_options": {"include_usage": True}},
    ).events
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == wanted
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize("model", ["review", f"{BASE}:review"])
def test_names_of_a_model(model: str, server: Live) -> None:
    reply = server.ask("POST", "/v1/completions", {"model": model, "prompt": "Hm", "temperature": 0}).json
    assert reply["model"] == model
    assert reply["choices"][0]["text"] == said(formatted(server, "review"), "Hm", Sampling(16))[0], (
        "16 tokens by default"
    )


def test_the_base_model_reads_the_text_as_it_is(server: Live) -> None:
    plain = no_prompt(lm(), Template("text", "{text}"))
    wanted, finish, _ = said(plain, "Once upon", Sampling(LONG))
    assert completed(server, BASE, "Once upon", max_tokens=LONG) == [(wanted, finish)]
    ids = [3, *lm().encode("Once upon")]
    assert completed(server, BASE, ids, max_tokens=LONG) == [(wanted, finish)]
    assert completed(server, BASE, [ids, ids], max_tokens=LONG) == [(wanted, finish)] * 2
    job = server.engine.seen[-1]
    assert (job.prompt, job.ids) == (None, tuple(ids))


def seen(server: Live, model: str, *turns: tuple[str, str], **fields: Any) -> str:
    """What the model reads of a conversation, after the virtual tokens."""
    messages = [{"role": role, "content": content} for role, content in turns]
    body = {"model": model, "messages": messages, "temperature": 0, "max_completion_tokens": 4}
    reply = server.ask("POST", "/v1/chat/completions", body | fields)
    assert reply.status == 200, reply.raw
    job = server.engine.seen[-1]
    follow = formatted(server, model).prefix(lm()).follow if model != BASE else ()
    text = lm().tokenizer.decode([*follow, *job.ids])
    assert isinstance(text, str)
    return text


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


TALK = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
SYSTEM = ("system", "Be quick.")


@pytest.mark.parametrize(
    ("model", "turns", "read"),
    [
        (BASE, TALK, "<s>" + chatml(*TALK)),
        (BASE, (SYSTEM, *TALK), "<s>" + chatml(SYSTEM, *TALK)),
        ("talk", TALK, chatml(*TALK)),
        ("talk", (("developer", "Be quick."), *TALK), chatml(SYSTEM, *TALK)),
        ("kind", TALK, chatml(("system", "Be kind."), *TALK)),
        ("kind", (SYSTEM, *TALK), chatml(SYSTEM, *TALK)),
        ("asked", TALK, chatml(*TALK)),
        ("stern", (("system", "Be stern."), TALK[0]), chatml(("system", "Be stern."), ("user", "Say: Hi"))),
        (
            "stern",
            TALK,
            chatml(("system", "Be stern."), ("user", "Say: Hi"), ("assistant", "Hello"), ("user", "Say: Bye")),
        ),
        ("review", TALK, "Review: Bye\nSentiment:"),
    ],
)
def test_how_a_conversation_is_read(model: str, turns: tuple[tuple[str, str], ...], read: str, server: Live) -> None:
    assert seen(server, model, *turns) == read


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_turn_is_a_text(name: str, server: Live) -> None:
    """So the answer to it is the library's, too."""
    text = a_text(name, "Hi there")
    wanted = said(formatted(server, name), text, Sampling(LONG))[0]
    body = {"model": name, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": LONG}
    assert server.ask("POST", "/v1/chat/completions", body).json["choices"][0]["message"]["content"] == wanted
    events = server.ask("POST", "/v1/chat/completions", body | {"stream": True}).events
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == wanted


def test_a_turn_in_parts(server: Live) -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    body = {"model": "talk", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    assert server.ask("POST", "/v1/chat/completions", body).status == 200
    assert server.engine.seen[-1].ids == tuple(lm().encode(chatml(("user", "Hi there"))))


@pytest.mark.parametrize(
    ("model", "turns", "message"),
    [
        ("review", (SYSTEM, TALK[0]), "brings its own opening"),
        ("stern", (SYSTEM, TALK[0]), "brings its own opening"),
        ("talk", (*TALK[:2], TALK[1]), "the last turn must be the user's"),
        ("talk", (TALK[0], SYSTEM, TALK[0]), "messages[1]"),
        ("pair", TALK[:1], "JSON object"),
    ],
)
def test_conversations_that_make_no_sense(
    model: str, turns: tuple[tuple[str, str], ...], message: str, server: Live
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    reply = server.ask("POST", "/v1/chat/completions", {"model": model, "messages": messages})
    assert (reply.status, reply.code) == (400, "invalid_value")
    assert message in reply.json["error"]["message"] and reply.json["error"]["param"] == "messages"


def test_a_conversation_may_fill_the_context(server: Live) -> None:
    """As long as nothing else is said, and not a token longer."""
    body = {"model": "talk", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "seed": 1}
    reply = server.ask("POST", "/v1/chat/completions", body)
    job = server.engine.seen[-1]
    assert job.sampling.max_new_tokens + len(job.ids) + 8 == 256, "8 virtual tokens"
    assert reply.json["usage"]["prompt_tokens"] == len(job.ids)
    most = job.sampling.max_new_tokens
    assert server.ask("POST", "/v1/chat/completions", body | {"max_tokens": most}).status == 200
    reply = server.ask("POST", "/v1/chat/completions", body | {"max_tokens": most + 1})
    assert (reply.status, reply.code) == (400, "context_length_exceeded")
