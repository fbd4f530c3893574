"""Self-study: the model itself writes the inputs that a text is distilled on, so that a text alone is enough.

It reads a piece of the text and is asked for messages that a user might send; five generic kinds, as in
Eyuboglu et al.: Cartridges. 2025. https://arxiv.org/abs/2506.06266 (structuring, summarisation, question, use case,
creative), and `details` of the text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from softprompt.data.spans import prompt_ids
from softprompt.distillation.cloze import Detail
from softprompt.distillation.cloze import cloze_queries as detailed
from softprompt.distillation.config import StudyConfig
from softprompt.distillation.queries import Query, query_record
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling

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
SHORTEST, LONGEST = 8, 400  # characters of an input
LABEL = re.compile(
    r"^\s*(?:[-*•]\s+|\d+[.)]\s+|[\"'“‘]+|(?:question|request|message|instruction|user|answer)\s*:\s*)+", re.IGNORECASE
)
BATCH, FEWEST = 32, 4  # inputs asked for at once


def generate_queries(
    teacher: Teacher, study: StudyConfig, details: float, done: Sequence[Sequence[Query]] = (), *, seed: int
) -> Iterator[list[Query]]:
    """Further batches of inputs about the teacher's pieces, `study.inputs` in all at most, each text once; one may be
    empty.

    Args:
        details: share of the batches that are about details.
        done: the batches that are there already. The next ones depend on nothing but these and the seed.

    Fewer come if the model keeps repeating itself.
    """
    seen = {_key(one.text) for batch in done for one in batch}
    made, number, pieces = sum(map(len, done)), len(done), len(teacher.chunks)
    idle = len(list(takewhile(lambda batch: not batch, reversed(done))))  # also of a run that goes on
    most = min(BATCH, max(FEWEST, -(-study.inputs // pieces)))
    while made < study.inputs and idle <= 2 * pieces + 4:
        draw = random.Random(f"{seed}.{number}")  # noqa: S311
        size = min(most, max(FEWEST, study.inputs - made))
        chunk, turn = number % pieces, number // pieces  # every piece is asked in the same ways
        heat = study.temperatures[turn % len(study.temperatures)]
        sampling = Sampling(study.input_tokens, heat, top_p=0.95, seed=draw.getrandbits(31))
        if int((turn + 1) * details) > int(turn * details):
            new = detailed(teacher.lm, teacher.chunks[chunk], size, sampling, study.answer_tokens, draw)
        else:
            new = _asked(teacher, chunk, size, sampling, draw)
        fresh = [Query(chunk, *one) for one in new if _is_new(one[1], seen)][: study.inputs - made]
        made, idle, number = made + len(fresh), 0 if fresh else idle + 1, number + 1
        yield fresh


def _asked(teacher: Teacher, chunk: int, size: int, sampling: Sampling, draw: random.Random) -> list[Detail]:
    """Inputs that the model writes about a piece; it will answer them."""
    template = teacher.template
    kinds = [draw.choice(list(SEEDS)) for _ in range(size)]
    seeds = [query_record(draw.choice(SEEDS[kind]), template) for kind in kinds]
    rows = [prompt_ids(seed, template, teacher.lm.tokenizer) for seed in seeds]
    ends = [end_ids(teacher.lm, template)] * size
    answers = decode_batch(
        teacher.lm, teacher.prefix_kv(chunk), rows, [0] * size, sampling, end_ids=ends, stops=[("\n\n",)] * size
    )
    return [(kind, cleaned(answer.text), "") for kind, answer in zip(kinds, answers, strict=True)]


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
