"""Function calls over HTTP: shown as the chat template writes them, made as the request wants, told from words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel, Field

from softprompt.data.template import Template
from softprompt.engine.constraint import GrammarCompiler
from softprompt.formatting.formatted_prompt import no_prompt
from softprompt.formatting.inputs import input_ids
from softprompt.server.chat_format import ChatFormat
from softprompt.server.structured_output import RequestedGrammar
from softprompt.server.tools import ToolFields, tool_use
from tests.support.calling import calling_tokenizer, roomy_lm
from tests.support.grammars import kept
from tests.support.live_server import BASE, TEMPLATES, USER, Live, live, save_prompt
from tests.support.reasoning import QWEN3
from tests.support.tiny import tiny_lm, tiny_tokenizer

CHAT = "/v1/chat/completions"
SAY = {"role": "user", "content": "Hi"}
FEW = {str(token): -40 for token in tiny_tokenizer().encode(" \n\r\t", add_special_tokens=False)}  # spaces in JSON
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 4}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
SCHEMAS = {"weather": CITY, "clock": {"type": "object", "maxProperties": 0}}


def said(server: Live, **fields: Any) -> list[dict[str, Any]]:
    """The choices of an answer, whose stream must be the same."""
    body = {"model": BASE, "messages": [SAY], "tools": TOOLS, "max_tokens": 120, "seed": 3, "logit_bias": FEW}
    reply = server.ask("POST", CHAT, body | fields)
    assert reply.status == 200, reply.raw
    choices = reply.json["choices"]
    events = server.ask("POST", CHAT, body | fields | {"stream": True}).events
    for choice in choices:
        message = choice["message"]
        parts = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        deltas = [part["delta"] for part in parts]
        assert "".join(delta.get("content", "") for delta in deltas) == (message["content"] or "")
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.get("reasoning_content", "")
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        made = joined([delta["tool_calls"] for delta in deltas if "tool_calls" in delta])
        assert [call["function"] for call in made] == [call["function"] for call in message.get("tool_calls", [])]
        assert len({call["id"] for call in made}) == len(made)
    return choices


def joined(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Calls from the parts of a stream, as OpenAI's clients join them."""
    made: list[dict[str, Any]] = []
    for (part,) in parts:
        if part["index"] == len(made):
            assert part.keys() == {"index", "id", "type", "function"} and part["type"] == "function"
            assert part["function"].keys() == {"name", "arguments"} and part["function"]["arguments"] == ""
            made.append({"id": part["id"], "function": dict(part["function"])})
        else:
            assert part.keys() == {"index", "function"} and part["function"].keys() == {"arguments"}
            assert part["index"] == len(made) - 1 and part["function"]["arguments"]
            made[-1]["function"]["arguments"] += part["function"]["arguments"]
    return made


def calls(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"].get("tool_calls", [])
    ]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose model's chat template knows no tools, with a soft prompt of each kind."""
    lm, folder = roomy_lm(tiny_tokenizer(bos=True)), tmp_path_factory.mktemp("roomy")
    for seed, name in enumerate(("talk", "review", "asked", "kind"), 1):
        save_prompt(folder / name, *TEMPLATES[name], seed, lm)
    with live(folder, lm=lm) as server:
        yield server


@pytest.fixture
def server(roomy: Live) -> Iterator[Live]:
    yield roomy
    roomy.engine.says = ""
    roomy.engine.seen.clear()


@pytest.fixture(scope="module", params=["qwen", "llama3", "mistral", "xml"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Live]]:
    """A server whose model's chat template knows tools."""
    lm = roomy_lm(calling_tokenizer(request.param))
    with live(tmp_path_factory.mktemp("none"), lm=lm) as server:
        yield request.param, server
        server.idle()


def test_calls_that_must_be_made(server: Live) -> None:
    """Behind soft prompts of conversations and of texts, and the base model: always whole, with fitting arguments."""
    for model in ("talk", "review"):
        for choice in said(server, model=model, tool_choice="required", n=2, parallel_tool_calls=False):
            assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
            ((name, arguments),) = calls(choice)
            jsonschema_rs.validate(SCHEMAS[name], arguments)
        (choice,) = said(server, model=model, tool_choice={"type": "function", "function": {"name": "weather"}})
        ((name, arguments),) = calls(choice)
        jsonschema_rs.validate(CITY, arguments)
        assert name == "weather"


