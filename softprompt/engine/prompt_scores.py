"""Log-probabilities of the tokens that a job was given, from the hidden states of its own prefill.

A prompt is read in several steps, among other jobs' tokens; each step adds the states of its positions. The state at a
position predicts the next token. The states of virtual tokens count where they are embedded; those of keys and values
do not exist.

Shapes: Q positions of one step, N of one product with the head, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.engine.base import PromptToken
from softprompt.engine.virtual_tokens import LoadedPrompt
from softprompt.errors import EngineError
from softprompt.models.backbone import NO_ID
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, embedded, embedded_ids
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes

_HEAD_POSITIONS = 128  # positions whose logits are in memory at once


@torch.no_grad()
def score_prompt(lm: FrozenLM, prefix: Prefix, ids: Sequence[int], count: int) -> tuple[PromptToken, ...]:
    """The words of a prefix and a text after it, scored by a forward pass of their own, for engines that cannot.

    Args:
        count: likeliest tokens to report for each token.

    Raises EngineError if the model's logits are not finite.
    """
    prompt = prefix.prompt
    virtual = 0 if prompt is None else prompt.n_tokens
    every = (*prefix.lead, *[NO_ID] * virtual, *prefix.follow)
    embeddings = None if prompt is None else prompt.input_embeddings()
    scorer = PromptScorer(LoadedPrompt("", every, len(prefix.lead), virtual, embeddings), ids, count)
    before = Prefix(prompt, prefix.lead)
    if prefix.lead or embeddings is not None:
        embeds_1SH, ids_1S = embedded(lm, before)[None], embedded_ids(lm, before)[None]
        scorer.add(lm, 0, lm.backbone.run(embeds_BLH=embeds_1SH, embedded_ids_BL=ids_1S)[0])
    states_TH = hidden_states(lm, prepare_prefixes(lm, [before]), [Row([*prefix.follow, *ids])])
    scorer.add(lm, len(prefix.lead) + virtual, states_TH)
    return scorer.tokens()


class PromptScorer:
    """Scores the words of a prefix and the text of one job.

    Args:
        ids: the job's text.
        count: likeliest tokens to report for each token.

    Attributes:
        first: the first position whose hidden state is needed.
    """

    def __init__(self, loaded: LoadedPrompt, ids: Sequence[int], count: int) -> None:
        self._where = loaded.name or "base model"
        self._count = count
        self._ids = [*loaded.ids, *ids]
        virtual = range(loaded.first, loaded.first + loaded.size)
        silent = virtual if loaded.embeddings is None else range(0)
        self._places = [place for place in range(len(self._ids)) if place not in virtual]
        self._scored = {place for place in self._places if place > 0 and place - 1 not in silent}
        self.first = min(self._scored, default=len(self._ids)) - 1
        self._found: dict[int, PromptToken] = {}
        self._finite = True

    def add(self, lm: FrozenLM, past: int, states_QH: Tensor) -> None:
        """Score the tokens after the positions `past`, `past + 1`, … from their hidden states."""
        places = [place for place in range(past + 1, past + len(states_QH) + 1) if place in self._scored]
        for start in range(0, len(places), _HEAD_POSITIONS):
            part = places[start : start + _HEAD_POSITIONS]
            before = torch.tensor(part, device=states_QH.device) - past - 1
            self._add(part, lm.logits(states_QH[before]).float().log_softmax(-1))

    def tokens(self) -> tuple[PromptToken, ...]:
        """All tokens but virtual ones. Raises EngineError if the model's logits are not finite."""
        if not self._finite:
            raise EngineError("the model's logits are not finite", where=self._where)
        assert self._found.keys() == self._scored, "a position was not computed"
        return tuple(self._found.get(place) or PromptToken(self._ids[place]) for place in self._places)

    def _add(self, places: Sequence[int], logprobs_NV: Tensor) -> None:
        ids = torch.tensor([self._ids[place] for place in places], device=logprobs_NV.device)
        given_N1 = logprobs_NV.gather(1, ids[:, None])
        self._finite = self._finite and not bool(logprobs_NV.isnan().any())
        ranks = ((logprobs_NV > given_N1).sum(1) + 1).tolist()
        top = logprobs_NV.topk(min(self._count, logprobs_NV.shape[1]))
        best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        for place, logprob, rank, (others, values) in zip(places, given_N1[:, 0].tolist(), ranks, best, strict=True):
            likeliest = tuple(zip(others, values, strict=True))
            self._found[place] = PromptToken(self._ids[place], logprob, rank, likeliest)
