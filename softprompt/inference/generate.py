"""Answers to texts and conversations through soft prompts: any mix of prompts in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.deprecation import renamed_keywords
from softprompt.errors import ConfigError
from softprompt.formatting.chat_template import ChatTemplateOf, use_chat_template, use_system
from softprompt.formatting.context import check_context, end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card
from softprompt.formatting.inputs import Turns, input_ids
from softprompt.inference.answer import Answer
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store


@dataclass(frozen=True)
class Request:
    """One text or conversation for one soft prompt.

    Attributes:
        text: the input; for a template with several fields a JSON object with them: '{"text": "…", "text2": "…"}'.
            Or a conversation, as a list of turns {"role": …, "content": …}.
        name: of the soft prompt, as in the mapping that `generate` gets; empty if there is only one.
        where: the text's place, for messages, e.g. "stdin:3".
        tools: functions that may be called in a conversation, as {"type": "function", "function": {"name": …, …}}.
    """

    text: str | Turns
    name: str = ""
    where: str = ""
    tools: object = None


def load_prompts(
    lm: FrozenLM, names: Sequence[str], *, chat_template: ChatTemplateOf = "", system: str | None = None
) -> dict[str, FormattedPrompt]:
    """Load saved soft prompts, each with the template and layout of its card.

        prompts = load_prompts(lm, ["tone", "./downloads/legal"])

    Args:
        names: names in the prompts folder (`SOFTPROMPT_HOME`), paths, the Hub's owner/name@revision, or URLs.
        chat_template: whose to use if the model has another one than a soft prompt was trained with: "prompt" or
            "model". The "prompt" renders Jinja text of its card, in Transformers' sandbox.
        system: the system turn of conversations that bring none, in place of one kept with the soft prompt.

    Returns:
        The prompts by these names, in this order.

    Raises:
        StoreError: one is missing, damaged or altered.
        WrongBaseError: one was made for another base model, or for another chat template; the message names both.
        ConfigError: a system turn for a soft prompt that takes none.
    """
    formatted_prompts: dict[str, FormattedPrompt] = {}
    for name in names:
        formatted = use_chat_template(from_card(*store.load(store.find(name), lm.geometry)), chat_template, lm)
        formatted_prompts[name] = formatted if system is None else use_system(formatted, system, lm)
    return formatted_prompts


@renamed_keywords(subjects="formatted_prompts")
def generate(
    lm: FrozenLM,
    formatted_prompts: Mapping[str, FormattedPrompt],
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[Answer]:
    """Generate an answer to each request, or `sampling.n`; requests for different prompts share batches.

        lm = softprompt.load_model("smollm2-135m")
        prompts = softprompt.load_prompts(lm, ["helpdesk"])
        requests = [softprompt.Request("Where is my parcel?", "helpdesk")]
        print(softprompt.generate(lm, prompts, requests, softprompt.Sampling(max_new_tokens=32))[0].text)

    Args:
        formatted_prompts: by the names that requests use, e.g. from `load_prompts`, `no_prompt` or `text_prompt`.
        requests: any number; the answers are in their order and do not depend on each other. Those to request i begin
            at i · n.
        sampling: of all requests; with `seed` s, answer i draws from a generator with the seed s + i.
        on_text: called with the answer's number and its new text, token by token; with the whole text of a beam search.

    Raises:
        ConfigError: a request names none of the prompts.
        DataError: a text does not fit the template, or is too long for the context.
    """
    if len(formatted_prompts) == 1:
        requests = [
            request if request.name else replace(request, name=next(iter(formatted_prompts))) for request in requests
        ]
    for request in requests:
        if request.name not in formatted_prompts:
            raise ConfigError(
                "a request names an unknown soft prompt", expected=list(formatted_prompts), got=request.name
            )
    prefixes = [formatted.prefix(lm) for formatted in formatted_prompts.values()]
    with torch.no_grad():
        prefix_kv = prepare_prefixes(lm, prefixes)
    numbers = {name: number for number, name in enumerate(formatted_prompts)}
    prefix_ids = [numbers[request.name] for request in requests]
    chosen = [formatted_prompts[request.name] for request in requests]
    wheres = [request.where or f"text {i + 1} for {request.name}" for i, request in enumerate(requests)]
    rows = [
        input_ids(request.text, formatted, lm.tokenizer, where, request.tools)
        for request, formatted, where in zip(requests, chosen, wheres, strict=True)
    ]
    around = [prefix_kv.lengths[number] + lm.beside_text(sampling.max_new_tokens) for number in prefix_ids]
    lengths = zip(wheres, map(len, rows), around, strict=True)
    check_context(lm, lengths, "shorten the text, or ask for fewer new tokens")
    ends = [end_ids(lm, formatted.template) for formatted in chosen]
    return decode_batch(
        lm,
        prefix_kv,
        rows,
        prefix_ids,
        sampling,
        end_ids=ends,
        stops=[formatted.stop for formatted in chosen],
        before=[(*prefixes[number].lead, *prefixes[number].follow) for number in prefix_ids],
        on_text=on_text,
    )
