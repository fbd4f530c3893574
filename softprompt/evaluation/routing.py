"""Evaluation and inference with a router, which selects one of its soft prompts for each text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids
from softprompt.data.template import turns_record
from softprompt.errors import ConfigError
from softprompt.evaluation.evaluate import Evaluation, answer_scores
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import read_turns, text_to_record
from softprompt.inference.generate import Request
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import router, store


def routers_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The routers among these names, each with the names of its soft prompts."""
    routers = {}
    for name in names:
        folder = store.find(name)
        if (folder / store.ROUTER).is_file():
            routers[name] = tuple(store.beside(name, expert) for expert in router.load_router(folder).names)
    return routers


def expanded(names: Sequence[str], routers: Mapping[str, Sequence[str]]) -> list[str]:
    """The names, with each router replaced by its soft prompts."""
    return list(dict.fromkeys(prompt for name in names for prompt in routers.get(name, (name,))))


def assign(
    lm: FrozenLM,
    routers: Mapping[str, Sequence[str]],
    formatted_prompts: Mapping[str, FormattedPrompt],
    requests: Sequence[Request],
) -> list[Request]:
    """The requests, those for a router with the name of the soft prompt that it selects for their text.

    Raises WrongBaseError for a router of another base model, DataError for a text that the template does not fit.
    """
    loaded = {name: router.load_router(store.find(name), lm.geometry) for name in routers}
    assigned = []
    for request in requests:
        if request.name in routers:
            experts = routers[request.name]
            record = _routed_record(request, formatted_prompts[experts[0]])
            ids = prompt_ids(record, formatted_prompts[experts[0]].template, lm.tokenizer)
            request = replace(request, name=experts[loaded[request.name].choose(lm, ids)])
        assigned.append(request)
    return assigned


def _routed_record(request: Request, formatted: FormattedPrompt) -> Record:
    """The row that a router judges: a text, or a conversation; of a template without turns its last turn."""
    if isinstance(request.text, str):
        return text_to_record(request.text, formatted, request.where)
    turns = read_turns(request.text, request.where)
    if formatted.template.kind == "chat":
        return turns_record(turns, request.where)
    return text_to_record(turns[-1].content, formatted, request.where)


def routed(
    lm: FrozenLM,
    name: str,
    template_of: FormattedPrompt,
    evaluations: Sequence[Evaluation],
    records: Sequence[Record],
) -> Evaluation:
    """The scores of the router `name`, given the answers of all its soft prompts.

    Args:
        template_of: one of the soft prompts, for its template.
        evaluations: of each soft prompt of the router, on the same rows.
        records: those rows.

    Raises ConfigError for rows of plain text, which have no answers.
    """
    if not all(evaluation.answers for evaluation in evaluations):
        raise ConfigError("plain text has no answers to route", hint="evaluate the soft prompts one by one")
    loaded = router.load_router(store.find(name), lm.geometry)
    expert_ids = [loaded.choose(lm, prompt_ids(record, template_of.template, lm.tokenizer)) for record in records]
    answers = [evaluations[expert].answers[i] for i, expert in enumerate(expert_ids)]
    return Evaluation(answer_scores(answers, records), len(records), tuple(answers))
