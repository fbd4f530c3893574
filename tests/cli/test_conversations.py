"""Conversations on the command line: the system turn and the chat template that a soft prompt was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from softprompt.cli.escape import escaped
from softprompt.errors import ConfigError, DataError, WrongBaseError
from softprompt.prompts import store
from tests.support.rows import write_jsonl
from tests.support.shell import SHORT, done, json_lines, parsed, refused
from tests.support.tiny import CHATML, tiny_tokenizer

OPTIONS = ("--dtype", "float32", "--max-new-tokens", 6)
KIND = {"role": "system", "content": "Be kind."}
HI = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def kind(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the prompt `kind`, trained on conversations that share a system turn."""
    folder = tmp_path_factory.mktemp("kind")
    rows = [
        {"messages": [KIND, {"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "ok"}]}
        for i in range(12)
    ]
    data, home = write_jsonl(folder / "rows.jsonl", *rows), folder / "prompts"
    output = done("train", "--model", base, "--data", data, "--name", "kind", *SHORT, SOFTPROMPT_HOME=str(home)).output
    assert "all rows have the same system turn" in output.replace("\n", " ")
    return home


@pytest.fixture(autouse=True)
def home(kind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(kind))


def asked(*args: object, messages: list[dict[str, str]] | None = None) -> list[str]:
    """The answers to "Hi", or to a conversation."""
    line = json.dumps({"messages": messages}) if messages else "Hi"
    options = ("--jsonl",) if messages else ()
    lines = json_lines(done("generate", "kind", "-", *options, *OPTIONS, *args, "--json", stdin=line).stdout)
    assert all(row.get("messages") == messages for row in lines)
    return [row["answer"] for row in lines]


def test_the_system_turn_is_kept(kind: Path) -> None:
    assert store.load_card(kind / "kind").template == {"kind": "chat", "text": "", "system": "Be kind."}
    assert asked() == asked(messages=[KIND, HI]) == asked(messages=[HI]) == asked("--system", "Be kind.")
    rude = asked("--system", "Be rude.")
    assert rude == asked(messages=[KIND | {"content": "Be rude."}, HI])
    chat = done("chat", "kind", *OPTIONS, "--system", "Be rude.", stdin="Hi\n").stdout
    assert chat.rstrip("\n") == escaped(rude[0])


def test_several_answers() -> None:
    beams = asked("--num-beams", 3, "--n", 2, "--repetition-penalty", 1.3)
    assert len(beams) == 2
    output = json_lines(done("generate", "kind", "Hi", *OPTIONS, "--n", 2, "--temperature", 2, "--json").stdout)
    assert [line["index"] for line in output] == [0, 1]
    shown = done("generate", "kind", "Hi", *OPTIONS, "--n", 2, "--temperature", 2).stdout
    assert shown.count("Hi") >= 2
    assert isinstance(refused("generate", "kind", "Hi", *OPTIONS, "--n", 2), ConfigError)


def test_another_chat_template(kind: Path, base: Path, tmp_path: Path) -> None:
    """The same weights in another folder, whose tokenizer writes conversations otherwise."""
    assert store.load_card(kind / "kind").chat_template == CHATML
    copy = shutil.copytree(base, tmp_path / "copy")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_end|> ")
    tokenizer.save_pretrained(copy)
    model = ("--model", copy)
    for verb in (("generate", "kind", "Hi"), ("chat", "kind"), ("eval", "kind", "--data", kind.parent / "rows.jsonl")):
        error = refused(*verb, *model, "--dtype", "float32")
        assert isinstance(error, WrongBaseError) and "--chat-template prompt" in str(error.hint)
    assert asked(*model, "--chat-template", "prompt") == asked()
    assert asked(*model, "--chat-template", "model")
    scores = parsed(
        "eval", "kind", "--data", kind.parent / "rows.jsonl", *model, "--dtype", "float32", "--chat-template",
        "prompt", "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    assert scores["soft_prompt"]["rows"] > 0
    assert isinstance(refused("generate", "kind", "Hi", "--chat-template", "mine"), ConfigError)


def test_lines_that_are_no_conversation() -> None:
    for line in ('{"messages": "Hi"}', '{"messages": [{"role": "user"}]}'):
        assert isinstance(refused("generate", "kind", "-", "--jsonl", *OPTIONS, stdin=line), DataError)
