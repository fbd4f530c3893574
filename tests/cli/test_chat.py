"""`softprompt chat`: lines in, answers out, memory, and a stop in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.cli import chat as verb
from softprompt.cli.base_model import load_base
from softprompt.cli.escape import escaped
from softprompt.data.records import Message
from softprompt.errors import DataError
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.inference import decoding
from softprompt.inference.chat import ChatSession
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from tests.support.cases import random_prompt
from tests.support.live_server import TEMPLATES
from tests.support.shell import done
from tests.support.tiny import DEVICE, tiny_lm

OPTIONS = ("--dtype", "float32", "--device", DEVICE, "--max-new-tokens", 8)


def talk(name: str, tokens: int = 8) -> ChatSession:
    lm, (form, template) = tiny_lm("llama", bos=True), TEMPLATES[name]
    return ChatSession(
        lm, FormattedPrompt(random_prompt(lm, form, 5, 1), template, layout_for(lm, template, form)), Sampling(tokens)
    )


def said(talk: ChatSession, text: str) -> str:
    pieces = list[str]()
    talk.say(text, pieces.append)
    return "".join(pieces)


def talk_of(name: str) -> ChatSession:
    """What the command talks through."""
    lm = load_base(None, [name], "float32", DEVICE, trust_remote_code=False)
    return ChatSession(lm, load_prompts(lm, [name])[name], Sampling(8))


def stop(_: str) -> None:
    raise KeyboardInterrupt


def test_lines_are_answered(trained: Path) -> None:
    result = done("chat", "ok", *OPTIONS, stdin="question 3\n\nquestion 5\n/exit\nquestion 7\n")
    one = talk_of("ok")
    wanted = [said(one, "question 3"), said(one, "question 5")]
    assert wanted[0] == "ok"
    assert result.stdout == "".join(escaped(text) + "\n" for text in wanted), "the second is read after the first"


def test_commands_are_no_texts(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, resets = list[str](), list[bool]()
    monkeypatch.setattr(ChatSession, "say", lambda self, text, on_text: asked.append(text))
    monkeypatch.setattr(ChatSession, "reset", lambda self: resets.append(True))
    result = done("chat", "ok", *OPTIONS, stdin="question 3\n/reset\n/what\n question 4 \n")
    assert (asked, resets) == (["question 3", "question 4"], [True])
    assert result.stderr.count("/reset starts anew") == 2


def test_a_text_that_does_not_fit_ends_nothing(trained: Path) -> None:
    result = done("chat", "ok", *OPTIONS, stdin="x" * 300 + "\nquestion 3\n")
    assert result.stdout == "ok\n"
    assert "does not fit in the model's context" in result.stderr


def test_ctrl_c_stops_an_answer(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said of it is kept, and the next line is answered."""
    real, hits = verb._write, list[str]()

    def write(text: str) -> None:
        hits.append(text)
        if len(hits) == 1:
            raise KeyboardInterrupt
        real(text)

    monkeypatch.setattr(verb, "_write", write)
    result = done("chat", "ok", *OPTIONS, stdin="question 3\nquestion 5\n")
    one = talk_of("ok")
    with pytest.raises(KeyboardInterrupt):
        one.say("question 3", stop)
    assert one.said[1].content, "the piece that could not be written any more"
    assert result.stdout == "\n" + escaped(said(one, "question 5")) + "\n"
    assert "(stopped)" in result.stderr


@pytest.mark.parametrize("name", ["talk", "kind", "asked", "stern", "review"])
def test_the_first_answer_is_that_of_generate(name: str) -> None:
    one = talk(name)
    (wanted,) = generate(one._lm, {"it": one._formatted}, [Request("Hi", "it")], one._sampling)
    assert said(one, "Hi") == wanted.text


def test_what_was_said_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a prompt for conversations, until it is forgotten."""
    one = talk("talk")
    first = said(one, "Hi")
    assert one.said == [Message("user", "Hi"), Message("assistant", first)]
    assert said(one, "Hi") != first
    one.reset()
    assert said(one, "Hi") == first
    plain = talk("review")
    assert said(plain, "Hi") == said(plain, "Hi"), "each text by itself"


def test_an_interrupted_answer_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    one, pieces = talk("talk", 40), list[str]()

    def stop(new: str) -> None:
        pieces.append(new)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.say("Hi", stop)
    assert one.said == [Message("user", "Hi"), Message("assistant", "".join(pieces))]


def test_what_does_not_fit_is_not_remembered() -> None:
    one = talk("talk")
    said(one, "Hi")
    before = list(one.said)
    with pytest.raises(DataError, match="/reset"):
        one.say("x" * 300, print)
    assert one.said == before


def test_the_prefix_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, sessions = talk("talk"), list[object]()
    real = decoding.start_decoding
    monkeypatch.setattr(decoding, "start_decoding", lambda lm, kv, *rest: sessions.append(kv) or real(lm, kv, *rest))
    said(one, "Hi")
    said(one, "Ho")
    assert sessions == [one._prefix_kv] * 2
