"""The rule of this example, for `softprompt train --objective grpo --reward examples/reward/rule.py:one_sentence`."""

from __future__ import annotations

import re

SHORTEST, LONGEST = 8, 16  # words


def one_sentence(prompts: list[object], completions: list[object], rows: list[object]) -> list[float]:
    """The reward of each answer, from 0 to 1; 1 is one whole sentence of 8 to 16 words."""
    return [score(text_of(completion)) for completion in completions]


def score(text: str) -> float:
    """Half for the length, falling to 0 at no words and at 40; half for being one sentence that is whole."""
    count = len(text.split())
    over = 1 - (count - LONGEST) / (40 - LONGEST)
    length = min(1.0, count / SHORTEST, max(0.0, over))
    ends = len(re.findall(r"[.!?](?=\s|$)", text.strip()))
    return 0.5 * length + 0.5 * float(ends == 1 and text.strip()[-1:] in ".!?" and "\n" not in text.strip())


def text_of(completion: object) -> str:
    """The answer's text: of conversations completions are lists with one message."""
    return str(completion[0]["content"]) if isinstance(completion, list) else str(completion)
