"""N-gram counts of each row for corpus BLEU, so that resampled rows are scored without counting again.

sacrebleu has no public function for the counts of single rows. This module is the only one that calls its private
ones; `tests/evaluation/test_bleu.py` names the versions that it was run with.

Shapes: R rows, S counts of a row (lengths of answer and reference, and matches and totals of each n-gram order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import missing_extra

if TYPE_CHECKING:
    from sacrebleu import BLEU


class BleuCounts:
    """The n-gram counts of every row, with sacrebleu's default tokenizer and smoothing.

    Raises MissingExtraError if sacrebleu is not installed.
    """

    def __init__(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self._metric = _metric()
        n_columns = max(map(len, references))
        columns = [[row[i] if i < len(row) else None for row in references] for i in range(n_columns)]
        counts = self._metric._extract_corpus_statistics(list(answers), columns)  # type: ignore[arg-type]
        self.counts_RS: NDArray[np.int64] = np.array(counts)

    def score(self, rows: Sequence[int]) -> float:
        """Corpus BLEU in 0…100 of these rows, which may repeat."""
        return self._metric._compute_score_from_stats(self.counts_RS[list(rows)].sum(0).tolist()).score


def _metric() -> BLEU:
    try:
        from sacrebleu import BLEU
    except ImportError as error:
        raise missing_extra("sacrebleu", "eval", where="metric bleu") from error
    return BLEU()
