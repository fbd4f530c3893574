"""The teacher: the frozen model after the full text, whose keys and values are computed once for all rows.

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
    """The base model, reading a text chunk by chunk.

    Attributes:
        chunks: the text in chunks; one if it fits in the context.
        template: of the rows after the text. The text stands in a system turn of `VIRTUAL` if the template has one,
            else before everything.
    """

    lm: FrozenLM
    chunks: tuple[str, ...]
    template: Template
    _prefix_cache: dict[int, PrefixKV] = field(default_factory=dict, compare=False, repr=False)

    def formatted(self, chunk: int) -> FormattedPrompt:
        """A chunk of the text in the template's layout."""
        layout = layout_for(self.lm, self.template, "embedding")
        with_text = layout.model_copy(update={"lead": layout.lead + self.chunks[chunk]})
        return FormattedPrompt(None, self.template, with_text)

    def prefix(self, chunk: int) -> Prefix:
        """A chunk of the text as the prefix of rows."""
        return self.formatted(chunk).prefix(self.lm)

    @torch.no_grad()
    def prefix_kv(self, chunk: int) -> PrefixKV:
        """The keys and values of a chunk; those of the last chunk are kept for the next batch of rows about it."""
        if chunk not in self._prefix_cache:
            self._prefix_cache.clear()
            self._prefix_cache[chunk] = prepare_prefixes(self.lm, [self.prefix(chunk)])
        return self._prefix_cache[chunk]

    def answers(
        self,
        chunk: int,
        rows: Sequence[Sequence[int]],
        sampling: Sampling,
        end_ids: Sequence[int],
        k: int,
        temperature: float,
    ) -> list[tuple[tuple[int, ...], SoftLabels]]:
        """Answer rows of token ids; soft labels come from the logits that the answers' tokens were sampled from.

        An answer that ends by itself includes the end token.
        """
        labels: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows]

        def record(active: Sequence[int], logits_nV: Tensor) -> None:
            ids_nK, logprobs_nK = top_soft_labels(logits_nV, k, temperature)
            for row, ids_K, logprobs_K in zip(active, ids_nK, logprobs_nK, strict=True):
                labels[row].append((ids_K, logprobs_K))

        completions = decode_batch(
            self.lm,
            self.prefix_kv(chunk),
            rows,
            [0] * len(rows),
            sampling,
            end_ids=[end_ids] * len(rows),
            on_logits=record,
        )
        answers = [
            (*completion.ids, end_ids[0]) if completion.finish == "stop" else tuple(completion.ids)
            for completion in completions
        ]
        stacked = [tuple(torch.stack(part) for part in zip(*row, strict=True)) for row in labels]
        soft_labels = [SoftLabels(ids, logprobs, temperature) for ids, logprobs in stacked]
        return list(zip(answers, soft_labels, strict=True))

    @torch.no_grad()
    def soft_labels(self, chunk: int, examples: Sequence[Example], k: int, temperature: float) -> list[SoftLabels]:
        """The K likeliest tokens at each learned token of these examples, and their log-probabilities."""
        return self._soft_labels(self.prefix_kv(chunk), examples, k, temperature)

    @torch.no_grad()
    def soft_labels_after(
        self, prefix: Prefix, examples: Sequence[Example], k: int, temperature: float
    ) -> list[SoftLabels]:
        """As `soft_labels`, after another prefix than a chunk alone."""
        return self._soft_labels(prepare_prefixes(self.lm, [prefix]), examples, k, temperature)

    def _soft_labels(
        self, prefix_kv: PrefixKV, examples: Sequence[Example], k: int, temperature: float
    ) -> list[SoftLabels]:
        states, _ = supervised(self.lm, prefix_kv, examples, None)
        parts = [top_soft_labels(self.lm.logits(part), k, temperature) for part in states.split(CHUNK)]
        ids_NK, logprobs_NK = (torch.cat(part) for part in zip(*parts, strict=True))
        sizes = [sum(example.mask) for example in examples]
        pairs = zip(ids_NK.split(sizes), logprobs_NK.split(sizes), strict=True)
        return [SoftLabels(ids, logprobs, temperature) for ids, logprobs in pairs]


def top_soft_labels(logits_NV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens [N, K], int32, and their log-probabilities at this temperature, float32; on the CPU."""
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, -1)
    top = logprobs_NV.topk(min(k, logprobs_NV.shape[1] - 1))
    return top.indices.int().cpu(), top.values.cpu()
