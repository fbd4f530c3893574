"""Answers to texts through soft prompts: any mix of prompts in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from softprompt.data.spans import prompt_ids
from softprompt.errors import ConfigError
from softprompt.formatting.context import check_context, end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card
from softprompt.formatting.inputs import text_to_record
from softprompt.inference.decoding import Answer, decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store


@dataclass(frozen=True)
class Request:
    """One text for the subject called `name`; `where` names it in messages, e.g. "stdin:3".

    For a template with several fields the text is a JSON object: '{"text": "…", "text2": "…"}'.
    """

    text: str
    name: str
    where: str = ""


def load_prompts(lm: FrozenLM, names: Sequence[str]) -> dict[str, FormattedPrompt]:
    """Soft prompts by name or path, each in its card's frame. Raises StoreError, WrongBaseError."""
    return {name: from_card(*store.load(store.locate(name), lm.geometry)) for name in names}


def generate(
    lm: FrozenLM,
    formatted_prompts: Mapping[str, FormattedPrompt],
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[Answer]:
    """One answer per request; different prompts share batches.

    Args:
        subjects: by the names that requests use.
        on_text: is told of new text as it comes, with the request's number.

    Raises:
        ConfigError: a request for none of the subjects.
        DataError: a text that does not fit the template or the context.
    """
    names = list(formatted_prompts)
    for request in requests:
        if request.name not in formatted_prompts:
            raise ConfigError("a request names an unknown soft prompt", expected=names, got=request.name)
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [formatted_prompts[name].prefix(lm) for name in names])
    wheres = [request.where or f"text {i + 1} for {request.name}" for i, request in enumerate(requests)]
    records = [
        text_to_record(r.text, formatted_prompts[r.name], where) for r, where in zip(requests, wheres, strict=True)
    ]
    rows = [
        prompt_ids(record, formatted_prompts[request.name].template, lm.tokenizer)
        for record, request in zip(records, requests, strict=True)
    ]
    ends = [end_ids(lm, formatted_prompts[request.name].template) for request in requests]
    stops = [formatted_prompts[request.name].stop for request in requests]
    prefix_ids = [names.index(request.name) for request in requests]
    around = [prefixes.lengths[owner] + sampling.max_new_tokens for owner in prefix_ids]
    lengths = zip(wheres, map(len, rows), around, strict=True)
    check_context(lm, lengths, "shorten the text, or ask for fewer new tokens")
    return decode_batch(lm, prefixes, rows, prefix_ids, sampling, end_ids=ends, stops=stops, on_text=on_text)
