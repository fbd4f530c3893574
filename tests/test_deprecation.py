"""Old keyword arguments."""

from __future__ import annotations

import inspect

import pytest

from softprompt.deprecation import RenamedWarning, renamed_keywords


@renamed_keywords(subjects="prompts", own="metrics")
def score(prompts: int, *, metrics: int = 0) -> tuple[int, int]:
    """Scored."""
    return prompts, metrics


def test_an_old_keyword_warns_and_works() -> None:
    with pytest.warns(RenamedWarning, match=r"score\((own|subjects)=\) is now score\((metrics|prompts)=\)") as warned:
        assert score(subjects=1, own=2) == (1, 2)  # pyright: ignore
    assert {warning.filename for warning in warned} == {__file__}, "the caller's line"
    assert score(1) == (1, 0)


def test_both_spellings_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="both 'prompts' and its old name 'subjects'"):
        score(prompts=1, subjects=2)  # pyright: ignore


def test_help_shows_the_new_names() -> None:
    assert list(inspect.signature(score).parameters) == ["prompts", "metrics"]
    assert score.__doc__ == "Scored."
