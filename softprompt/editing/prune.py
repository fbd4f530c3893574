"""Measures the importance of each virtual token, and prunes the least important ones.

Ma et al.: XPrompt: Exploring the Extreme of Prompt Tuning. EMNLP 2022. https://arxiv.org/abs/2210.04457
prunes the negative tokens of a trained prompt and retrains the others from their initial values ("rewind"). Here a
token's score is measured, not estimated: the loss of the rows without the token, minus the loss with it. Each shortened
prompt is scored as it would be saved: in a KV prompt the later tokens move one position to the left.

All shortened prompts are prefixes of one batch, and every row is run after each of them.

Shapes: P virtual tokens, V vocabulary, H embedding width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softprompt.data.records import Record
from softprompt.data.tokenize import Example, tokenize
from softprompt.editing.compose import select
from softprompt.errors import PromptError
from softprompt.formatting.context import check_context
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

_BATCH_TOKENS = 8192  # row and prefix tokens in one pass
_PREFIX_TOKENS = 4096  # virtual tokens of all prefixes prepared together


@dataclass(frozen=True)
class Scores:
    """The importance of each virtual token.

    Attributes:
        loss: mean -log p per learned token with the whole prompt.
        rises: [P] increase of the loss without each token; negative if the prompt is better without it.
    """

    loss: float
    rises: tuple[float, ...]


@dataclass(frozen=True)
class PruneResult:
    """A soft prompt reduced to its most important tokens.

    Attributes:
        kept: numbers of the kept tokens, in order.
        loss: of the pruned prompt on the same rows; the scores of single tokens do not add up to it.
    """

    prompt: SoftPrompt
    kept: tuple[int, ...]
    loss: float


def score(lm: FrozenLM, formatted: FormattedPrompt, records: Sequence[Record]) -> Scores:
    """Score every virtual token by the loss without it.

    Raises:
        PromptError: no soft prompt, or only one virtual token.
        DataError: the rows cannot be used, or do not fit in the context.
        UnsupportedModelError: a KV prompt of a model whose keys cannot be moved.
    """
    prompt = _prompt_of(formatted)
    if prompt.n_tokens < 2:
        raise PromptError("the only virtual token cannot be pruned")
    everything = range(prompt.n_tokens)
    trials = [
        select(prompt, everything),
        *(select(prompt, [*everything[:i], *everything[i + 1 :]], lm) for i in everything),
    ]
    whole, *without = _losses(lm, formatted, trials, records)
    return Scores(whole, tuple(loss - whole for loss in without))


def prune(
    lm: FrozenLM, formatted: FormattedPrompt, records: Sequence[Record], scores: Scores, keep: int
) -> PruneResult:
    """Keep the `keep` tokens with the greatest scores. Raises PromptError if the prompt has fewer."""
    prompt = _prompt_of(formatted)
    if not 1 <= keep <= prompt.n_tokens:
        raise PromptError("so many virtual tokens cannot be kept", expected=f"1 to {prompt.n_tokens}", got=keep)
    best = sorted(range(prompt.n_tokens), key=lambda i: -scores.rises[i])[:keep]
    kept = tuple(sorted(best))
    pruned = select(prompt, kept, lm)
    return PruneResult(pruned, kept, _losses(lm, formatted, [pruned], records)[0])


def nearest_tokens(lm: FrozenLM, prompt: SoftPrompt) -> list[str]:
    """For each virtual token the text of the vocabulary's nearest token by cosine; "" for keys and values."""
    embeddings_PH = prompt.input_embeddings()
    if embeddings_PH is None:
        return [""] * prompt.n_tokens
    table_VH = normalize(lm.embedding_table.detach().to(lm.device).float(), dim=-1)
    virtual_PH = normalize(embeddings_PH.detach().to(lm.device, torch.float32), dim=-1)
    return [str(lm.tokenizer.decode([i])) for i in (virtual_PH @ table_VH.T).argmax(1).tolist()]


@torch.no_grad()
def _losses(
    lm: FrozenLM, formatted: FormattedPrompt, trials: Sequence[SoftPrompt], records: Sequence[Record]
) -> list[float]:
    """Mean -log p per learned token of the rows, for each prompt in the layout of `formatted`."""
    examples = tokenize(records, formatted.template, lm.tokenizer, max_length=sys.maxsize)
    prefixes = [replace(formatted, prompt=trial).prefix(lm) for trial in trials]
    longest = max(trial.n_tokens for trial in trials) + len(prefixes[0].lead) + len(prefixes[0].follow)
    check_context(lm, [(row.where, len(row.ids), longest) for row in examples], "leave the row out")
    group = max(1, _PREFIX_TOKENS // longest)
    sums: list[Tensor] = []
    for start in range(0, len(prefixes), group):
        part = prefixes[start : start + group]
        sums.append(_sums(lm, part, examples, longest))
    return (torch.cat(sums) / learned_tokens(examples)).tolist()


def _sums(lm: FrozenLM, prefixes: Sequence[Prefix], examples: Sequence[Example], around: int) -> Tensor:
    """Sum of -log p over all rows after each prefix, float64."""
    shared = prepare_prefixes(lm, prefixes)
    pairs = [(prefix_id, example) for prefix_id in range(len(prefixes)) for example in examples]
    sums = torch.zeros(len(prefixes), dtype=torch.float64)
    for part in by_tokens([len(example.ids) + around for _, example in pairs], _BATCH_TOKENS):
        prefix_ids, rows = [pairs[i][0] for i in part], [pairs[i][1] for i in part]
        values = token_losses(lm, shared, rows, prefix_ids).double().cpu()
        counts = torch.tensor([learned_tokens([row]) for row in rows])
        sums.index_add_(0, torch.tensor(prefix_ids).repeat_interleave(counts), values)
    return sums


def _prompt_of(formatted: FormattedPrompt) -> SoftPrompt:
    if formatted.prompt is None:
        raise PromptError("there is no soft prompt whose tokens could be pruned")
    return formatted.prompt
