"""Ranks class labels, or each row's choices, by log-likelihood after the row's text, which runs once for all.

The labels are a trie of tokens: shared beginnings run once, and the last token of a label does not run at all.

Shapes: R rows, M inner nodes of the label trie, E edges, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id
from softprompt.formatting.context import check_records
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import PrefixKV
from softprompt.prefix.packing import Row, by_tokens
from softprompt.prefix.prepare import hidden_states, prepare_prefixes, start_decoding

_TOKENS = 8192  # text and label tokens in one forward pass
HEAD_POSITIONS = 256  # positions whose logits are in memory at once


@torch.no_grad()
def rank_labels(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    labels: Sequence[str],
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood [R, labels] of every label after every row's text, and number of tokens [labels] of each label."""
    trie = LabelTrie.of(lm, formatted, labels)
    bodies = [prompt_ids(record, formatted.template, lm.tokenizer) for record in records]
    prefixes = prepare_prefixes(lm, [formatted.prefix(lm)])
    check_records(lm, records, bodies, prefixes.lengths[0] + lm.beside_text(max(trie.lengths) - 1))
    totals = torch.zeros(len(records), len(labels))
    states_of, sizes = (_levels, _level_tokens) if lm.is_encoder_decoder else (_packed, _packed_tokens)
    done = 0
    for part in by_tokens(sizes(bodies, prefixes, trie), _TOKENS):
        totals[part] = trie.totals(lm, states_of(lm, prefixes, [bodies[i] for i in part], trie)).cpu()
        done += len(part)
        progress(done / len(records))
    return totals, torch.tensor(trie.lengths, dtype=torch.float)


@torch.no_grad()
def rank_choices(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    progress: Callable[[float], None] = lambda share: None,
) -> list[tuple[Tensor, Tensor]]:
    """For each row the log-likelihood [C] of each of its own C choices after its text, and their numbers of tokens [C].

    The choices of a row are a trie of their own; rows of a causal model run packed, whatever their choices.
    """
    tries = [LabelTrie.of(lm, formatted, record.choices) for record in records]
    bodies = [prompt_ids(record, formatted.template, lm.tokenizer) for record in records]
    prefixes = prepare_prefixes(lm, [formatted.prefix(lm)])
    for record, body, trie in zip(records, bodies, tries, strict=True):
        check_records(lm, [record], [body], prefixes.lengths[0] + lm.beside_text(max(trie.lengths) - 1))
    totals: list[Tensor] = [torch.empty(0)] * len(records)
    if lm.is_encoder_decoder:
        for i, (body, trie) in enumerate(zip(bodies, tries, strict=True)):
            totals[i] = trie.totals(lm, _levels(lm, prefixes, [body], trie))[0].cpu()
            progress((i + 1) / len(records))
    else:
        sizes = [len(body) + len(trie.tokens) for body, trie in zip(bodies, tries, strict=True)]
        done = 0
        for part in by_tokens(sizes, _TOKENS):
            rows = [tries[i].row_for(bodies[i]) for i in part]
            states = hidden_states(lm, prefixes, rows).split([len(row.ids) for row in rows])
            for i, row_states in zip(part, states, strict=True):
                totals[i] = tries[i].totals(lm, row_states[None, len(bodies[i]) - 1 :])[0].cpu()
            done += len(part)
            progress(done / len(records))
    lengths = [torch.tensor(trie.lengths, dtype=torch.float) for trie in tries]
    return list(zip(totals, lengths, strict=True))


def _packed(lm: FrozenLM, prefixes: PrefixKV, bodies: Sequence[Sequence[int]], trie: LabelTrie) -> Tensor:
    """Hidden states [R, M + 1, H] of the text's last token and the inner nodes: each text is one row with the trie."""
    rows = [trie.row_for(body) for body in bodies]
    states = hidden_states(lm, prefixes, rows)
    ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0)
    nodes = torch.arange(-1, len(trie.tokens)) - len(trie.tokens)
    return states[(ends[:, None] + nodes).to(lm.device)]


def _packed_tokens(bodies: Sequence[Sequence[int]], _: PrefixKV, trie: LabelTrie) -> list[int]:
    """Tokens that each text takes in a forward pass of `_packed`."""
    return [len(body) + len(trie.tokens) for body in bodies]


