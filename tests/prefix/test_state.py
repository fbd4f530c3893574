"""Models with states, masks, caches, heads or embeddings of their own get what plain concatenation gives.

The oracle runs one row at a time, without a cache, with Transformers' own model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from softprompt.data.tokenize import Example
from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes, start_decoding
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.odd_models import CACHE_CONFIGS, HEAD_CONFIGS, MASK_CONFIGS, ODD_CONFIGS, STATE_CONFIGS, odd_lm

LENGTHS = (14, 1, 5, 23)  # past windows and chunks
FAMILIES = sorted(ODD_CONFIGS)


def text(count: int, seed: int) -> list[int]:
    return torch.randint(4, 260, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def soft(lm: FrozenLM, count: int, seed: int) -> EmbeddingPrompt:
    return EmbeddingPrompt(torch.randn(count, lm.geometry.hidden, generator=torch.Generator().manual_seed(seed)))


def plain_logits(lm: FrozenLM, prefix: Prefix, ids: Sequence[int]) -> Tensor:
    """Logits [T, V] of a row's tokens: Transformers' own forward pass on the concatenated embeddings."""
    scale = lm.hf_model.config.embedding_multiplier if lm.geometry.architecture == "falcon_h1" else 1.0
    table = lm.hf_model.get_input_embeddings()
    embeds = torch.cat(
        [
            table(torch.tensor(prefix.lead, dtype=torch.long)) * scale,
            *([prefix.prompt.embeddings] if isinstance(prefix.prompt, EmbeddingPrompt) else []),
            table(torch.tensor([*prefix.follow, *ids])) * scale,
        ]
    )
    more = {}
    if lm.geometry.architecture == "gemma4_text":  # a virtual token has the second embedding of the padding token
        virtual = prefix.prompt.n_tokens if prefix.prompt else 0
        known = torch.tensor([[*prefix.lead, *[0] * virtual, *prefix.follow, *ids]])
        base: Any = lm.hf_model.base_model
        more = {"per_layer_inputs": base.get_per_layer_inputs(known)}
    return lm.hf_model(inputs_embeds=embeds[None], use_cache=False, **more).logits[0, -len(ids) :]


@contextmanager
def patched(module: torch.nn.Module) -> Iterator[list[None]]:
    """An entry for each call of the module."""
    calls = list[None]()
    hook = module.register_forward_pre_hook(lambda *_: calls.append(None))
    yield calls
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_after_prefixes_of_two_lengths(family: str) -> None:
    lm = odd_lm(family)
    prefixes = [Prefix(soft(lm, 8, 1), (3, 9), (20, 21)), Prefix(soft(lm, 12, 2)), Prefix(lead=(5, 6, 7)), Prefix()]
    rows = [Row(text(n, n), i % 4) for i, n in enumerate([*LENGTHS, *LENGTHS[::-1]])]
    with torch.no_grad():
        states = hidden_states(lm, prepare_prefixes(lm, prefixes), rows)
        for ours, row in zip(lm.logits(states).split([len(row.ids) for row in rows]), rows, strict=True):
            assert_close(ours, plain_logits(lm, prefixes[row.prefix], row.ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient(family: str, checkpointing: bool) -> None:
    lm = odd_lm(family)
    rows = [Example(tuple(text(n, n)), (False,) * (n - 2) + (True,) * 2, "") for n in (9, 3, 15)]
    prompts = [soft(lm, n, n).map(lambda tensor: tensor.requires_grad_()) for n in (7, 5)]
    leaves = [prompt.embeddings for prompt in prompts]
    prefixes = [Prefix(prompts[0], (3,), (20,)), Prefix(prompts[1])]
    with lm.checkpoint_layers(checkpointing):
        losses = token_losses(lm, prepare_prefixes(lm, prefixes), rows, [0, 1, 0])
        ours = torch.autograd.grad(losses.sum(), leaves)
    wanted = [
        cross_entropy(plain_logits(lm, prefixes[owner], row.ids)[-3:-1], torch.tensor(row.ids[-2:]), reduction="none")
        for row, owner in zip(rows, [0, 1, 0], strict=True)
    ]
    assert_close(losses, torch.cat(wanted), rtol=1e-3, atol=1e-3)
    for mine, theirs in zip(ours, torch.autograd.grad(torch.cat(wanted).sum(), leaves), strict=True):
        assert ((mine - theirs).norm() / theirs.norm()).item() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_step_by_step(family: str) -> None:
    """Rows of several lengths and prefixes; one leaves on the way, and the others change places."""
    lm = odd_lm(family)
    prefixes = [Prefix(soft(lm, 8, 1), (3, 9), (20,)), Prefix(soft(lm, 3, 2))]
    rows, owners = [text(n, n) for n in (3, 9, 3, 1)], [0, 1, 0, 1]
    numbers = list(range(4))
    with torch.no_grad():
        session = start_decoding(lm, prepare_prefixes(lm, prefixes), rows, owners, 12)
        for step in range(10):
            for logits, number in zip(lm.logits(session.hidden), numbers, strict=True):
                wanted = plain_logits(lm, prefixes[owners[number]], rows[number])[-1]
                assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
            if step == 4:
                numbers = [numbers[i] for i in (3, 1, 2)]
                session.keep(torch.tensor([3, 1, 2]))
            following = text(len(numbers), 100 + step)
            for number, token in zip(numbers, following, strict=True):
                rows[number] = [*rows[number], token]
            session.step(torch.tensor(following, device=session.hidden.device))


@pytest.mark.parametrize("family", sorted(STATE_CONFIGS))
def test_a_session_leaves_the_prefix_as_it_is(family: str) -> None:
    """A row of one token, whose step overwrites states in place, and then the same again."""
    lm = odd_lm(family)
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [Prefix(soft(lm, 8, 1))])
        first, again = (start_decoding(lm, prefixes, [[5]], [0], 2) for _ in range(2))
        assert_close(again.hidden, first.hidden)
        assert_close(again.step(torch.tensor([6], device=lm.device)), first.step(torch.tensor([6], device=lm.device)))
    assert PrefixRuntime.of(lm).steps, "no text is run again at every step"


def test_keys_and_values_are_taken_in_the_models_dtype() -> None:
    lm = odd_lm("bloom")
    half = FrozenLM(copy.deepcopy(lm.hf_model).bfloat16(), lm.tokenizer, "half")
    layers = tuple((torch.randn(4, 3, 8), torch.randn(4, 3, 8)) for _ in range(2))
    states = hidden_states(half, prepare_prefixes(half, [Prefix(KVPrompt(layers))]), [Row([5, 6])])
    assert states.dtype == torch.bfloat16


@pytest.mark.parametrize("family", [*sorted(STATE_CONFIGS), "bloom", "rwkv"])
def test_rows_that_are_trees(family: str) -> None:
    """Tokens of a tree get the states of the path that leads to them."""
    lm = odd_lm(family)
    tree = Row([5, 6, 7, 8, 9, 10], parents=[-1, 0, 1, 1, 3, 0])
    paths = [[5], [5, 6], [5, 6, 7], [5, 6, 8], [5, 6, 8, 9], [5, 10]]
    prefix = Prefix(soft(lm, 4, 3))
    with torch.no_grad():
        states = hidden_states(lm, prepare_prefixes(lm, [prefix]), [Row([4, 4]), tree])[2:]
        for logits, path in zip(lm.logits(states), paths, strict=True):
            assert_close(logits, plain_logits(lm, prefix, path)[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", sorted(STATE_CONFIGS))
def test_a_state_is_more_than_keys_and_values(family: str) -> None:
    lm = odd_lm(family)
    shapes = lm.geometry.layers
    layers = tuple(
        s and (torch.zeros(s.kv_heads, 2, s.key_dim), torch.zeros(s.kv_heads, 2, s.value_dim)) for s in shapes
    )
    with pytest.raises(UnsupportedModelError, match=r"(?s)carry more from a prefix than keys.*--method prompt-tuning"):
        prepare_prefixes(lm, [Prefix(KVPrompt(layers))])


@pytest.mark.parametrize("family", [*MASK_CONFIGS, *CACHE_CONFIGS, *HEAD_CONFIGS])
def test_keys_and_values_of_a_text_are_the_text(family: str) -> None:
    lm = odd_lm(family)
    lead, row = text(6, 1), text(9, 2)
    with torch.no_grad():
        (state,) = [lm.backbone.new_cache()]
        lm.backbone.run(ids_BL=torch.tensor([lead]), cache=state)
        cached: list[Any] = state.layers
        layers = tuple((layer.keys[0], layer.values[0]) for layer in cached)
        prefixes = prepare_prefixes(lm, [Prefix(KVPrompt(layers), follow=(30,))])
        ours = lm.logits(hidden_states(lm, prefixes, [Row(row)]))
        assert_close(ours, plain_logits(lm, Prefix(lead=(*lead, 30)), row), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *((family, "state") for family in (*STATE_CONFIGS, *MASK_CONFIGS) if family != "mamba"),
        ("mamba", "concatenated"),  # Transformers' scan of several tokens starts from zero
        ("rwkv", "concatenated"),
        ("recurrent_gemma", "concatenated"),
    ],
)
def test_the_prefix_is_run_once_where_the_model_allows_it(family: str, path: str) -> None:
    verify(odd_lm(family))
    assert PrefixRuntime.of(odd_lm(family)).path == path


@pytest.mark.parametrize("family", [*STATE_CONFIGS, *MASK_CONFIGS])
def test_rows_of_several_lengths_share_a_cache(family: str) -> None:
    lm = odd_lm(family)
    prefixes = prepare_prefixes(lm, [Prefix(soft(lm, 8, 1)), Prefix(soft(lm, 3, 2))])
    assert PrefixRuntime.of(lm).merges
    with patched(lm.backbone.module) as calls:
        session = start_decoding(lm, prefixes, [text(n, n) for n in (3, 9, 1)], [0, 1, 0], 2)
        calls.clear()
        session.step(torch.tensor([5, 6, 7], device=session.hidden.device))
    assert len(calls) == 1


@pytest.mark.parametrize("family", ["deepseek_v3", "diffllama"])
def test_rows_do_not_share_keys_that_are_not_the_attentions(family: str) -> None:
    verify(odd_lm(family))
    runtime = PrefixRuntime.of(odd_lm(family))
    assert runtime.path == "packed" and not runtime.shares
