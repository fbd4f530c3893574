"""The teacher: the frozen model with the text in front. Its keys and values are computed once for all rows.

Shapes: N learned tokens, K likeliest tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softprompt.data.soft_labels import SoftLabels
from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import CHUNK
from softprompt.objectives.next_token import supervised
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import prepare_prefixes


@dataclass(frozen=True)
class Teacher:
    """The base model reading a text, piece by piece.

    Attributes:
        chunks: the pieces; one that holds the whole text, if it fits.
        template: of the rows behind it; the text stands in a system turn of `VIRTUAL`, else in front of all.
    """

    lm: FrozenLM
    chunks: tuple[str, ...]
    template: Template
    _ready: dict[int, PrefixKV] = field(default_factory=dict, compare=False, repr=False)

    def formatted(self, chunk: int) -> FormattedPrompt:
        """A piece of the text in its frame."""
        around = layout_for(self.lm, self.template, "embedding")
        whole = around.model_copy(update={"lead": around.lead + self.chunks[chunk]})
        return FormattedPrompt(None, self.template, whole)

    def prefix(self, chunk: int) -> Prefix:
        """A piece of the text as it stands in front of rows."""
        return self.formatted(chunk).prefix(self.lm)

    @torch.no_grad()
    def prefix_kv(self, chunk: int) -> PrefixKV:
        """Its keys and values, computed once for all batches of rows about it; of one piece at a time."""
        if chunk not in self._ready:
            self._ready.clear()
            self._ready[chunk] = prepare_prefixes(self.lm, [self.prefix(chunk)])
        return self._ready[chunk]

    def answers(
        self,
        chunk: int,
        rows: Sequence[Sequence[int]],
        sampling: Sampling,
        end_ids: Sequence[int],
        k: int,
        temperature: float,
    ) -> list[tuple[tuple[int, ...], SoftLabels]]:
        """What it answers to these rows of token ids, with the end token where it came to an end, and its lessons on
        the answers: what it said when it chose their tokens."""
        said: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows]

        def note(going: Sequence[int], logits_nV: Tensor) -> None:
            for row, *one in zip(going, *top_soft_labels(logits_nV, k, temperature), strict=True):
                said[row].append((one[0], one[1]))

        found = decode_batch(
            self.lm,
            self.prefix_kv(chunk),
            rows,
            [0] * len(rows),
            sampling,
            end_ids=[end_ids] * len(rows),
            on_logits=note,
        )
        answers = [(*answer.ids, end_ids[0]) if answer.finish == "stop" else tuple(answer.ids) for answer in found]
        stacked = [tuple(torch.stack(part) for part in zip(*row, strict=True)) for row in said]
        lessons = [SoftLabels(ids, logprobs, temperature) for ids, logprobs in stacked]
        return list(zip(answers, lessons, strict=True))

    @torch.no_grad()
    def lessons(self, chunk: int, examples: Sequence[Example], k: int, temperature: float) -> list[SoftLabels]:
        """What it says at each learned token of these rows: the K likeliest tokens."""
        states, _ = supervised(self.lm, self.prefix_kv(chunk), examples, None)
        parts = [top_soft_labels(self.lm.logits(part), k, temperature) for part in states.split(CHUNK)]
        ids_NK, logprobs_NK = (torch.cat(part) for part in zip(*parts, strict=True))
        sizes = [sum(example.mask) for example in examples]
        pairs = zip(ids_NK.split(sizes), logprobs_NK.split(sizes), strict=True)
        return [SoftLabels(ids, logprobs, temperature) for ids, logprobs in pairs]


def top_soft_labels(logits_NV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens [N, K], int32, and their log-probabilities at this temperature, float32; on CPU."""
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, -1)
    top = logprobs_NV.topk(min(k, logprobs_NV.shape[1] - 1))
    return top.indices.int().cpu(), top.values.cpu()
