"""Self-study: the model itself writes the inputs that a text is distilled on, so that a text alone is enough.

It reads a piece of the text and is asked for messages that a user might send; five generic kinds, as in
Eyuboglu et al.: Cartridges. 2025. https://arxiv.org/abs/2506.06266 (structuring, summarisation, question, use case,
creative), and the text's own sentences to go on from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from softprompt.data.tokenise import prompt_ids
from softprompt.decode import Sampling, generate
from softprompt.distil.inputs import Input, record_of
from softprompt.distil.teacher import Teacher
from softprompt.framing import end_ids

SEEDS: dict[str, tuple[str, ...]] = {
    "question": (
        "Write one question that a reader might ask about the text above. Write only the question.",
        "Ask one short question about a detail of the text above. Write only the question.",
        "A customer reads this. Write the message they send next. Write only the message.",
    ),
    "use": (
        "Write one request from a user who needs what the text above says. Write only the request.",
        "Describe, as the user, a situation in which the text above applies. Write only the message.",
    ),
    "structure": (
        "Write one instruction that asks for facts of the text above as a list or table. Write only the instruction.",
    ),
    "summary": (
        "Write one instruction that asks to summarise one part of the text above. Write only the instruction.",
    ),
    "creative": ("Write one unusual request that the text above helps to answer. Write only the request.",),
}
GO_ON = "Go on: {}"
WORDS = 12  # of a sentence, to go on from
SHORTEST, LONGEST = 8, 400  # characters of an input
LABEL = re.compile(
    r"^\s*(?:[-*•]\s+|\d+[.)]\s+|[\"'“‘]+|(?:question|request|message|instruction|user|answer)\s*:\s*)+", re.IGNORECASE
)
BATCH = 32


def studied(
    teacher: Teacher,
    count: int,
    done: Sequence[Sequence[Input]] = (),
    *,
    longest: int,
    temperatures: Sequence[float],
    seed: int,
) -> Iterator[list[Input]]:
    """Further batches of inputs about the teacher's pieces, `count` in all at most, each text once; one may be empty.

    Args:
        done: the batches that are there already. The next ones depend on nothing but these and the seed.
        longest: tokens of an input.
        temperatures: that they are drawn at, in turn.

    Fewer come if the model keeps repeating itself.
    """
    seen = {_key(one.text) for batch in done for one in batch}
    made, idle, number = sum(map(len, done)), 0, len(done)
    size = min(BATCH, max(4, -(-count // len(teacher.chunks))))
    while made < count and idle <= 2 * len(teacher.chunks) + 4:
        draw = random.Random(f"{seed}.{number}")  # noqa: S311
        chunk = number % len(teacher.chunks)
        if number % 4 == 3:
            new = [("continuation", GO_ON.format(opening)) for opening in _openings(teacher.chunks[chunk], size, draw)]
        else:
            heat = temperatures[number // 4 % len(temperatures)]
            new = _asked(teacher, chunk, size, Sampling(longest, heat, top_p=0.95, seed=draw.getrandbits(31)), draw)
        fresh = [Input(chunk, kind, text) for kind, text in new if _is_new(text, seen)][: count - made]
        made, idle, number = made + len(fresh), 0 if fresh else idle + 1, number + 1
        yield fresh


def _asked(teacher: Teacher, chunk: int, size: int, sampling: Sampling, draw: random.Random) -> list[tuple[str, str]]:
    """Inputs (kind, text) that the model writes about a piece."""
    template = teacher.template
    kinds = [draw.choice(list(SEEDS)) for _ in range(size)]
    seeds = [record_of(draw.choice(SEEDS[kind]), template) for kind in kinds]
    rows = [prompt_ids(seed, template, teacher.lm.tokenizer) for seed in seeds]
    ends = [end_ids(teacher.lm, template)] * size
    answers = generate(
        teacher.lm, teacher.bank(chunk), rows, [0] * size, sampling, end_ids=ends, stops=[("\n\n",)] * size
    )
    return [(kind, cleaned(answer.text)) for kind, answer in zip(kinds, answers, strict=True)]


def cleaned(text: str) -> str:
    """The first line of what the model wrote, without labels, list signs and quotes around it."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return LABEL.sub("", line).strip().rstrip("\"'”’").strip()


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether a text is usable and not there yet, case, space and punctuation aside; then it is."""
    key = _key(text)
    if not SHORTEST <= len(text) <= LONGEST or key in seen:
        return False
    seen.add(key)
    return True


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _openings(text: str, size: int, draw: random.Random) -> list[str]:
    """First words of sentences of a text."""
    sentences = [s.split() for s in re.split(r"(?<=[.!?])\s+|\n+", text) if len(s.split()) > WORDS // 2]
    picked = [draw.choice(sentences) for _ in range(size)] if sentences else []
    return [" ".join(words[: draw.randint(3, WORDS)]) for words in picked]
