"""Where virtual tokens start. Initialisation and learning rate decide whether a soft prompt learns at all.

Embedding prompts: every function gives [P, H] in float32. KV prompts start from the keys and values of real token
ids (`harvest`), or from noise of the same spread (`noise`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.attach import SITES
from softprompt.attach import keys_values as keys_values_of
from softprompt.errors import ConfigError
from softprompt.methods.base import Start
from softprompt.model import FrozenLM
from softprompt.prompt import KVPrompt

INITS = ("text", "labels", "vocab", "uniform")
FREQUENT = 5000  # Lester et al. 2021, section 3.2: sample from the 5,000 most common tokens
UNIFORM_RANGE = 0.5  # same section: uniform in [-0.5, 0.5]


def generator(seed: int) -> torch.Generator:
    """A CPU generator, so that a seed gives the same start on every device."""
    return torch.Generator().manual_seed(seed)


def embeddings(lm: FrozenLM, start: Start) -> Tensor:
    """[P, H] float32 for an embedding prompt.

    Raises ConfigError for an unknown initialiser, one that lacks its text or labels, or sites.
    """
    if start.sites:
        what = "sites are for KV prompts: an embedding prompt always stands in front of the text"
        raise ConfigError(what, where="method.sites", got=",".join(start.sites), hint="leave method.sites out")
    if start.init == "uniform":
        size = (start.n_tokens, lm.geometry.hidden)
        noise = (torch.rand(size, generator=generator(start.seed)) * 2 - 1) * UNIFORM_RANGE
        return noise.to(lm.device) * _spread(lm)
    if start.init == "labels":
        return _label_means(lm, start)
    return lm.embed(torch.tensor(token_ids(lm, start))).float()


def token_ids(lm: FrozenLM, start: Start) -> list[int]:
    """P real token ids to start from: the text repeated or cut, the labels' tokens, or frequent tokens at random."""
    if start.init == "vocab":
        return frequent_tokens(lm, start.n_tokens, start.seed)
    if start.init == "text":
        return _fit(start.text, start.n_tokens, "text")
    if start.init == "labels":
        return _fit([token for label in start.labels for token in label], start.n_tokens, "labels")
    raise ConfigError(f"unknown initialiser {start.init!r}", where="method.init", expected=f"one of {list(INITS)}")


def frequent_tokens(lm: FrozenLM, count: int, seed: int) -> list[int]:
    """`count` different ids among the 5,000 most frequent tokens, never special ones.

    BPE and unigram vocabularies are built most frequent first, so the lowest ids are taken.
    """
    special = set(lm.tokenizer.all_special_ids)
    usable = [i for i in range(min(lm.geometry.vocab, len(lm.tokenizer))) if i not in special]
    usable = [i for i in usable[: 2 * FREQUENT] if str(lm.tokenizer.decode([i])).strip()][:FREQUENT]
    order = torch.randperm(len(usable), generator=generator(seed)).tolist()
    return [usable[order[i % len(order)]] for i in range(count)]


def harvest(lm: FrozenLM, ids: Sequence[int]) -> KVPrompt:
    """The keys and values that the model computes for a real text, in float32: a KV prompt that acts like it.

    For an encoder–decoder those of encoder, decoder and cross-attention, which resemble the text but do not stand for
    it (`attach.keys_values`).
    """
    layers = keys_values_of(lm, ids)
    return KVPrompt(tuple(None if kv is None else (kv[0][0].float(), kv[1][0].float()) for kv in layers))


def keys_values(lm: FrozenLM, start: Start) -> KVPrompt:
    """The KV prompt to start from, at the sites of `start` only; begins with `start.lead` (BOS), whose keys are the
    attention sink.

    Raises ConfigError as `embeddings`, and for sites that the model does not have.
    """
    _check_sites(lm, start)
    if start.init == "uniform":
        whole = _noise(lm, start)
    else:
        whole = harvest(lm, [*start.lead, *token_ids(lm, start)][: start.n_tokens])
    sites, wanted = lm.geometry.sites, start.sites or SITES
    return KVPrompt(tuple(kv if not sites or sites[i] in wanted else None for i, kv in enumerate(whole.layers)))


def _check_sites(lm: FrozenLM, start: Start) -> None:
    if start.sites and not lm.is_encoder_decoder:
        what = "sites are an encoder-decoder's, and the base model is a causal one"
        raise ConfigError(what, where="method.sites", got=",".join(start.sites), hint="leave method.sites out")
    if unknown := [site for site in start.sites if site not in SITES]:
        raise ConfigError(f"unknown site {unknown[0]!r}", where="method.sites", expected=f"some of {','.join(SITES)}")


def _noise(lm: FrozenLM, start: Start) -> KVPrompt:
    """Normal noise with the spread, per layer, of the keys and values of frequent tokens."""
    model, draw = harvest(lm, frequent_tokens(lm, start.n_tokens, start.seed)), generator(start.seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=draw).to(tensor) * tensor.std()

    return KVPrompt(tuple(None if kv is None else (like(kv[0]), like(kv[1])) for kv in model.layers))


def _label_means(lm: FrozenLM, start: Start) -> Tensor:
    """One token per class, the mean of its subwords; the rest from the vocabulary (Lester et al. 2021, 3.2)."""
    if not start.labels:
        raise ConfigError("init labels needs class labels", where="method.init", hint="give rows with a label field")
    means = [lm.embed(torch.tensor(label)).float().mean(0) for label in start.labels[: start.n_tokens]]
    fill = frequent_tokens(lm, start.n_tokens - len(means), start.seed)
    return torch.cat([torch.stack(means), lm.embed(torch.tensor(fill, dtype=torch.long)).float()])


def _fit(ids: Sequence[int], count: int, what: str) -> list[int]:
    if not ids:
        raise ConfigError(f"init {what} has nothing to start from", where="method.init", hint="give --init-text")
    return [ids[i % len(ids)] for i in range(count)]


def _spread(lm: FrozenLM) -> float:
    """Lester's range is for T5, whose embeddings have a standard deviation near 1: scale it to this model's.

    0.2887 is the standard deviation of uniform [-0.5, 0.5].
    """
    return float(lm.embed(torch.arange(min(2 * FREQUENT, lm.geometry.vocab))).float().std()) / 0.2887
