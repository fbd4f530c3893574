"""What a request and the operator choose for a conversation: a begun answer, template variables, system turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.errors import DataError
from softprompt.formatting.formatted_prompt import no_prompt
from softprompt.formatting.inputs import chat_input_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.server.chat_reading import NO_OPTIONS, ChatOptions, SystemTurns, chat_options, read_conversation
from softprompt.server.error_responses import ApiError
from softprompt.server.schema import ChatRequest
from tests.support.live_server import BASE, TEMPLATES, Live, live
from tests.support.reasoning import QWEN3
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Where is my parcel?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def ids_for(server: Live, messages: list[Any], model: str = "talk", **fields: Any) -> tuple[int, ...]:
    """What the engine gets to read."""
    reply = server.ask("POST", CHAT, {"model": model, "messages": messages, "max_tokens": 1} | fields)
    assert reply.status == 200, reply.raw
    return server.engine.seen[-1].ids


@pytest.mark.parametrize("model", [BASE, "talk", "kind", "asked", "stern", "review", "question"])
def test_an_answer_that_the_request_begins(model: str, server: Live) -> None:
    """Its ids follow those of the conversation, as a training row's answer does; only the rest comes back."""
    tokenizer = tiny_lm("llama", bos=True).tokenizer
    given = ids_for(server, ASK, model)
    for fields in ({}, {"continue_final_message": True}, {"add_generation_prompt": False}):
        begun = ids_for(server, [*ASK, {"role": "assistant", "content": "It is"}], model, **fields)
        assert begun[: len(given)] == given
        assert tokenizer.decode(list(begun[len(given) :])) in ("It is", " It is")
    assert ids_for(server, [*ASK, {"role": "assistant", "content": ""}], model) == given


def test_a_begun_answer_goes_on_as_it_would(server: Live) -> None:
    """The greedy answer of the begun conversation is the rest of the greedy answer, for letters that are tokens."""
    letters = tiny_lm("llama", bos=True).tokenizer.encode("abcdefghijklm", add_special_tokens=False)
    asked = {"model": "talk", "messages": ASK, "temperature": 0, "logit_bias": dict.fromkeys(map(str, letters), 100)}
    whole = server.ask("POST", CHAT, asked | {"max_tokens": 12}).json["choices"][0]["message"]["content"]
    assert len(whole) == 12
    begun = asked | {"messages": [*ASK, {"role": "assistant", "content": whole[:5]}], "max_tokens": 7}
    assert server.ask("POST", CHAT, begun).json["choices"][0]["message"]["content"] == whole[5:]


