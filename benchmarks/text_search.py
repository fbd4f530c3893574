"""The best text prompt that a user would find: instructions and demonstrations, chosen by loss on validation rows.

`best_text` scores 32 prompts (four instructions, eight sets of demonstrations) on a few rows, and the best of these on
more. `longest_text` takes as many demonstrations as the model's context holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.data.tokenize import encode_rows
from softprompt.errors import DataError
from softprompt.evaluation.held_out import pick_shots
from softprompt.formatting.context import check_context
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.text_prompt import APART, text_prompt, worked_example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.prepare import prepare_prefixes

WORDS = "Write a text that says what the data says."  # of the one task without labels
WRITTEN: dict[str, tuple[str, str]] = {  # two instructions a task, as a person would write them
    "sst2": (
        "Say whether the film critic's sentence is positive or negative.",
        "You read film reviews. The sentiment is positive if the critic liked the film, otherwise negative.",
    ),
    "agnews": (
        "Sort the news into one of four topics: World, Sports, Business or Sci/Tech.",
        "You are a news editor. Name the section that the story belongs in: World, Sports, Business, Sci/Tech.",
    ),
    "banking77": (
        "Name the intent of the bank customer's message.",
        "You route messages of an online bank's customers. Answer with the name of the intent, words joined by _.",
    ),
    "rte": (
        "Say entailment if the hypothesis follows from the text, and not_entailment if it does not.",
        "Read the text, then the hypothesis. Is it certainly true? Answer entailment or not_entailment.",
    ),
    "boolq": (
        "Answer the question about the passage with yes or no.",
        "Read the passage with care. Say yes if it answers the question with yes, otherwise no.",
    ),
    "e2e": (
        "Write one or two sentences about the restaurant that say all that the data say.",
        "You describe restaurants. Turn the attributes into a fluent description and leave none of them out.",
    ),
}
DEMONSTRATIONS = ((0, 0), (2, 0), (4, 0), (4, 1), (8, 0), (8, 1), (16, 0), (16, 1))  # number and order of the rows
FIRST_ROWS, FINALISTS, ROWS = 16, 8, 64  # validation rows for all prompts, and for the best of these
_LOSS_TOKENS = 80  # of the context, kept free for an answer
_PASS_ROWS = 16


@dataclass(frozen=True)
class TextTask:
    """A task that text prompts are written for.

    Attributes:
        instructions: in words, the first one made from the labels.
        longest: tokens of the longest row that will follow.
    """

    lm: FrozenLM
    template: Template
    instructions: tuple[str, ...]
    train: Sequence[Record]
    validation: Sequence[Record]
    longest: int
    seed: int

    def shots(self, count: int, order: int) -> list[Record]:
        """So many training rows, with different answers first."""
        rows = list(self.train)
        random.Random(f"{self.seed} {order}").shuffle(rows)  # noqa: S311
        return pick_shots(rows, count)

    def prompts(self) -> Iterator[tuple[str, FormattedPrompt]]:
        """Every instruction with every set of demonstrations that fits in the context, by name."""
        for number, instruction in enumerate(self.instructions):
            for count, order in DEMONSTRATIONS:
                prompt = text_prompt(self.lm, self.template, instruction, self.shots(count, order))
                if fits(self.lm, prompt, self.longest):
                    yield f"instruction {number}, {count} rows in order {order}", prompt


def instructions_for(task: str, generic: str) -> tuple[str, ...]:
    """The four instructions of a task: made from its labels, none, and two written ones."""
    return (generic, "", *WRITTEN[task])


def fits(lm: FrozenLM, prompt: FormattedPrompt, longest: int) -> bool:
    """Whether a row of so many tokens and an answer have room after the prompt."""
    prefix = prompt.prefix(lm)
    try:
        check_context(lm, [("", len(prefix.lead) + len(prefix.follow), longest + _LOSS_TOKENS)], "")
    except DataError:
        return False
    return True


@torch.no_grad()
def answer_loss(lm: FrozenLM, prompt: FormattedPrompt, rows: Sequence[Record]) -> float:
    """Loss of the rows' answers in nats per token, without the end token, which a text prompt does not teach."""
    encoded = encode_rows(rows, prompt.template, lm.tokenizer)
    examples = [replace(example, ids=example.ids[:-1], mask=example.mask[:-1]) for example in encoded]
    prefixes = prepare_prefixes(lm, [prompt.prefix(lm)])
    parts = [examples[i : i + _PASS_ROWS] for i in range(0, len(examples), _PASS_ROWS)]
    return sum(token_losses(lm, prefixes, part).sum().item() for part in parts) / learned_tokens(examples)


def best_text(task: TextTask) -> tuple[FormattedPrompt, dict[str, object]]:
    """The prompt with the lowest loss on validation rows, and how it was found."""
    prompts = dict(task.prompts())
    first = {name: answer_loss(task.lm, prompt, task.validation[:FIRST_ROWS]) for name, prompt in prompts.items()}
    finalists = sorted(first, key=lambda name: first[name])[:FINALISTS]
    losses = {name: answer_loss(task.lm, prompts[name], task.validation[:ROWS]) for name in finalists}
    best = min(losses, key=lambda name: losses[name])
    return prompts[best], {"chosen": best, "tried": len(prompts), "losses": losses}


def longest_text(task: TextTask) -> tuple[FormattedPrompt, dict[str, object]]:
    """The first instruction with as many demonstrations as fit in the context."""
    used = len(task.lm.encode(task.instructions[0])) + task.longest + _LOSS_TOKENS
    count = 0
    for row in task.shots(len(task.train), 0):
        used += len(task.lm.encode(worked_example(task.template, row) + APART))
        if used > task.lm.geometry.max_positions:
            break
        count += 1
    prompt = text_prompt(task.lm, task.template, task.instructions[0], task.shots(count, 0))
    while count and not fits(task.lm, prompt, task.longest):  # the template's own words
        count -= 1
        prompt = text_prompt(task.lm, task.template, task.instructions[0], task.shots(count, 0))
    return prompt, {"chosen": f"{count} rows"}
