"""Long texts in pieces: nothing is lost, every piece fits, only the last one learns the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.pieces import cut
from softprompt.data.read_options import ReadOptions
from softprompt.data.splits import data_digest, load_rows, load_splits
from softprompt.data.template import Template
from softprompt.data.tokenize import tokenize
from tests.support.bytes_tokenizer import EOS, BytesTokenizer
from tests.support.rows import write_jsonl

NOVEL = "".join(f"Chapter {i}. It rains, and it pours. She said: “No!” Then she left.\n\n" for i in range(40))


@given(st.text("ab é漢.!\n ", max_size=300), st.integers(16, 60))
def test_pieces_joined_are_the_text(text: str, size: int) -> None:
    pieces = cut(text, size)
    assert "".join(pieces) == text
    assert all(len(piece.strip().encode()) <= size for piece in pieces)
    assert all(piece.strip() for piece in pieces) or len(pieces) == 1 or not text


def test_pieces_end_with_paragraphs_then_sentences_then_words() -> None:
    assert all(piece.endswith("\n\n") for piece in cut(NOVEL, 300))
    line = "One two three. Four five six! Seven eight nine? " * 10
    assert {piece.rstrip()[-1] for piece in cut(line, 100)} <= {".", "!", "?"}
    assert all(piece.endswith(" ") for piece in cut("word " * 100, 64)[:-1])
    assert [len(piece) for piece in cut("x" * 100, 40)] == [40, 40, 20]
    assert len(cut(NOVEL, 300)) < 1.4 * len(NOVEL) / 300, "they are nearly full"


@pytest.mark.parametrize(
    ("learn_end", "ends"), [(None, "only the last"), (True, "all"), (False, "none")], ids=["default", "on", "off"]
)
def test_the_end_token_is_a_setting(tmp_path: Path, learn_end: bool | None, ends: str) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(NOVEL)
    rows = load_rows(path, options=ReadOptions(pieces=300, learn_end=learn_end))
    examples = tokenize(rows, Template("text", "{text}"), BytesTokenizer(), max_length=999)
    learned = [example.ids[-1] == EOS for example in examples]
    wanted = {
        "only the last": [False] * (len(rows) - 1) + [True],
        "all": [True] * len(rows),
        "none": [False] * len(rows),
    }
    assert learned == wanted[ends]
    assert all(all(example.mask[1:]) and not example.mask[0] for example in examples)
    assert len({row.where for row in rows}) == len(rows)
    assert rows[1].where == f"{path} piece 2"


def test_texts_are_cut_only_if_asked_for_but_in_txt_files(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", {"text": NOVEL}, {"text": "short"})
    assert [row.ends for row in load_rows(jsonl)] == [True, True]
    assert [row.ends for row in load_rows(jsonl, options=ReadOptions(learn_end=False))] == [False, False]
    pieces = load_rows(jsonl, options=ReadOptions(pieces=2048))
    assert [row.where.removeprefix(f"{jsonl}:") for row in pieces] == ["1 piece 1", "1 piece 2", "2"]
    text = tmp_path / "a.txt"
    text.write_bytes(NOVEL.replace("\n", "\r\n").encode())
    assert [row.fields["text"] for row in load_rows(text)] == [row.fields["text"] for row in pieces[:2]]
    splits = load_splits(text, options=ReadOptions(pieces=300))
    assert len(splits.train) > 5 and splits.validation


def test_ends_are_part_of_what_a_digest_covers(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    whole, endless = load_rows(jsonl), load_rows(jsonl, options=ReadOptions(learn_end=False))
    assert data_digest(whole) != data_digest(endless)


def test_rows_with_answers_are_never_cut(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", {"text": NOVEL, "label": "novel"}, {"text": "b", "label": "poem"})
    assert len(load_rows(jsonl, options=ReadOptions(pieces=64, learn_end=False))) == 2
