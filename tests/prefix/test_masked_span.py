"""Virtual tokens that a row may not see: as if they were not there, but for the positions of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import check_close, random_prompt, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

ROWS = [text_ids(n, 60 + n) for n in (5, 1, 9)]
SPANS = [(0, 2), (1, 4), (4, 6)]


@torch.no_grad()
def logits(lm: FrozenLM, prefixes: list[Prefix], owner: int) -> Tensor:
    return lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, prefixes), [Row(row, owner) for row in ROWS]))


@torch.no_grad()
def masked_oracle(lm: FrozenLM, prefix: Prefix) -> Tensor:
    """The model's own forward over the concatenation, hidden tokens masked out for all that come after them."""
    assert isinstance(prefix.prompt, EmbeddingPrompt)
    found = []
    for row in ROWS:
        layout = [lm.embed(torch.tensor(prefix.lead, dtype=torch.long)), prefix.prompt.embeddings]
        embeds = torch.cat([*layout, lm.embed([*prefix.follow, *row])])[None]
        mask = torch.ones(1, embeds.shape[1], dtype=torch.long)
        begin = len(prefix.lead)
        mask[:, begin + prefix.masked_span[0] : begin + prefix.masked_span[1]] = 0
        positions = torch.arange(embeds.shape[1])[None]
        out = lm.hf_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        found.append(out.logits[0, -len(row) :])
    return torch.cat(found)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt"])  # OPT counts positions by its mask
def test_an_embedding_prompt(family: str, span: tuple[int, int]) -> None:
    lm = tiny_lm(family)
    prefix = Prefix(random_prompt(lm, "embedding", 6, 1), (3, 9), (20, 21), span)
    check_close(logits(lm, [prefix], 0), masked_oracle(lm, prefix))


@pytest.mark.parametrize("form", ["embedding", "kv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_unseen_does_not_matter(family: str, form: str) -> None:
    """Other numbers there change nothing for these rows, much for rows that see them; other prefixes do not matter."""
    lm = tiny_lm(family)
    one, other = random_prompt(lm, form, 6, 1), random_prompt(lm, form, 6, 1)
    with torch.no_grad():
        for tensor in other.tensors().values():
            hidden = tensor[..., 1:4, :]
            hidden += 3.0 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))
    hides = [Prefix(prompt, (), (20, 21), (1, 4)) for prompt in (one, other)]
    shows = [Prefix(prompt, (), (20, 21)) for prompt in (one, other)]
    assert_close(logits(lm, [hides[0]], 0), logits(lm, [hides[1]], 0), rtol=0, atol=0)
    assert (logits(lm, [shows[0]], 0) - logits(lm, [shows[1]], 0)).abs().max() > 0.01
    check_close(logits(lm, [*shows, *hides], 2), logits(lm, [hides[0]], 0))
    check_close(logits(lm, [*shows, *hides], 0), logits(lm, [shows[0]], 0))