def test_several_calls_at_once(server: Live) -> None:
    """One after another, as long as the model goes on."""
    (newline,) = tiny_lm("llama", bos=True).encode("\n")
    (choice,) = said(server, tools=[CLOCK], tool_choice="required", logit_bias={str(newline): 30}, max_tokens=200)
    assert calls(choice)[:2] == [("clock", {})] * 2


def test_every_family_makes_calls(family: tuple[str, Live]) -> None:
    _, server = family
    (choice,) = said(server, tool_choice="required", parallel_tool_calls=False, max_tokens=150)
    assert choice["finish_reason"] == "tool_calls", choice
    ((called, arguments),) = calls(choice)
    jsonschema_rs.validate(SCHEMAS[called], arguments)


WRITTEN = '{"name": "weather", "arguments": {"city": "Rome", "days": 1}}'
ROME = ("weather", {"city": "Rome", "days": 1})
ODD = ("weather", {"city": '}"{', "days": 2})
FREE = {
    "qwen": f"<tool_call>\n{WRITTEN}\n</tool_call>",
    "llama3": WRITTEN.replace("arguments", "parameters"),
    "mistral": f"[TOOL_CALLS][{WRITTEN}]",
}


def test_every_family_is_read(family: tuple[str, Live]) -> None:
    """What is written in the family's way is a call; without tools it is text."""
    name, server = family
    if name == "xml":
        reply = server.ask("POST", CHAT, {"model": BASE, "messages": [SAY], "tools": TOOLS})
        assert (reply.status, reply.json["error"]["param"]) == (400, "tools")
        return
    server.engine.says = FREE[name]
    (choice,) = said(server)
    assert (calls(choice), choice["finish_reason"], choice["message"]["content"]) == ([ROME], "tool_calls", None)
    server.engine.says = "It is {warm}."
    (choice,) = said(server)
    assert (calls(choice), choice["finish_reason"], choice["message"]["content"]) == ([], "stop", "It is {warm}.")
    server.engine.says = FREE[name]
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        (choice,) = said(server, **fields)
        assert calls(choice) == [] and choice["finish_reason"] == "stop"
    server.engine.says = ""


STRICT = [{"type": "function", "function": WEATHER["function"] | {"strict": True}}, CLOCK]
TIME = '{"name": "clock", "arguments": {"any": [1]}}'


def test_strict_functions_that_need_not_be_called(family: tuple[str, Live]) -> None:
    """Words are free; what begins a call goes on as one, of the strict function with arguments of its schema."""
    name, server = family
    body = {"model": BASE, "messages": [SAY], "max_tokens": 1}
    if name == "xml":
        server.engine.lm.tokenizer.response_template = {"fields": {"content": {"content": "text"}}}
        reply = server.ask("POST", CHAT, body | {"tools": STRICT})
        del server.engine.lm.tokenizer.response_template
        assert (reply.status, reply.json["error"]["param"]) == (400, "tools")
        assert "Leave strict out" in reply.json["error"]["message"]
        return
    for tools, choice, held in ((STRICT, "auto", True), (STRICT, "none", False), (TOOLS, "auto", False)):
        assert server.ask("POST", CHAT, body | {"tools": tools, "tool_choice": choice}).status == 200
        assert (server.engine.seen[-1].constraint is not None) == held
    assert server.ask("POST", CHAT, body | {"tools": STRICT}).status == 200
    constraint = server.engine.seen[-1].constraint
    assert constraint is not None
    lm, says = server.engine.lm, FREE[name]
    wrong = says.replace('"days": 1', '"days": 3')
    other = says.replace("weather", "rm")
    for text in ("", "It is {warm} <b>.\n", says, says.replace(says[says.index("{") : says.rindex("}") + 1], TIME)):
        text = text.replace("arguments", "parameters") if name == "llama3" else text
        assert kept(lm, constraint.lark, text) == (text, True)
    for text, end in ((wrong, wrong.index("3")), (other, other.index("rm"))):
        assert kept(lm, constraint.lark, text) == (text[:end], False)
    if name == "qwen":
        (single,) = server.ask("POST", CHAT, body | {"tools": STRICT, "parallel_tool_calls": False}).json["choices"]
        assert single["finish_reason"] == "length"
        assert kept(lm, constraint.lark, f"Hm. {says}\n{says} So") == (f"Hm. {says}\n{says} So", True)
        again = f"Hm. {says} {wrong}"
        assert kept(lm, constraint.lark, again) == (again[: again.rindex("3")], False)


