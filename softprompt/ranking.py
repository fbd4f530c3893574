"""Labels ranked by log-likelihood behind each row's text, which is run once and shared by its labels.

The labels are a tree of tokens: shared beginnings are run once, and a label's last token needs no run at all.

Shapes: R rows, M inner nodes of the label tree, E edges, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.attach import bank, hidden
from softprompt.data.formats import Record
from softprompt.data.template import end_id
from softprompt.data.tokenise import prompt_ids, target_ids
from softprompt.framing import Subject, check_records
from softprompt.model import FrozenLM
from softprompt.packing import Row, by_tokens

TOKENS = 8192  # text and label tokens run at once
HEAD_POSITIONS = 256  # positions whose logits are held at once


@torch.no_grad()
def rank(lm: FrozenLM, subject: Subject, records: Sequence[Record], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Log-likelihood [R, labels] of every label behind every row, and tokens [labels] of each label."""
    tree = LabelTree.of(lm, subject, labels)
    bodies = [prompt_ids(record, subject.template, lm.tokenizer) for record in records]
    prefixes = bank(lm, [subject.prefix(lm)])
    check_records(lm, records, bodies, prefixes.lengths[0] + max(tree.lengths) - 1)
    totals = torch.zeros(len(records), len(labels))
    for part in by_tokens([len(body) + len(tree.tokens) for body in bodies], TOKENS):
        rows = [tree.behind(bodies[i]) for i in part]
        states = hidden(lm, prefixes, rows)
        ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0)
        nodes = torch.arange(-1, len(tree.tokens)) - len(tree.tokens)  # the text's last token, then the inner nodes
        states_RMH = states[(ends[:, None] + nodes).to(lm.device)]
        totals[part] = tree.totals(lm, states_RMH).cpu()
    return totals, torch.tensor(tree.lengths, dtype=torch.float)


@dataclass(frozen=True)
class LabelTree:
    """All labels as one tree of tokens. Only inner nodes are run: a last token needs no successor.

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
    def of(lm: FrozenLM, subject: Subject, labels: Sequence[str]) -> LabelTree:
        """The tree of these labels. If one label begins another, the end token is part of all of them."""
        texts = [target_ids(label, subject.template, lm.tokenizer) for label in labels]
        begins = {tuple(ids[:n]) for ids in texts for n in range(1, len(ids))}
        if any(tuple(ids) in begins for ids in texts):
            texts = [[*ids, end_id(subject.template, lm.tokenizer)] for ids in texts]
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
        return LabelTree(
            tuple(ids[-1] for ids in inner),
            tuple(nodes[ids[:-1]] - 1 for ids in inner),
            tuple(edges),
            tuple(paths),
        )

    def behind(self, body: Sequence[int]) -> Row:
        """The row of a text with the tree grown on its last token."""
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
