"""N-gram counts of sacrebleu, which come from its private functions: the versions that were tried."""

from __future__ import annotations

import random
from importlib.metadata import version

import pytest
import sacrebleu

from softprompt.errors import MissingExtraError
from softprompt.evaluation.bleu import BleuCounts
from tests.support.missing import uninstall

OLDEST, NEWEST = (2, 5), (2, 6)  # versions of sacrebleu, by (major, minor); try a new one, then raise NEWEST
ANSWERS = ["the cat sat on the mat", "a dog ran fast", "", "the dog sat"]
REFERENCES = [["the cat sat on a mat", "a cat sat"], ["a dog ran", "the dog ran fast"], ["no answer", "none"]]
REFERENCES += [["a dog sat on the mat", "the dog"]]


def test_the_installed_sacrebleu_is_a_version_that_was_tried() -> None:
    major, minor = map(int, version("sacrebleu").split(".")[:2])
    assert OLDEST <= (major, minor) <= NEWEST


@pytest.mark.parametrize("seed", range(5))
def test_any_rows_score_as_sacrebleu_scores_them_alone(seed: int) -> None:
    rows = random.Random(seed).choices(range(4), k=6)
    references = [[REFERENCES[row][i] for row in rows] for i in range(2)]
    expected = sacrebleu.corpus_bleu([ANSWERS[row] for row in rows], references).score
    assert BleuCounts(ANSWERS, REFERENCES).score(rows) == pytest.approx(expected, abs=1e-9)


def test_without_sacrebleu_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall("sacrebleu", monkeypatch)
    with pytest.raises(MissingExtraError, match=r"(?s)sacrebleu is not installed.*pip install 'softprompt\[eval\]'"):
        BleuCounts(ANSWERS, REFERENCES)
