"""A soft prompt's effect on rows: how far it moves the next-token predictions, and how much another prompt does so.

    effect       E(P)   = mean KL( p(· | P, x) ‖ p(· | x) )                       at the tokens of the answers
    recovered    R(Q)   = 1 − mean KL( p(· | P, x) ‖ p(· | Q, x) ) / E(P)         1: all of it, 0: none, below 0: harm

The measure of Context distillation (Askell et al. 2021, https://arxiv.org/abs/2112.00861) with the prompt as its own
teacher. A reading of a prompt (its nearest tokens, a part of it, a text) is put in its place and judged by R.

Shapes: N answer tokens, H width, V vocabulary, M prompts.
"""

from __future__ import annotations

import copy
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
from softprompt.formatting.text_prompt import text_prompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import divergences
from softprompt.objectives.next_token import learned_positions, supervised
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

_BATCH_TOKENS = 2048  # tokens in one forward pass, about
_LOGITS = 128  # positions whose logits are in memory at a time
_HALVED_ROWS = 4  # fewer are not split


class PromptEffect:
    """The predictions behind a soft prompt and without it, on the same rows.

    Attributes:
        lm: the base model.
        formatted: the soft prompt with its template and layout.
        prompt: the soft prompt.
        records: the rows.
        examples: the same, tokenized.
        states: [N, H] final hidden states before each answer token, after the soft prompt.
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
        self.records = list(records)
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
        """Mean KL(after the soft prompt ‖ these states), nats a token."""
        return divergences(states_NH, self.states, self.lm.logits).mean().item()

    def share(self, states_NH: Tensor) -> float:
        """R of the predictions at these states; 1 for a soft prompt without any effect that they equal."""
        return self.shares([states_NH])[0]

    @torch.no_grad()
    def shares(self, states: Sequence[Tensor]) -> list[float]:
        """R of several predictions [N, H]. The soft prompt's own are computed once for all."""
        if not states:
            return []
        total_M = torch.zeros(len(states), dtype=torch.float64)
        for places in torch.arange(len(self.states)).split(_LOGITS):
            own_nV = self.lm.logits(self.states[places]).float().log_softmax(-1)
            own_p_nV, together = own_nV.exp(), max(1, _LOGITS // len(places))
            for numbers in torch.arange(len(states)).split(together):
                flat_NH = torch.cat([states[number][places] for number in numbers.tolist()])
                other_mnV = self.lm.logits(flat_NH).float().log_softmax(-1).unflatten(0, (len(numbers), -1))
                total_M[numbers] += ((own_nV - other_mnV) * own_p_nV).sum((1, 2)).double().cpu()
        left = (total_M / len(self.states)).tolist()
        return [1 - value / self.total if self.total > 0 else float(value <= 0) for value in left]

    def recovered(self, prompts: Sequence[SoftPrompt]) -> list[float]:
        """R of soft prompts in the place of this one, of any form."""
        return self.shares(self.states_behind(prompts))

    @torch.no_grad()
    def states_behind(self, prompts: Sequence[SoftPrompt]) -> list[Tensor]:
        """[N, H] of each soft prompt in the place of this one."""
        return self._states([self.prefix_of(prompt) for prompt in prompts])

    @torch.no_grad()
    def recovered_by_text(self, text: str) -> float:
        """R of a text prompt in the place of the soft prompt: an instruction before the same template."""
        formatted = text_prompt(self.lm, self.base_formatted.template, text)
        examples = tokenize(self.records, formatted.template, self.lm.tokenizer, max_length=sys.maxsize)
        return self.share(self._states([formatted.prefix(self.lm)], examples)[0])

    def prefix_of(self, prompt: SoftPrompt) -> Prefix:
        """The prefix with another soft prompt in the place of this one."""
        return replace(self.formatted, prompt=prompt).prefix(self.lm)

    def first(self, tokens: int) -> PromptEffect:
        """The effect on the first rows, as many as have about so many tokens, and at least two."""
        sizes = torch.tensor([len(example.ids) for example in self.examples]).cumsum(0)
        return self._part(range(max(2, int((sizes <= tokens).sum()))))

    def shortest(self, tokens: int) -> PromptEffect:
        """The effect on the shortest rows, as many as have about so many tokens, and at least two."""
        sizes = [len(example.ids) for example in self.examples]
        order = sorted((i for i, example in enumerate(self.examples) if any(example.mask)), key=lambda i: sizes[i])
        fitting = torch.tensor([sizes[i] for i in order]).cumsum(0) <= tokens
        return self._part(sorted(order[: max(2, int(fitting.sum()))]))

    def halves(self, tokens: int) -> tuple[PromptEffect, PromptEffect]:
        """The effect on every other row, and on the rows between, each of about so many tokens.

        Both are the whole if there are too few rows with answers.
        """
        answered = [i for i, example in enumerate(self.examples) if any(example.mask)]
        if len(answered) < _HALVED_ROWS:
            return self, self
        return self._part(answered[::2]).first(tokens), self._part(answered[1::2]).first(tokens)

    def by_row(self) -> list[tuple[float, PromptEffect]]:
        """Each row with an answer alone, and the part of the whole effect that it has; these parts add up to 1."""
        answered = [i for i, example in enumerate(self.examples) if any(example.mask)]
        rows = [self._part([i]) for i in answered]
        sums = [row.total * len(row.states) for row in rows]
        return [(part / (sum(sums) or 1.0), row) for part, row in zip(sums, rows, strict=True)]

    def _part(self, chosen: Sequence[int]) -> PromptEffect:
        """The effect on the rows with these numbers; the whole if none of them has an answer."""
        rows = [i for i in chosen if i < len(self.examples)]
        learned = [sum(example.mask) for example in self.examples]
        if len(rows) == len(self.examples) or not any(learned[i] for i in rows):
            return self
        part = copy.copy(self)
        part.records, part.examples = [self.records[i] for i in rows], [self.examples[i] for i in rows]
        states, base_states = self.states.split(learned), self.base_states.split(learned)
        part.states = torch.cat([states[i] for i in rows])
        part.base_states = torch.cat([base_states[i] for i in rows])
        part.total = part.divergence(part.base_states)
        return part

    def of_other(self, prompt: SoftPrompt) -> PromptEffect:
        """The effect of another soft prompt on the same rows."""
        other = copy.copy(self)
        other.formatted, other.prompt = replace(self.formatted, prompt=prompt), prompt
        other.states = self.states_behind([prompt])[0]
        other.total = other.divergence(self.base_states)
        return other

    def first_places(self) -> Tensor:
        """Numbers among the N of the tokens that begin an answer."""
        counts = [sum(example.mask) for example in self.examples]
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
        return starts[torch.tensor(counts) > 0]

    def targets(self) -> Tensor:
        """[N] the answers' token ids."""
        return learned_positions(self.examples)[1]

    def _states(self, prefixes: Sequence[Prefix], examples: Sequence[Example] | None = None) -> list[Tensor]:
        """For each prefix [N, H]. Prefixes of about the same length share a pass, and so do all their rows."""
        rows = [row for row in (self.examples if examples is None else examples) if any(row.mask)]
        row_tokens, found = sum(len(row.ids) for row in rows), dict[tuple[int, int], Tensor]()
        for group in by_tokens([_length(prefix) + row_tokens for prefix in prefixes], _BATCH_TOKENS):
            prefix_kv = prepare_prefixes(self.lm, [prefixes[number] for number in group])
            jobs = [(place, i) for place in range(len(group)) for i in range(len(rows))]
            for batch in by_tokens([len(rows[i].ids) for _, i in jobs], _BATCH_TOKENS):
                chosen = [jobs[place] for place in batch]
                states, _ = supervised(self.lm, prefix_kv, [rows[i] for _, i in chosen], [place for place, _ in chosen])
                parts = states.split([sum(rows[i].mask) for _, i in chosen])
                found |= {(group[place], i): part for (place, i), part in zip(chosen, parts, strict=True)}
        return [torch.cat([found[number, i] for i in range(len(rows))]) for number in range(len(prefixes))]


def _length(prefix: Prefix) -> int:
    virtual = prefix.prompt.n_tokens if prefix.prompt is not None else 0
    return len(prefix.lead) + virtual + len(prefix.follow)
