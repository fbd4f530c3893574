"""Self-study: the model generates the queries of a distillation itself, so a text alone is enough.

The model reads a chunk of the text and is prompted for messages of a user. Five generic kinds as in Eyuboglu et al.:
Cartridges. 2025. https://arxiv.org/abs/2506.06266 (structuring, summarization, question, use case, creative), and the
queries of `cloze`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from softprompt.data.spans import prompt_ids
from softprompt.distillation.cloze import cloze_queries
from softprompt.distillation.config import StudyConfig
from softprompt.distillation.queries import Query, QueryDraft, query_record
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling

SEED_PROMPTS: dict[str, tuple[str, ...]] = {
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
MIN_CHARACTERS = 8  # of a query
MAX_CHARACTERS = 400  # of a query
MIN_QUERY_BATCH = 4  # queries generated at once
MAX_QUERY_BATCH = 32  # queries generated at once
PREAMBLE = re.compile(
    r"^\s*(?:[-*•]\s+|\d+[.)]\s+|[\"'“‘]+|(?:question|request|message|instruction|user|answer)\s*:\s*)+", re.IGNORECASE
)


def generate_queries(
    teacher: Teacher, study: StudyConfig, cloze_share: float, earlier: Sequence[Sequence[Query]] = (), *, seed: int
) -> Iterator[list[Query]]:
    """Generate batches of distinct queries about the teacher's chunks, `study.queries` in all at most.

    A batch may be empty. Fewer queries are generated if the model keeps repeating itself.

    Args:
        cloze_share: share of the batches that are cloze queries.
        earlier: batches generated before. The next ones depend on nothing but these and the seed.
    """
    seen = {_key(query.text) for batch in earlier for query in batch}
    total, number = sum(map(len, earlier)), len(earlier)
    n_chunks = len(teacher.chunks)
    empty_batches = len(list(takewhile(lambda batch: not batch, reversed(earlier))))  # in a row, also when resuming
    largest = min(MAX_QUERY_BATCH, max(MIN_QUERY_BATCH, -(-study.queries // n_chunks)))
    while total < study.queries and empty_batches <= 2 * n_chunks + 4:
        rng = random.Random(f"{seed}.{number}")  # noqa: S311
        size = min(largest, max(MIN_QUERY_BATCH, study.queries - total))
        chunk, turn = number % n_chunks, number // n_chunks  # every chunk gets the same kinds of batches
        temperature = study.temperatures[turn % len(study.temperatures)]
        sampling = Sampling(study.query_tokens, temperature, top_p=0.95, seed=rng.getrandbits(31))
        if int((turn + 1) * cloze_share) > int(turn * cloze_share):
            drafts = cloze_queries(teacher.lm, teacher.chunks[chunk], size, sampling, study.answer_tokens, rng)
        else:
            drafts = _prompted_queries(teacher, chunk, size, sampling, rng)
        batch = [Query(chunk, *draft) for draft in drafts if _is_new(draft.text, seen)][: study.queries - total]
        total += len(batch)
        empty_batches = 0 if batch else empty_batches + 1
        number += 1
        yield batch


def _prompted_queries(
    teacher: Teacher, chunk: int, size: int, sampling: Sampling, rng: random.Random
) -> list[QueryDraft]:
    """Queries about a chunk that the model writes when given seed prompts; the teacher will answer them."""
    template = teacher.template
    kinds = [rng.choice(list(SEED_PROMPTS)) for _ in range(size)]
    prompts = [query_record(rng.choice(SEED_PROMPTS[kind]), template) for kind in kinds]
    rows = [prompt_ids(prompt, template, teacher.lm.tokenizer) for prompt in prompts]
    ends = [end_ids(teacher.lm, template)] * size
    answers = decode_batch(
        teacher.lm, teacher.prefix_kv(chunk), rows, [0] * size, sampling, end_ids=ends, stops=[("\n\n",)] * size
    )
    return [QueryDraft(kind, clean(answer.text)) for kind, answer in zip(kinds, answers, strict=True)]


def clean(text: str) -> str:
    """The first line of a generated text, without labels, list signs and quotes around it."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return PREAMBLE.sub("", line).strip().rstrip("\"'”’").strip()


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether a text has a usable length and is not in `seen`, case, space and punctuation aside; adds it if so."""
    key = _key(text)
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or key in seen:
        return False
    seen.add(key)
    return True


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