def test_a_strict_function_with_a_schema_that_cannot_be_kept(server: Live) -> None:
    bad = {"type": "function", "function": {"name": "a", "strict": True, "parameters": {"not": {}}}}
    for tools, status in (([bad], 400), ([{**bad, "function": bad["function"] | {"strict": False}}], 200)):
        reply = server.ask("POST", CHAT, {"model": "talk", "messages": [SAY], "tools": tools, "max_tokens": 1})
        assert reply.status == status
    reply = server.ask("POST", CHAT, {"model": "talk", "messages": [SAY], "tools": [bad], "max_tokens": 1})
    assert reply.json["error"]["param"] == "tools" and "not" in reply.json["error"]["message"]


def test_a_tokenizers_own_response_template(tmp_path: Path) -> None:
    """Reads calls that are no JSON; what it cannot read stays text."""
    tokenizer = calling_tokenizer("xml")
    function = {"name": "{name}", "arguments": "{content}"}
    calling = {"open_pattern": r"<call=(?P<name>\w+)>", "close": "</call>", "repeats": True, "content": "json"}
    calling |= {"transform": {"type": "function", "function": function}}
    fields = {"content": {"content": "text"}, "tool_calls": calling}
    tokenizer.response_template = {"start_anchor": "assistant\n", "fields": fields}
    with live(tmp_path, lm=roomy_lm(tokenizer)) as server:
        for text, wanted in (("Well. <call=clock>{}</call>", [("clock", {})]), ("<call=clock>{x</call> so", [])):
            server.engine.says = text
            (choice,) = said(server)
            assert calls(choice) == wanted
            assert ("x" in (choice["message"]["content"] or "")) == (not wanted)
        server.engine.says = ""
        (choice,) = said(server, tool_choice="required", parallel_tool_calls=False)
        assert choice["finish_reason"] == "tool_calls"


