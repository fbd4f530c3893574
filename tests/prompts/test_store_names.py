"""From a name to a folder: no name leads out of the home of the prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import StoreError
from softprompt.prompts import store

GOOD_NAMES = ("a", "0", "tone", "tone.v2", "a-b_c.d", "a" * 64)
BAD_NAMES = {
    "empty": "",
    "parent": "..",
    "here": ".",
    "hidden": ".tone",
    "uppercase": "Tone",
    "long": "a" * 65,
    "NUL": "tone\0",
    "NUL in a path": "./tone\0",
    "newline": "tone\n",
    "space": "to ne",
    "dash first": "-rf",
    "Cyrillic twin": "t\u043ene",
    "full-width twin": "\uff54one",
    "combining": "tone\u0301",
    "Arabic digit": "tone\u0661",
    "Kelvin sign": "\u212a",
    "backslash": "..\\tone",
    "drive": "c:tone",
}


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_a_bad_name_is_refused(kind: str) -> None:
    with pytest.raises(StoreError, match="not a usable name"):
        store.locate(BAD_NAMES[kind])


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_a_folder_at_home(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))
    assert store.locate(name) == tmp_path / name
    monkeypatch.setenv("SOFTPROMPT_HOME", "")
    assert store.locate(name) == Path("prompts") / name
    monkeypatch.delenv("SOFTPROMPT_HOME")
    assert store.locate(name) == Path("prompts") / name


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("a.-_0A~\\ \0\n:\u043e"), max_size=6) | st.text(max_size=6))
def test_no_name_without_a_slash_leads_out_of_home(name: str) -> None:
    if "/" in name:
        return
    try:
        path = store.locate(name)
    except StoreError:
        return
    assert path.parent == store.home()
    assert path.name == name
    assert path.resolve().parent == store.home().resolve()


@pytest.mark.parametrize("path", ["/srv/prompts/Tone", "./tone", "../tone", "a/b"])
def test_what_has_a_slash_is_a_path_as_it_is(path: str) -> None:
    assert store.locate(path) == Path(path)
