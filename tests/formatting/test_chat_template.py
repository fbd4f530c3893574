"""The chat template that a soft prompt was trained with, system turns, and conversations as input."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.data.default_template import default_template
from softprompt.data.records import Message
from softprompt.data.template import VIRTUAL, Template
from softprompt.data.template_notes import row_notes
from softprompt.errors import ConfigError, DataError, WrongBaseError
from softprompt.formatting.chat_template import chat_template_of, use_chat_template, use_system
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for, no_prompt
from softprompt.formatting.inputs import Turns, input_ids, read_turns
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.server.prompt_reader import load_reader
from tests.support.artifacts import card
from tests.support.cases import random_prompt
from tests.support.reasoning import R1
from tests.support.rows import records
from tests.support.tiny import CHATML, tiny_lm, tiny_model, tiny_tokenizer

OTHER = CHATML.replace("'<|im_start|>' + m['role'] + '\n'", "'<s>' + m['role'] + ': '").replace(
    "'<|im_start|>assistant\n'", "'<s>assistant: '"
)
ASKED, TALK = Template("chat", "Say {text}"), Template("chat")
HI = ({"role": "user", "content": "Hi"},)
KIND = {"role": "system", "content": "Be kind."}


def other_lm(chat_template: str | None = OTHER) -> FrozenLM:
    """The same weights and tokens with another chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    return FrozenLM(tiny_model("llama"), tokenizer, "tiny-llama")


def soft(lm: FrozenLM, template: Template, form: str = "embedding") -> FormattedPrompt:
    return FormattedPrompt(random_prompt(lm, form, 4, 1), template, layout_for(lm, template, form))


def saved(lm: FrozenLM, folder: Path, template: Template, form: str, chat_template: str) -> str:
    formatted = soft(lm, template, form)
    assert formatted.prompt is not None
    facts = card(lm.geometry, layout=formatted.layout, template=template.to_dict(), chat_template=chat_template)
    store.save(folder, formatted.prompt, facts)
    return str(folder)


def written(lm: FrozenLM, formatted: FormattedPrompt, text: str | Turns) -> str:
    prefix = formatted.prefix(lm)
    return str(lm.tokenizer.decode([*prefix.lead, *prefix.follow, *input_ids(text, formatted, lm.tokenizer)]))


@pytest.mark.parametrize("form", ["embedding", "kv"])
@pytest.mark.parametrize("template", [ASKED, TALK, Template("chat", "", "Be kind.")])
def test_another_chat_template_is_noticed(form: str, template: Template, tmp_path: Path) -> None:
    """And the user chooses: the soft prompt's own gives its answers, the model's writes everything anew."""
    here, there = tiny_lm("llama"), other_lm()
    name = saved(here, tmp_path / "it", template, form, CHATML)
    with pytest.raises(WrongBaseError) as caught:
        load_prompts(there, [name])
    assert "im_start" in str(caught.value.expected) and "<s>" in str(caught.value.got)
    assert "--chat-template prompt" in str(caught.value.hint) and "model the model's" in str(caught.value.hint)
    with pytest.raises(WrongBaseError):
        load_reader(there, tmp_path / "it")
    wanted = generate(here, load_prompts(here, [name]), [Request("Hi")], Sampling(8))
    own = load_prompts(there, [name], chat_template="prompt")
    assert generate(there, own, [Request("Hi")], Sampling(8)) == wanted
    models = load_prompts(there, [name], chat_template="model")[name]
    assert written(there, models, "Hi") == written(there, no_prompt(there, template), "Hi")
    assert "im_start" not in written(there, models, "Hi")
    assert load_reader(there, tmp_path / "it", "model").text("Hi", "here").end_ids


def test_a_model_that_has_lost_its_chat_template(tmp_path: Path) -> None:
    here, there = tiny_lm("llama"), other_lm(None)
    name = saved(here, tmp_path / "it", TALK, "embedding", CHATML)
    with pytest.raises(WrongBaseError, match="no chat template"):
        load_prompts(there, [name])
    own = load_prompts(there, [name], chat_template="prompt")
    assert generate(there, own, [Request("Hi")], Sampling(4)) == generate(
        here, load_prompts(here, [name]), [Request("Hi")], Sampling(4)
    )


def test_a_card_without_a_chat_template_goes_with_any(tmp_path: Path) -> None:
    """As those of softprompt 0.1; and prompts of plain text have none."""
    here = tiny_lm("llama")
    name = saved(here, tmp_path / "old", TALK, "embedding", "")
    assert load_prompts(other_lm(), [name])[name].template == TALK
    assert load_prompts(other_lm(), [name], chat_template="prompt")[name].template == TALK
    saved(here, tmp_path / "same", TALK, "embedding", CHATML + "\n")
    assert load_prompts(here, [str(tmp_path / "same")]), "white space at the end writes nothing"