@pytest.mark.parametrize(
    ("turns", "fields", "param"),
    [
        (ASK, {"continue_final_message": True}, "continue_final_message"),
        (ASK, {"add_generation_prompt": False}, "add_generation_prompt"),
        ([*ASK, {"role": "assistant", "content": "It"}], {"add_generation_prompt": True}, "add_generation_prompt"),
        ([*ASK, {"role": "assistant", "content": "It"}], {"continue_final_message": False}, "continue_final_message"),
        (ASK, {"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        (ASK, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (ASK, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        (ASK, {"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
        (ASK, {"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        (ASK, {"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs"),
        (ASK, {"chat_template_kwargs": {"enable_thinking": True, "thinking": False}}, "chat_template_kwargs"),
        (ASK, {"reasoning_effort": "much"}, "reasoning_effort"),
        ([{"role": "assistant", "content": "It"}], {}, "messages"),
    ],
)
def test_choices_that_make_no_sense(turns: list[Any], fields: dict[str, Any], param: str, server: Live) -> None:
    reply = server.ask("POST", CHAT, {"model": "talk", "messages": turns, "max_tokens": 1} | fields)
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (400, "invalid_value", param)


def test_switches_that_the_template_does_not_know(server: Live) -> None:
    """They change nothing, and a header says so."""
    fields = {"chat_template_kwargs": {"enable_thinking": False, "mode": [1]}, "reasoning_effort": "low", "store": True}
    given = ids_for(server, ASK)
    reply = server.ask("POST", CHAT, {"model": "talk", "messages": ASK, "max_tokens": 1} | fields)
    assert server.engine.seen[-1].ids == given
    ignored = set(reply.headers["x-softprompt-ignored"].split(", "))
    assert ignored == {
        "store",
        "reasoning_effort",
        "chat_template_kwargs.enable_thinking",
        "chat_template_kwargs.mode",
    }


def options_of(**fields: Any) -> ChatOptions:
    return chat_options(ChatRequest.model_validate({"model": "m", "messages": ASK} | fields))


def lm_with(chat_template: str) -> FrozenLM:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    return FrozenLM(tiny_model("llama"), tokenizer, "tiny")


def test_switches_that_it_knows() -> None:
    """Thinking, and any other variable; an answer that begins with its thought goes on in it."""
    lm = lm_with(QWEN3 + "{{ mood }}{{ reasoning_effort }}")
    formatted, turns = no_prompt(lm, Template("chat")), [Message("user", "Why?")]

    def text(options: ChatOptions, *more: Message) -> tuple[str, tuple[str, ...]]:
        ids, ignored = read_conversation([*turns, *more], options, "", formatted, lm.tokenizer)
        return str(lm.tokenizer.decode(ids)), ignored

    plain, thinking = (text(options_of(chat_template_kwargs={"thinking": on})) for on in (False, True))
    assert plain == text(NO_OPTIONS) and "<think>\n\n</think>" in plain[0]
    assert "<think>\n\n</think>" not in thinking[0] and thinking[1] == ()
    varied = text(options_of(chat_template_kwargs={"mood": "sad"}, reasoning_effort="high"))
    assert varied == (f"{plain[0]}sadhigh", ())
    begun = text(options_of(chat_template_kwargs={"thinking": True}), Message("assistant", "<think>\nWell"))
    assert begun[0].startswith(thinking[0])


def test_an_opening_that_would_be_another() -> None:
    """A soft prompt was trained with its opening, so no variable may change it."""
    lm = lm_with("{{ mood }}" + QWEN3)
    formatted = no_prompt(lm, Template("chat", "{text}"))
    options = options_of(chat_template_kwargs={"mood": "sad"})
    with pytest.raises(DataError, match="another opening"):
        read_conversation([Message("user", "Why?")], options, "", formatted, lm.tokenizer)


def read(name: str, choice: SystemTurns, *roles: str) -> str:
    """A conversation under a template as text, its words those of the roles."""
    lm = tiny_lm("llama", bos=True)
    formatted = no_prompt(lm, TEMPLATES[name][1])
    turns = [Message(role, f"of the {role}") for role in roles]
    ids, _ = read_conversation(turns, NO_OPTIONS, choice, formatted, lm.tokenizer)
    return str(lm.tokenizer.decode(ids))


@pytest.mark.parametrize("name", ["review", "question", "asked", "stern"])
def test_system_turns_of_soft_prompts_without(name: str) -> None:
    """Refused, as their rows had none; else left out, or written before the user's words."""
    for choice in ("", "refuse"):
        with pytest.raises(DataError, match="system turn"):
            read(name, choice, "system", "user")  # type: ignore[arg-type]
    plain = read(name, "", "user")
    assert read(name, "ignore", "system", "user") == plain
    assert read(name, "keep", "system", "user") == plain.replace("of the user", "of the system\n\nof the user")
    assert read(name, "keep", "user") == read(name, "refuse", "user") == plain


def test_system_turns_of_soft_prompts_with() -> None:
    """Trained on conversations: kept as a turn, unless the operator says otherwise."""
    kept = read("talk", "", "system", "user")
    assert kept == read("talk", "keep", "system", "user") and "<|im_start|>system\nof the system" in kept
    assert read("talk", "ignore", "system", "user") == read("talk", "", "user")
    with pytest.raises(DataError, match="without other system turns"):
        read("talk", "refuse", "system", "user")


def test_its_own_system_turn_is_no_other() -> None:
    lm = tiny_lm("llama", bos=True)
    formatted = no_prompt(lm, TEMPLATES["stern"][1])
    turns = [Message("system", "Be stern."), Message("user", "Why?")]
    wanted = chat_input_ids(turns[1:], formatted, lm.tokenizer)
    for choice in ("", "keep", "ignore", "refuse"):
        assert read_conversation(turns, NO_OPTIONS, choice, formatted, lm.tokenizer)[0] == wanted  # type: ignore[arg-type]


def test_the_card_says_it_and_the_operator_has_the_last_word(prompts: Path) -> None:
    """`serve --system`; the base model is asked nothing."""
    lm = tiny_lm("llama", bos=True)
    told = Template("text", "{text}", system_turns="ignore")
    assert Template.from_dict(told.to_dict()) == told
    formatted, turns = no_prompt(lm, told), [Message("system", "Be brief."), Message("user", "Why?")]
    assert "brief" not in str(lm.tokenizer.decode(read_conversation(turns, NO_OPTIONS, "", formatted, lm.tokenizer)[0]))
    assert "brief" in str(lm.tokenizer.decode(read_conversation(turns, NO_OPTIONS, "keep", formatted, lm.tokenizer)[0]))
    with live(prompts, system_turns="ignore") as server:
        assert ids_for(server, [SYSTEM, *ASK], "review") == ids_for(server, ASK, "review")
        assert ids_for(server, [SYSTEM, *ASK], BASE) != ids_for(server, ASK, BASE)
        server.idle()


def test_an_api_error_names_the_field() -> None:
    with pytest.raises(ApiError, match="not for requests"):
        options_of(chat_template_kwargs={"tools": []})
