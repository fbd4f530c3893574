"""Queries about a text's details whose answers stand in the text: questions, cloze sentences and continuations.

Questions: a span of a sentence is picked as the answer, and the model reads the sentence alone and writes the question
(Alberti et al.: Synthetic QA Corpora Generation with Roundtrip Consistency. 2019. https://arxiv.org/abs/1906.05416).
Cloze: a sentence with a gap (Taylor: "Cloze procedure": a new tool for measuring readability. 1953).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from softprompt.distillation.chunking import SENTENCE_END
from softprompt.distillation.queries import QueryDraft
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes

Item = TypeVar("Item")
QUESTION_EXAMPLES = (  # sentence, answer, question
    ("Copper is mined in the north, while the south lives on fishing.", "fishing", "What does the south live on?"),
    ("The bridge was opened in 1932 by the mayor, Anna Lund.", "1932", "When was the bridge opened?"),
    ("The bridge was opened in 1932 by the mayor, Anna Lund.", "Anna Lund", "Who opened the bridge?"),
)
QUESTION_PROMPT = "Text: {}\nAnswer: {}\nQuestion:"
CLOZE_PROMPT = "Fill in the gap: {}"
CONTINUATION_PROMPT = "Go on: {}"
MAX_SHORT_WORD = 3  # letters; shorter words are no answers unless they are names or numbers
MAX_ANSWER_WORDS = 4
MAX_CLOZE_TOKENS = 96  # of a query that is made of a sentence
MIN_SENTENCE_WORDS = 6  # of a sentence for a question or cloze
OPENING_WORDS = (3, 12)  # fewest and most words of a sentence to continue
_WORD = re.compile(r"[^\W_](?:[\w'’.,-]*\w)?")


def cloze_queries(
    lm: FrozenLM, text: str, count: int, sampling: Sampling, answer_tokens: int, rng: random.Random
) -> list[QueryDraft]:
    """Generate at most `count` queries about a text's details: half of them questions, a quarter each other kind.

    Args:
        sampling: for generating the questions.
        answer_tokens: length of the longest answer.
    """
    sentences = [s for s in split_sentences(text) if len(s.split()) >= MIN_SENTENCE_WORDS and answer_spans(s)]
    for_questions, for_cloze = (sample_evenly(sentences, size, rng) for size in (count // 2, count // 4))
    queries = detail_questions(lm, [(s, rng.choice(answer_spans(s))[0]) for s in for_questions], sampling)
    queries += [cloze(s, *rng.choice(answer_spans(s))) for s in for_cloze]
    n_rest = count - count // 2 - count // 4
    queries += continuations(text, n_rest, lambda rest: _truncate(lm, rest, answer_tokens), rng)
    return [query for query in queries if len(lm.encode(query.text)) <= MAX_CLOZE_TOKENS]


def detail_questions(lm: FrozenLM, pairs: Sequence[tuple[str, str]], sampling: Sampling) -> list[QueryDraft]:
    """Generate a question for each pair of a sentence and an answer in it."""
    rows = [lm.encode(QUESTION_PROMPT.format(sentence, answer)) for sentence, answer in pairs]
    room = lm.geometry.max_positions - sampling.max_new_tokens
    fitting = [i for i, row in enumerate(rows) if len(row) <= room]
    if not fitting:
        return []
    rows = [rows[i] for i in fitting]
    answers = [pairs[i][1] for i in fitting]
    prefix_kv = prepare_prefixes(lm, [Prefix(lead=_few_shot_ids(lm, room - max(map(len, rows))))])
    questions = decode_batch(
        lm, prefix_kv, rows, [0] * len(rows), sampling, end_ids=[()] * len(rows), stops=[("\n",)] * len(rows)
    )
    return [
        QueryDraft("detail", question.text.strip(), answer) for question, answer in zip(questions, answers, strict=True)
    ]


def _few_shot_ids(lm: FrozenLM, room: int) -> tuple[int, ...]:
    """Token ids of as many worked examples as fit in `room` tokens."""
    ids: tuple[int, ...] = ()
    for sentence, answer, question in QUESTION_EXAMPLES:
        example_ids = lm.encode(f"{QUESTION_PROMPT.format(sentence, answer)} {question}\n\n")
        if len(ids) + len(example_ids) <= room:
            ids = (*ids, *example_ids)
    return ids


def cloze(sentence: str, answer: str, start: int) -> QueryDraft:
    """Replace the answer, which starts at that character of the sentence, by a gap."""
    gapped = f"{sentence[:start]}___{sentence[start + len(answer) :]}"
    return QueryDraft("cloze", CLOZE_PROMPT.format(gapped), answer)


def continuations(text: str, count: int, truncate: Callable[[str], str], rng: random.Random) -> list[QueryDraft]:
    """Draw openings of sentences, each with the text that follows as its answer.

    Args:
        truncate: cuts a text to the longest answer.
    """
    sentences = split_sentences(text)
    queries: list[QueryDraft] = []
    for place in sample_evenly(range(len(sentences)), count, rng):
        words = " ".join(sentences[place : place + 4]).split()
        size = rng.randint(*OPENING_WORDS)
        if rest := truncate(" ".join(words[size:])):
            queries.append(QueryDraft("continuation", CONTINUATION_PROMPT.format(" ".join(words[:size])), rest))
    return queries


def answer_spans(sentence: str) -> list[tuple[str, int]]:
    """Find runs of up to four neighboring content words (names, numbers, words that are not short) and their starts."""
    runs: list[list[re.Match[str]]] = []
    for word in _WORD.finditer(sentence):
        text = word.group()
        if len(text) <= MAX_SHORT_WORD and not (text[0].isupper() and word.start()) and not any(map(str.isdigit, text)):
            continue
        last = runs[-1] if runs else []
        if last and len(last) < MAX_ANSWER_WORDS and sentence[last[-1].end() : word.start()] == " ":
            last.append(word)
        else:
            runs.append([word])
    return [(sentence[run[0].start() : run[-1].end()], run[0].start()) for run in runs]


def split_sentences(text: str) -> list[str]:
    """Split a text at sentences and paragraphs, and join the lines of each."""
    paragraphs = re.split(r"\n\s*\n", text)
    return [sentence for part in paragraphs for sentence in SENTENCE_END.split(" ".join(part.split())) if sentence]


def sample_evenly(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """Draw `count` items; none is drawn again before all have been drawn."""
    drawn: list[Item] = []
    while items and len(drawn) < count:
        drawn += rng.sample(items, min(len(items), count - len(drawn)))
    return drawn


def _truncate(lm: FrozenLM, text: str, max_tokens: int) -> str:
    """The first `max_tokens` - 1 tokens of a text: the end token of an answer counts, too."""
    return str(lm.tokenizer.decode(lm.encode(text)[: max_tokens - 1])).strip()
