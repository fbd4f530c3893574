"""Inputs about details of a text whose answers stand in it, so that nobody need write these: questions about words of a
sentence, sentences with a gap, and passages to go on with.

Questions: words of a sentence are picked as the answer, and the model, which reads the sentence alone, writes what they
answer (Alberti et al.: Synthetic QA Corpora Generation with Roundtrip Consistency. 2019.
https://arxiv.org/abs/1906.05416).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from softprompt.distillation.chunking import SENTENCE
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes

T = TypeVar("T")
Detail = tuple[str, str, str]  # kind, input, answer
EXAMPLES = (  # sentence, answer, question
    ("Copper is mined in the north, while the south lives on fishing.", "fishing", "What does the south live on?"),
    ("The bridge was opened in 1932 by the mayor, Anna Lund.", "1932", "When was the bridge opened?"),
    ("The bridge was opened in 1932 by the mayor, Anna Lund.", "Anna Lund", "Who opened the bridge?"),
)
ASKED = "Text: {}\nAnswer: {}\nQuestion:"
GAP, GO_ON = "Fill in the gap: {}", "Go on: {}"
WORD = re.compile(r"[^\W_](?:[\w'’.,-]*\w)?")
SHORT, MOST_WORDS = 3, 4  # letters of words that no answer is made of; words of an answer
LONGEST = 96  # tokens of an input that is made of a sentence
OPENING, FEWEST = (3, 12), 6  # words of a passage to go on with; of a sentence to ask about


def cloze_queries(
    lm: FrozenLM, text: str, count: int, sampling: Sampling, answer_tokens: int, draw: random.Random
) -> list[Detail]:
    """`count` inputs at most, a third of each kind.

    Args:
        sampling: of the questions.
        answer_tokens: of the longest answer.
    """
    sentences = [one for one in sentences_of(text) if len(one.split()) >= FEWEST and answers_in(one)]
    asked, gaps = (drawn(sentences, count // 3, draw) for _ in range(2))
    found = questions(lm, [(one, draw.choice(answers_in(one))[0]) for one in asked], sampling)
    found += [gap(one, *draw.choice(answers_in(one))) for one in gaps]
    found += continuations(text, count - 2 * (count // 3), lambda more: _cut(lm, more, answer_tokens), draw)
    return [one for one in found if len(lm.encode(one[1])) <= LONGEST]


def questions(lm: FrozenLM, picked: Sequence[tuple[str, str]], sampling: Sampling) -> list[Detail]:
    """A question of the model's for each sentence and the answer in it."""
    rows = [lm.encode(ASKED.format(sentence, answer)) for sentence, answer in picked]
    most = lm.geometry.max_positions - sampling.max_new_tokens
    fitting = [i for i, row in enumerate(rows) if len(row) <= most]
    if not fitting:
        return []
    rows, picked = [rows[i] for i in fitting], [picked[i] for i in fitting]
    shown = prepare_prefixes(lm, [Prefix(lead=_examples(lm, most - max(map(len, rows))))])
    found = decode_batch(
        lm, shown, rows, [0] * len(rows), sampling, end_ids=[()] * len(rows), stops=[("\n",)] * len(rows)
    )
    return [("detail", one.text.strip(), answer) for one, (_, answer) in zip(found, picked, strict=True)]


def _examples(lm: FrozenLM, room: int) -> tuple[int, ...]:
    """As many worked examples as have room, in tokens."""
    ids: tuple[int, ...] = ()
    for sentence, answer, question in EXAMPLES:
        more = lm.encode(f"{ASKED.format(sentence, answer)} {question}\n\n")
        if len(ids) + len(more) <= room:
            ids = (*ids, *more)
    return ids


def gap(sentence: str, answer: str, start: int) -> Detail:
    """A sentence without the answer that starts at that character."""
    return "gap", GAP.format(f"{sentence[:start]}___{sentence[start + len(answer) :]}"), answer


def continuations(text: str, count: int, cut: Callable[[str], str], draw: random.Random) -> list[Detail]:
    """Openings of sentences, and how the text goes on.

    Args:
        cut: to the longest answer.
    """
    sentences = sentences_of(text)
    found: list[Detail] = []
    for place in drawn(range(len(sentences)), count, draw):
        words = " ".join(sentences[place : place + 4]).split()
        size = draw.randint(*OPENING)
        if rest := cut(" ".join(words[size:])):
            found.append(("continuation", GO_ON.format(" ".join(words[:size])), rest))
    return found


def answers_in(sentence: str) -> list[tuple[str, int]]:
    """Runs of up to four neighbouring words that say something (names, numbers, words that are not short), and where
    they start."""
    runs: list[list[re.Match[str]]] = []
    for word in WORD.finditer(sentence):
        text = word.group()
        if len(text) <= SHORT and not (text[0].isupper() and word.start()) and not any(map(str.isdigit, text)):
            continue
        last = runs[-1] if runs else []
        if last and len(last) < MOST_WORDS and sentence[last[-1].end() : word.start()] == " ":
            last.append(word)
        else:
            runs.append([word])
    return [(sentence[run[0].start() : run[-1].end()], run[0].start()) for run in runs]


def sentences_of(text: str) -> list[str]:
    """Its sentences, line breaks in them as spaces; a paragraph ends one too."""
    paragraphs = re.split(r"\n\s*\n", text)
    return [one for part in paragraphs for one in SENTENCE.split(" ".join(part.split())) if one]


def drawn(every: Sequence[T], count: int, draw: random.Random) -> list[T]:
    """`count` of these, every one before any of them again."""
    found: list[T] = []
    while every and len(found) < count:
        found += draw.sample(every, min(len(every), count - len(found)))
    return found


def _cut(lm: FrozenLM, text: str, most: int) -> str:
    """Its first tokens, one less than `most`: the end of an answer is one too."""
    return str(lm.tokenizer.decode(lm.encode(text)[: most - 1])).strip()