def test_a_conversation_is_written_as_in_training(family: tuple[str, Live]) -> None:
    _, server = family
    lm = server.engine.lm
    made = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 1}}}
    sent = made | {"function": {"name": "weather", "arguments": json.dumps(made["function"]["arguments"])}}
    turns = [SAY, {"role": "assistant", "content": None, "tool_calls": [sent]}]
    turns += [{"role": "tool", "tool_call_id": "c1", "content": "sunny"}]
    body = {"model": BASE, "messages": turns, "tools": TOOLS, "tool_choice": "required", "max_tokens": 1}
    assert server.ask("POST", CHAT, body).status == 200
    row = [SAY, {"role": "assistant", "content": "", "tool_calls": [made]}]
    row += [{"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "sunny"}]
    formatted = no_prompt(lm, Template("chat"))
    wanted = input_ids(row, formatted, lm.tokenizer, tools=TOOLS)
    assert list(server.engine.seen[-1].ids) == [*formatted.prefix(lm).lead, *formatted.prefix(lm).follow, *wanted]


def seen(server: Live) -> str:
    text = tiny_tokenizer().decode(list(server.engine.seen[-1].ids))
    assert isinstance(text, str)
    return text


def test_a_chat_template_without_tools(server: Live) -> None:
    """Definitions are words of the system turn, calls the assistant's, results the user's."""
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        {"role": "system", "content": "Be brief."},
        SAY,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    for tools in (TOOLS, None):
        body = {"model": "talk", "messages": turns, "tools": tools, "max_tokens": 1}
        assert server.ask("POST", CHAT, body).status == 200
        text = seen(server)
        assert ("system\nBe brief.\n\nYou may call" in text) == ('"name": "weather", "description": "Now."' in text)
        assert ("You may call" in text) == bool(tools)
        assert 'assistant\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>' in text
        assert text.endswith("user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert server.ask("POST", CHAT, {"model": "kind", "messages": [SAY], "tools": TOOLS, "max_tokens": 1}).status == 200
    assert "system\nBe kind.\n\nYou may call" in seen(server)


@pytest.mark.parametrize(
    ("text", "wanted", "content"),
    [
        (f"<tool_call>\n{WRITTEN}\n</tool_call>", [ROME], None),
        (f" Let me see.\n<tool_call>{WRITTEN}</tool_call>\n", [ROME], " Let me see."),
        (f"<tool_call>{WRITTEN}</tool_call>\n<tool_call>{WRITTEN}", [ROME, ROME], None),
        ('<tool_call>{"name": "clock"}</tool_call>', [("clock", {})], None),
        ('<tool_call>{"name": "weather", "arguments": 5}</tool_call>', [], None),
        ('<tool_call>{"name": "weath", "arguments": {</tool_call>', [], None),
        ('<tool_call>{"name": "weather", "argum', [], None),
        (f'<tool_call>[{{"name": "rm"}}, {WRITTEN}]</tool_call>', [ROME], '{"name": "rm"}'),
        ('<tool_call>{"arguments": {"city": "Rome", "days": 1}, "name": "weather"}</tool_call> x', [ROME], "x"),
        ('<tool_call>{"name": "clock", "parameters": {}, "id": {"}": 5}}\n</tool_call>', [("clock", {})], None),
        (r'<tool_call>{"name": "w\u0065ather", "arguments": {"city": "}\"{", "days": 2}}', [ODD], None),
        (r'<tool_call>{"name": "\x", "arguments": {}}</tool_call>', [], None),
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call> x ', [], None),
        ("<tool_call>[1]</tool_call>", [], None),
        ("a <tool_call b", [], None),
        ("  \n", [], None),
        ("[" * 800 + "<tool_call>" + "[" * 1500, [], None),
    ],
)
def test_what_is_a_call_and_what_stays_text(text: str, wanted: list[Any], content: str | None, server: Live) -> None:
    """What does not parse, or calls what the request did not define, is text, and not a character is lost."""
    server.engine.says = text
    (choice,) = said(server, logprobs=True)
    assert calls(choice) == wanted
    assert choice["message"]["content"] == (content if wanted else text)
    assert choice["finish_reason"] == ("tool_calls" if wanted else "stop")
    assert len(choice["logprobs"]["content"]) == len(tiny_lm("llama", bos=True).encode(text))


@pytest.mark.parametrize("parallel", [True, False])
def test_arguments_come_as_they_are_made(parallel: bool, server: Live) -> None:
    """A byte tokenizer: every letter of the arguments in an event of its own, and of both APIs the same."""
    server.engine.says = f"Well.\n<tool_call>{WRITTEN}</tool_call>\n<tool_call>{WRITTEN}</tool_call> So"
    made = 2 if parallel else 1
    body = {"model": "talk", "messages": [SAY], "tools": TOOLS, "stream": True, "parallel_tool_calls": parallel}
    events = server.ask("POST", CHAT, body | {"logprobs": True}).events
    arguments = WRITTEN[WRITTEN.index('{"city') : -1]
    parts = [event["choices"][0]["delta"] for event in events if "tool_calls" in event["choices"][0]["delta"]]
    assert [part["tool_calls"][0]["function"]["arguments"] for part in parts] == ["", *arguments] * made
    scored = [token for event in events for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert len(scored) == len(tiny_lm("llama", bos=True).encode(server.engine.says))
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    asked = {"model": "talk", "input": "Hi", "tools": flat, "stream": True, "parallel_tool_calls": parallel}
    raw = server.ask("POST", "/v1/responses", asked).raw.decode().strip().split("\n\n")
    news = [json.loads(one.split("\ndata: ")[1]) for one in raw]
    deltas = [event["delta"] for event in news if event["type"] == "response.function_call_arguments.delta"]
    assert deltas == list(arguments) * made
    items = news[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["message", *["function_call"] * made, "message"]
    for number, item in enumerate(items[1:-1], 1):
        own = [event for event in news if event.get("output_index") == number]
        kinds = [event["type"].removeprefix("response.") for event in own]
        growing = ["function_call_arguments.delta"] * len(arguments) + ["function_call_arguments.done"]
        assert kinds == ["output_item.added", *growing, "output_item.done"]
        assert own[0]["item"] == item | {"arguments": "", "status": "in_progress"}
        assert own[-1]["item"] == item and own[-2]["arguments"] == item["arguments"] == arguments
        assert own[-2]["name"] == "weather" and item["status"] == "completed"


def test_a_call_that_is_cut(server: Live) -> None:
    """Its arguments so far, as from OpenAI: under a grammar and, cut or wrong, in what a model writes by itself."""
    opening = '<tool_call>\n{"name": "weather", "arguments": {"city"'
    most = len(opening)
    choice_of = {"type": "function", "function": {"name": "weather"}}
    (choice,) = said(server, tool_choice=choice_of, max_tokens=most, logit_bias=None)
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["arguments"][:1], choice["finish_reason"]) == ("{", "length")
    assert choice["message"]["content"] is None and len(call["function"]["arguments"]) > 3
    (choice,) = said(server, tool_choice=choice_of, max_tokens=20)
    assert choice["message"]["content"] == opening[:20] and "tool_calls" not in choice["message"]
    flat = {"type": "function", **WEATHER["function"]}
    asked = {"model": "talk", "input": "Hi", "tools": [flat], "max_output_tokens": most, "tool_choice": "required"}
    reply = server.ask("POST", "/v1/responses", asked).json
    assert (reply["status"], reply["output"][0]["status"]) == ("incomplete", "incomplete")
    server.engine.says = '<tool_call>{"name": "weather", "arguments": {"city": Rome}}</tool_call> so'
    (choice,) = said(server)
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["arguments"], choice["message"]["content"]) == ('{"city": Rome}', "so")
    assert choice["finish_reason"] == "tool_calls"


def test_one_call_where_several_are_not_wanted(server: Live) -> None:
    server.engine.says = f"<tool_call>{WRITTEN}</tool_call>" * 3
    (choice,) = said(server, parallel_tool_calls=False)
    assert calls(choice) == [ROME]


def test_a_call_or_an_answer_of_a_format(server: Live) -> None:
    """As agents want it: tools beside a response_format."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    (opening,) = tiny_lm("llama", bos=True).encode("<")
    kinds = set()
    for bias in (60, -60):
        (choice,) = said(
            server, response_format=wanted, logit_bias=FEW | {str(opening): bias}, parallel_tool_calls=False
        )
        kinds.add(choice["finish_reason"])
        if choice["finish_reason"] == "stop":
            jsonschema_rs.validate(schema, json.loads(choice["message"]["content"]))
    assert kinds == {"stop", "tool_calls"}


def test_the_older_fields(server: Live) -> None:
    body = {
        "model": "talk",
        "messages": [SAY],
        "functions": [WEATHER["function"]],
        "max_tokens": 120,
        "logit_bias": FEW,
    }
    reply = server.ask("POST", CHAT, body | {"function_call": {"name": "weather"}}).json["choices"][0]
    made = reply["message"]["function_call"]
    assert reply["finish_reason"] == "function_call" and made["name"] == "weather"
    jsonschema_rs.validate(CITY, json.loads(made["arguments"]))
    turns = [SAY, {"role": "assistant", "content": None, "function_call": made}]
    turns += [{"role": "function", "name": "weather", "content": "sunny"}]
    assert server.ask("POST", CHAT, body | {"messages": turns, "max_tokens": 1}).status == 200
    assert "<tool_response>\nsunny" in seen(server)
    events = server.ask("POST", CHAT, body | {"function_call": {"name": "weather"}, "stream": True, "seed": 1}).events
    parts = [event["choices"][0]["delta"].get("function_call", {}) for event in events]
    assert [part["name"] for part in parts if "name" in part] == ["weather"]
    assert json.loads("".join(part.get("arguments", "") for part in parts)).keys() == {"city", "days"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [CLOCK], "functions": []}, "functions"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "x"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"tools": [CLOCK], "structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs.grammar"),
        (
            {"messages": [SAY | {"tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [SAY | {"tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}, SAY]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_is_no_tool(fields: dict[str, Any], param: str, server: Live) -> None:
    reply = server.ask("POST", CHAT, {"model": "talk", "messages": [SAY], "max_tokens": 1} | fields)
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.raw


def test_soft_prompts_of_texts_are_shown_no_tools(server: Live) -> None:
    for model in ("review", "asked"):
        reply = server.ask("POST", CHAT, {"model": model, "messages": [SAY], "tools": TOOLS, "max_tokens": 1})
        assert (reply.status, reply.code) == (400, "unsupported_parameter")
        assert "tool_choice required" in reply.json["error"]["message"]


def test_the_official_client_to_the_end(server: Live) -> None:
    """A call, its result, an answer; and the helper for streams."""

    class weather(BaseModel):  # noqa: N801 - the function's name
        """The weather now."""

        city: str = Field(max_length=4)

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER)
    tool = openai.pydantic_function_tool(weather)
    messages: list[Any] = [SAY]
    options: dict[str, Any] = {"model": "talk", "tools": [tool], "max_tokens": 100, "logit_bias": FEW}
    first = client.chat.completions.parse(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **options
    )
    (call,) = list(first.choices[0].message.tool_calls or [])
    assert isinstance(call.function.parsed_arguments, weather)
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    server.engine.says = "It is sunny."
    last = client.chat.completions.create(messages=messages, **options)
    assert last.choices[0].message.content == "It is sunny."
    server.engine.says = '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call>'
    with client.chat.completions.stream(messages=[SAY], **options) as stream:  # type: ignore[arg-type]
        events = [event.type for event in stream]
        made = list(stream.get_final_completion().choices[0].message.tool_calls or [])
    assert "tool_calls.function.arguments.done" in events
    assert made[0].function.parsed_arguments == weather(city="Rom")
    client.close()


def test_the_other_api(server: Live) -> None:
    """/v1/responses: a call as an item, whole and streamed, its result, an answer."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER)
    tool: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    server.engine.says = f"<tool_call>{WRITTEN}</tool_call>"
    first = client.responses.create(model="talk", input="Hi", tools=[tool])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments), first.status) == (*ROME, "completed")
    with client.responses.stream(model="talk", input="Hi", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output[0].type == "function_call"
    assert "response.function_call_arguments.done" in kinds
    server.engine.says = "It is sunny."
    given: Any = [{"role": "user", "content": "Hi"}, call.model_dump(exclude={"parsed_arguments"}, exclude_none=True)]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert client.responses.create(model="talk", input=given, tools=[tool]).output_text == "It is sunny."
    client.close()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose model's chat template has thoughts."""
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = QWEN3
    with live(tmp_path_factory.mktemp("none"), lm=roomy_lm(tokenizer)) as server:
        yield server
        server.idle()


@pytest.mark.parametrize(
    ("text", "thought", "content"),
    [
        ("<think>\nHm, 2.\n</think>\n\nTwo. ", "Hm, 2.", "Two. "),
        ("<think>\n\n</think>\n\nTwo", "", "Two"),
        ("Two <think", "", "Two <think"),
        ("<think>\nHm", "Hm", ""),
    ],
)
def test_thoughts(text: str, thought: str, content: str, thinker: Live) -> None:
    thinker.engine.says = text
    (choice,) = said(thinker, tools=None)
    assert (choice["message"].get("reasoning_content", ""), choice["message"]["content"]) == (thought, content)
    thinker.engine.says = f"<think>a</think>\n<tool_call>{WRITTEN}</tool_call>"
    (choice,) = said(thinker)
    assert (choice["message"]["reasoning_content"], calls(choice)) == ("a", [ROME])
    asked = {"model": BASE, "input": "Hi", "tools": [{"type": "function", **TOOLS[0]["function"]}]}
    made = thinker.ask("POST", "/v1/responses", asked).json
    assert [item["type"] for item in made["output"]] == ["reasoning", "function_call"]
    assert made["output"][0]["content"] == [{"type": "reasoning_text", "text": "a"}]
    assert len({item["id"] for item in made["output"]}) == 2
    turns = [
        SAY,
        choice["message"],
        {"role": "tool", "content": "x", "tool_call_id": choice["message"]["tool_calls"][0]["id"]},
    ]
    assert thinker.ask("POST", CHAT, {"model": BASE, "messages": turns, "tools": TOOLS}).status == 200
    thinker.engine.says = ""


@pytest.mark.parametrize("special", [False, True])
def test_a_format_begins_after_the_thought(special: bool) -> None:
    """Of a model that thinks first; also where the tags are control tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    lm, wanted = roomy_lm(tokenizer), RequestedGrammar('start: "yes" | "no"', "x", '"yes" | "no"')
    plain = ChatFormat(Template("chat"), tokenizer)
    assert plain.grammar(None, wanted) == wanted == plain.thinking(False).grammar(None, wanted)
    grammar = plain.thinking(True).grammar(None, wanted)
    assert grammar is not None
    state = GrammarCompiler(lm).compile(grammar.lark).begin()
    for token in lm.encode('<think>\nWell, <b> {"a"}: yes\n</think>\n\nno'):
        assert state.allowed(lm.geometry.vocab, {2}, may_end=True)[token], tokenizer.decode([token])
        state.accept(token)
    assert state.allowed(lm.geometry.vocab, {2}, may_end=True).nonzero().flatten().tolist() == [2]
    tools = tool_use(ToolFields.model_validate({"tools": STRICT}))
    strict = plain.thinking(True).grammar(tools, None)
    assert strict is not None
    said = f"<think>\n<tool_call>\n{{</think>\n\nWell. <tool_call>\n{WRITTEN}\n</tool_call>"
    assert kept(lm, strict.lark, said) == (said, True)
    said = said.replace("weather", "rm")
    assert kept(lm, strict.lark, said) == (said[: said.index("rm")], False)