def test_a_strangers_chat_template_is_not_rendered(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    name = saved(lm, tmp_path / "it", ASKED, "embedding", "{{ raise_exception('rendered') }}")
    with pytest.raises(WrongBaseError) as caught:
        load_prompts(lm, [name])
    assert "{{ raise_exception" in str(caught.value.expected)
    assert load_prompts(lm, [name], chat_template="model")
    with pytest.raises(DataError, match="rendered"):
        load_prompts(lm, [name], chat_template="prompt")


def test_the_choice_as_typed() -> None:
    assert chat_template_of("model") == "model"
    with pytest.raises(ConfigError, match="prompt or model"):
        chat_template_of("mine")


def test_a_shared_system_turn_is_kept() -> None:
    rows = records(*({"messages": [KIND, *HI, {"role": "assistant", "content": word}]} for word in ("Yo", "Ha")))
    lm = tiny_lm("llama")
    template = default_template(rows, lm.tokenizer)
    assert template == Template("chat", system="Be kind.")
    assert "kept with the soft prompt" in row_notes(rows, template, lm.tokenizer, 2)[0]
    formatted = soft(lm, template)
    assert written(lm, formatted, "Hi") == written(lm, formatted, [KIND, *HI])
    assert "Be kind." in written(lm, formatted, HI)
    other = use_system(formatted, "Be rude.", lm)
    assert written(lm, other, "Hi") == written(lm, formatted, "Hi").replace("kind", "rude")
    assert written(lm, other, [KIND, *HI]) == written(lm, formatted, "Hi"), "a conversation's own goes first"


def test_system_turns_that_differ_are_needed() -> None:
    rows = records(
        *(
            {"messages": [{"role": "system", "content": mood}, *HI, {"role": "assistant", "content": "Yo"}]}
            for mood in ("Be kind.", "Be rude.")
        )
    )
    lm = tiny_lm("llama")
    template = default_template(rows, lm.tokenizer)
    assert template == Template("chat", system_from="rows")
    assert "needs one" in row_notes(rows, template, lm.tokenizer, 2)[0]
    assert Template.from_dict(template.to_dict()) == template
    formatted = soft(lm, template)
    for text in ("Hi", HI):
        with pytest.raises(DataError, match=r"(?s)each brought a system turn.*--system TEXT"):
            input_ids(text, formatted, lm.tokenizer)
    assert "Be kind." in written(lm, formatted, [KIND, *HI])
    assert written(lm, use_system(formatted, "Be kind.", lm), "Hi") == written(lm, formatted, [KIND, *HI])


def test_some_rows_with_a_system_turn() -> None:
    rows = records(
        {"messages": [KIND, *HI, {"role": "assistant", "content": "Yo"}]},
        {"messages": [*HI, {"role": "assistant", "content": "Yo"}]},
    )
    lm = tiny_lm("llama")
    assert default_template(rows, lm.tokenizer) == Template("chat")
    assert "1 of 2 rows have a system turn" in row_notes(rows, Template("chat"), lm.tokenizer, 2)[0]


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_a_system_turn_for_a_template_with_text(form: str) -> None:
    """Where the opening is part of the prefix."""
    lm = tiny_lm("llama")
    formatted = use_system(soft(lm, ASKED, form), "Be kind.", lm)
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSay Hi<|im_end|>\n<|im_start|>assistant\n"
    assert written(lm, formatted, "Hi") == written(lm, formatted, HI) == text
    assert generate(lm, {"it": formatted}, [Request("Hi")], Sampling(4))


def test_where_no_system_turn_can_be() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(ConfigError, match="plain text"):
        use_system(soft(lm, Template("text", "{text}")), "Be kind.", lm)
    with pytest.raises(ConfigError, match="stands in the system turn"):
        use_system(soft(lm, Template("chat", "", VIRTUAL)), "Be kind.", lm)


@pytest.mark.parametrize("template", [ASKED, TALK, Template("text", "Say {text}:")])
def test_conversations_as_requests(template: Template) -> None:
    """One batch with texts; a conversation of one turn is a text."""
    lm = tiny_lm("llama")
    formatted = {"it": soft(lm, template)}
    talk = [*HI, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "And?"}]
    first, text, turns, same = generate(
        lm,
        formatted,
        [Request(HI), Request("Hi"), Request(talk, "it"), Request([Message("user", "Hi")])],
        Sampling(8),
    )
    assert first == text == same
    assert (turns == first) is False
    if template.kind == "chat":
        assert "Yo" in written(lm, formatted["it"], talk)


@pytest.mark.parametrize(
    ("turns", "part"),
    [
        ([], "list of messages"),
        ([{"role": "user"}], "content"),
        ([{"role": "friend", "content": "Hi"}], "role"),
        ([*HI, {"role": "assistant", "content": "Yo"}], "last turn must be the user's"),
        ([*HI, KIND, *HI], "at most first"),
    ],
)
def test_conversations_that_are_none(turns: Turns, part: str) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(DataError, match=part) as caught:
        generate(lm, {"it": soft(lm, TALK)}, [Request(turns, where="stdin:3")], Sampling(2))
    assert str(caught.value.where).startswith("stdin:3")


def test_turns_as_messages() -> None:
    assert read_turns([KIND, Message("user", "Hi")]) == (Message("system", "Be kind."), Message("user", "Hi"))


def test_a_prompt_of_softprompt_0_1_keeps_an_opened_thought() -> None:
    lm = other_lm(R1)
    formatted = soft(lm, ASKED)
    assert formatted.prompt is not None
    facts = card(lm.geometry, layout=formatted.layout, template=ASKED.to_dict())
    for version, end in (("0.1.0", "<think>\n"), ("0.2.0", "<think>\n\n</think>\n\n")):
        loaded = from_card(formatted.prompt, facts.model_copy(update={"versions": {"softprompt": version}}))
        assert written(lm, use_chat_template(loaded, "", lm), "Hi").endswith(f"<|im_start|>{end}")
