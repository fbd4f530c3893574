"""A row shape in one file, as docs/guides/extending.md shows it: riddles with guesses."""

from __future__ import annotations

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import RowFields, RowShape, Scoring

LETTERS = "ABCD"


class Riddle(RowShape):
    """Guesses become lettered lines, the solution becomes its letter, and letters are ranked as classes are."""

    kind = "riddle"
    description = "riddles with guesses"
    example = '{"riddle": "2 + 2?", "guesses": ["3", "4"], "solution": 1}'
    source = ("riddle", "guesses")
    target = "solution"
    scoring: Scoring = "classification"

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        guesses, solution = row.get("guesses"), row.get("solution")
        if not isinstance(guesses, list) or not 2 <= len(guesses) <= len(LETTERS):
            raise self.error(where, "field 'guesses' must be a list of 2 to 4 strings", got=guesses)
        if require_target and solution not in range(len(guesses)):
            raise self.error(where, "field 'solution' must be the number of a guess, from 0", got=solution)
        lines = [f"{letter}. {guess}" for letter, guess in zip(LETTERS, guesses, strict=False)]
        fields = {"riddle": self.string(row, "riddle", where), "guesses": "\n".join(lines)}
        target = LETTERS[solution] if isinstance(solution, int) else None
        return Record(fields, target, self.kind, references=(target,) if target else (), where=where)

    def default_text(self, record: Record) -> str:
        return "{riddle}\n{guesses}\nAnswer:"
