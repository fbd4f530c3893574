"""A routed mixture at work: its router gives each text one of its soft prompts; everything else sees ordinary ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.spans import prompt_ids
from softprompt.errors import ConfigError
from softprompt.evaluation import metrics
from softprompt.evaluation.evaluate import Evaluation
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import text_to_record
from softprompt.inference.generate import Request
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import router, store


def routers_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Those of the names that are routers, with the names of the soft prompts that each one chooses from."""
    found = {}
    for name in names:
        folder = store.locate(name)
        if (folder / store.ROUTER).is_file():
            experts = router.load_router(folder).names
            near = "/" in name  # a router given by path has its soft prompts beside it
            found[name] = tuple(str(folder.with_name(expert)) if near else expert for expert in experts)
    return found


def expanded(names: Sequence[str], routers: Mapping[str, Sequence[str]]) -> list[str]:
    """The names, each router's replaced by those of its soft prompts."""
    flat = [own for name in names for own in routers.get(name, (name,))]
    return list(dict.fromkeys(flat))


def assign(
    lm: FrozenLM,
    routers: Mapping[str, Sequence[str]],
    formatted_prompts: Mapping[str, FormattedPrompt],
    requests: Sequence[Request],
) -> list[Request]:
    """The requests, those for a router readdressed to the soft prompt that it chooses for their text.

    Raises WrongBaseError for a router of another base model, DataError for a text that the template does not fit.
    """
    loaded = {name: router.load_router(store.locate(name), lm.geometry) for name in routers}
    found = []
    for request in requests:
        if request.name in routers:
            experts = routers[request.name]
            record = text_to_record(request.text, formatted_prompts[experts[0]], request.where)
            ids = prompt_ids(record, formatted_prompts[experts[0]].template, lm.tokenizer)
            request = replace(request, name=experts[loaded[request.name].choose(lm, ids)])
        found.append(request)
    return found


def routed(
    lm: FrozenLM,
    name: str,
    template_of: FormattedPrompt,
    evaluations: Sequence[Evaluation],
    records: Sequence[Record],
) -> Evaluation:
    """The scores of the answers that the router `name` chooses, out of those of all its soft prompts.

    Raises ConfigError for rows of plain text, which have no answers.
    """
    if not all(evaluation.answers for evaluation in evaluations):
        raise ConfigError("plain text has no answers to route", hint="evaluate the soft prompts one by one")
    own = router.load_router(store.locate(name), lm.geometry)
    prefix_ids = [own.choose(lm, prompt_ids(record, template_of.template, lm.tokenizer)) for record in records]
    answers = [evaluations[owner].answers[i] for i, owner in enumerate(prefix_ids)]
    if shape_of(records[0]).has_classes:
        hits = [answer == record.target for answer, record in zip(answers, records, strict=True)]
        scores = {"accuracy": metrics.proportion(hits)}
    else:
        scores = metrics.generation_scores(answers, [record.references for record in records])
    return Evaluation(scores, len(records), tuple(answers))
