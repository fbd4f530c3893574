"""Rows that a soft prompt is inspected on: given ones, or a few neutral texts with the answers that it gives itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from softprompt.data.records import Message, Record
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import input_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes

NEUTRAL_TEXTS = (
    "The train to Bergen leaves at nine and arrives in the afternoon.",
    "I bought two pairs of shoes and one of them does not fit.",
    "What is the difference between a lake and a pond?",
    "Scientists have found a new kind of frog in the rain forest.",
    "Please remind me to call the dentist on Monday.",
    "The concert was loud, but the band played very well.",
    "How long do I have to boil an egg?",
    "The company opened three offices in Asia last year.",
)
_ANSWER_TOKENS = 8


def neutral_rows(formatted: FormattedPrompt) -> list[Record]:
    """The neutral texts, in the shape of the soft prompt's own rows, without answers."""
    names = formatted.template.names
    if not names:
        return [Record({}, None, "messages", messages=(Message("user", text),)) for text in NEUTRAL_TEXTS]
    return [Record(dict.fromkeys(names, text), None, "completion", where=text) for text in NEUTRAL_TEXTS]


def with_own_answers(lm: FrozenLM, formatted: FormattedPrompt, records: Sequence[Record]) -> list[Record]:
    """The rows, those without an answer with the soft prompt's own greedy one, which no end token ends."""
    missing = [i for i, record in enumerate(records) if record.target is None]
    if not missing:
        return list(records)
    with torch.no_grad():
        answers = decode_batch(
            lm,
            prepare_prefixes(lm, [formatted.prefix(lm)]),
            [input_ids(_input_of(formatted, records[i]), formatted, lm.tokenizer) for i in missing],
            [0] * len(missing),
            Sampling(max_new_tokens=_ANSWER_TOKENS),
            end_ids=[()] * len(missing),
        )
    rows = list(records)
    for i, answer in zip(missing, answers, strict=True):
        rows[i] = _answered(records[i], answer.text)
    return rows


def _input_of(formatted: FormattedPrompt, record: Record) -> str | tuple[Message, ...]:
    fields = {name: record.fields[name] for name in formatted.template.names}
    if not fields:
        return record.messages
    return json.dumps(fields) if len(fields) > 1 else next(iter(fields.values()))


def _answered(record: Record, text: str) -> Record:
    turns = (*record.messages, Message("assistant", text)) if record.messages else ()
    return replace(record, target=text, references=(text,), messages=turns)