def _levels(lm: FrozenLM, prefixes: PrefixKV, bodies: Sequence[Sequence[int]], trie: LabelTrie) -> Tensor:
    """`_packed` for an encoder–decoder: each text is encoded once, and the decoder runs the trie level by level.

    T5 encodes positions as distances within the row, so branches cannot be packed into one row: a row with several
    branches continues as several rows.
    """
    rows = len(bodies)
    decoding = start_decoding(lm, prefixes, bodies, [0] * rows, room=max(trie.lengths))
    states = decoding.hidden.new_empty(rows, len(trie.tokens) + 1, decoding.hidden.shape[1])
    states[:, 0] = decoding.hidden
    tokens, level = torch.tensor(trie.tokens, device=lm.device), [-1]
    while nodes := [node for node, parent in enumerate(trie.parents) if parent in level]:
        parents = torch.tensor([level.index(trie.parents[node]) for node in nodes], device=lm.device)
        decoding.keep((torch.arange(rows, device=lm.device)[:, None] * len(level) + parents).flatten())
        new = decoding.step(tokens[nodes].repeat(rows))
        states[:, [node + 1 for node in nodes]] = new.view(rows, len(nodes), -1)
        level = nodes
    return states


def _level_tokens(bodies: Sequence[Sequence[int]], prefixes: PrefixKV, trie: LabelTrie) -> list[int]:
    """Encoder tokens that each text takes at most in `_levels`, with a copy for each branch."""
    return [(prefixes.lengths[0] + len(body)) * max(1, len(trie.tokens)) for body in bodies]


@dataclass(frozen=True)
class LabelTrie:
    """All labels as one trie of tokens. Only inner nodes run: the last token of a label has no successor to predict.

    Attributes:
        tokens: the token of each inner node but the root (the text's last token).
        parents: its parent's number in `tokens`, -1 for the root.
        edges: (node, token) pairs whose log-likelihoods are needed; node 0 is the root.
        paths: for each label the numbers of its edges.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each label."""
        return [len(path) for path in self.paths]

    @staticmethod
    def of(lm: FrozenLM, formatted: FormattedPrompt, labels: Sequence[str]) -> LabelTrie:
        """The trie of these labels. If one label is the beginning of another, all labels end with the end token."""
        texts = [target_ids(label, formatted.template, lm.tokenizer) for label in labels]
        begins = {tuple(ids[:n]) for ids in texts for n in range(1, len(ids))}
        if any(tuple(ids) in begins for ids in texts):
            texts = [[*ids, end_id(formatted.template, lm.tokenizer)] for ids in texts]
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for ids in texts:
            path = []
            for n, token in enumerate(ids):
                node = nodes.setdefault(tuple(ids[:n]), len(nodes))
                path.append(edges.setdefault((node, token), len(edges)))
            paths.append(tuple(path))
        inner = list(nodes)[1:]
        return LabelTrie(
            tuple(ids[-1] for ids in inner),
            tuple(nodes[ids[:-1]] - 1 for ids in inner),
            tuple(edges),
            tuple(paths),
        )

    def row_for(self, body: Sequence[int]) -> Row:
        """The row of a text followed by the trie, whose root is the text's last token."""
        stem = len(body)
        parents = [
            *range(-1, stem - 1),
            *(stem + parent if parent >= 0 else stem - 1 for parent in self.parents),
        ]
        return Row([*body, *self.tokens], parents=parents)

    def totals(self, lm: FrozenLM, states_RMH: Tensor) -> Tensor:
        """Log-likelihood [R, labels] from the hidden states of root and inner nodes."""
        nodes = states_RMH.shape[1]
        at = torch.tensor(self.edges, device=lm.device)
        parts = []
        for states in states_RMH.split(max(1, HEAD_POSITIONS // nodes)):
            logits = lm.logits(states.flatten(0, 1)).float().view(len(states), nodes, -1)
            parts.append(logits[:, at[:, 0], at[:, 1]] - logits.logsumexp(-1)[:, at[:, 0]])
        per_edge = torch.cat(parts)
        return torch.stack([per_edge[:, list(path)].sum(1) for path in self.paths], dim=1)
