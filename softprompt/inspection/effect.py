"""A soft prompt's effect on rows: how far it moves the next-token predictions, and how much another prompt does so.

    effect       E(P)   = mean KL( p(· | P, x) ‖ p(· | x) )                       at the tokens of the answers
    recovered    R(Q)   = 1 − mean KL( p(· | P, x) ‖ p(· | Q, x) ) / E(P)         1: all of it, 0: none, below 0: harm

The measure of Context distillation (Askell et al. 2021, https://arxiv.org/abs/2112.00861) with the prompt as its own
teacher. A reading of a prompt (its nearest tokens, a part of it, a text) is put in its place and judged by R.

Shapes: N answer tokens, H width, V vocabulary, M prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.data.records import Record
from softprompt.data.tokenize import Example, tokenize
from softprompt.errors import DataError, PromptError
from softprompt.formatting.context import check_context
from softprompt.formatting.formatted_prompt import FormattedPrompt, no_prompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import divergences
from softprompt.objectives.next_token import learned_positions, supervised
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

_BATCH_TOKENS = 4096  # tokens of rows in one forward pass


class PromptEffect:
    """The predictions behind a soft prompt and without it, on the same rows.

    Attributes:
        lm: the base model.
        formatted: the soft prompt with its template and layout.
        prompt: the soft prompt.
        examples: the rows.
        states: [N, H] final hidden states before each answer token, behind the soft prompt.
        base_states: [N, H] without it.
        total: E(P) in nats a token.

    Raises:
        PromptError: there is no soft prompt.
        DataError: the rows hold no answers, or do not fit in the context.
    """

    @torch.no_grad()
    def __init__(self, lm: FrozenLM, formatted: FormattedPrompt, records: Sequence[Record]) -> None:
        if formatted.prompt is None:
            raise PromptError("there is no soft prompt to inspect")
        self.lm = lm
        self.formatted, self.prompt = formatted, formatted.prompt
        self.examples = tokenize(records, formatted.template, lm.tokenizer, max_length=sys.maxsize)
        if not any(any(example.mask) for example in self.examples):
            raise DataError("the rows hold no answers, which the effect is measured at", got=f"{len(records)} rows")
        prefix, self._base = formatted.prefix(lm), no_prompt(lm, formatted.template)
        around = self.prompt.n_tokens + len(prefix.lead) + len(prefix.follow)
        check_context(lm, [(row.where, len(row.ids), around) for row in self.examples], "leave the row out")
        self.states = self._states([prefix])[0]
        base_examples = tokenize(records, self._base.template, lm.tokenizer, max_length=sys.maxsize)
        self.base_states = self._states([self._base.prefix(lm)], base_examples)[0]
        self.total = self.divergence(self.base_states)

    @property
    def base_formatted(self) -> FormattedPrompt:
        """The base model with the template alone."""
        return self._base

    def divergence(self, states_NH: Tensor) -> float:
        """Mean KL(behind the soft prompt ‖ these states), nats a token."""
        return divergences(states_NH, self.states, self.lm.logits).mean().item()

    def share(self, states_NH: Tensor) -> float:
        """R of the predictions at these states; 1 for a soft prompt without any effect that they equal."""
        left = self.divergence(states_NH)
        return 1 - left / self.total if self.total > 0 else float(left == 0)

    def recovered(self, prompts: Sequence[SoftPrompt]) -> list[float]:
        """R of soft prompts in the place of this one, of any form."""
        return [self.share(states) for states in self.states_behind(prompts)]

    @torch.no_grad()
    def states_behind(self, prompts: Sequence[SoftPrompt]) -> list[Tensor]:
        """[N, H] of each soft prompt in the place of this one."""
        return self._states([replace(self.formatted, prompt=prompt).prefix(self.lm) for prompt in prompts])

    def first_places(self) -> Tensor:
        """Numbers among the N of the tokens that begin an answer."""
        counts = [sum(example.mask) for example in self.examples]
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
        return starts[torch.tensor(counts) > 0]

    def targets(self) -> Tensor:
        """[N] the answers' token ids."""
        return learned_positions(self.examples)[1]

    def _states(self, prefixes: Sequence[Prefix], examples: Sequence[Example] | None = None) -> list[Tensor]:
        """For each prefix [N, H], rows of several prefixes in one pass."""
        rows = self.examples if examples is None else list(examples)
        jobs = [(number, i) for number in range(len(prefixes)) for i in range(len(rows)) if any(rows[i].mask)]
        found: dict[tuple[int, int], Tensor] = {}
        for batch in by_tokens([len(rows[i].ids) for _, i in jobs], _BATCH_TOKENS):
            chosen = [jobs[place] for place in batch]
            used = sorted({number for number, _ in chosen})
            prefix_kv = prepare_prefixes(self.lm, [prefixes[number] for number in used])
            numbers = [used.index(number) for number, _ in chosen]
            states, _ = supervised(self.lm, prefix_kv, [rows[i] for _, i in chosen], numbers)
            sizes = [sum(rows[i].mask) for _, i in chosen]
            found |= zip(chosen, states.split(sizes), strict=True)
        return [
            torch.cat([found[number, i] for i in range(len(rows)) if any(rows[i].mask)])
            for number in range(len(prefixes))
        ]
