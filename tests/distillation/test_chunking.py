"""A text in pieces: nothing is lost, nothing is too long, and headings go with what stands under them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softprompt.distillation.chunking import split_chunks


def words(text: str) -> int:
    return len(text.split())


PARAGRAPHS = st.lists(
    st.lists(st.sampled_from(["river", "stone.", "a", "Is", "it?"]), min_size=1, max_size=40), max_size=12
)


@given(PARAGRAPHS, st.integers(8, 60))
def test_every_word_is_there_in_order_and_no_piece_is_too_long(paragraphs: list[list[str]], most: int) -> None:
    text = "\n\n".join(" ".join(p) + " end." for p in paragraphs)
    found = split_chunks(text, most, words)
    assert [word for piece in found for word in piece.split()] == text.split()
    assert all(words(piece) <= most for piece in found)
    assert words(text) > most or found == [text]


def test_a_piece_begins_with_its_heading() -> None:
    text = (
        "# Fees\n\n"
        + "\n\n".join(f"Fee {i} is {i} pounds and no more." for i in range(6))
        + "\n\nCards\n\nA card is blue."
    )
    found = split_chunks(text, 20, words)
    assert len(found) >= 3
    assert all(piece.startswith(("# Fees", "Cards")) for piece in found)
    assert "A card is blue." in found[-1] and "Cards" in found[-1]


def test_a_text_that_fits_stays_as_it_is() -> None:
    assert split_chunks("One.\n\n\nTwo.  Three.", 10, words) == ["One.\n\n\nTwo.  Three."]
