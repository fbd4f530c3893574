"""Where virtual tokens start. Initialization and learning rate decide whether a soft prompt learns at all.

    text            real tokens of a text, repeated or cut to P
    demonstrations  real tokens of a few-shot prompt, exactly P of them
    labels          the class labels' tokens, then frequent tokens at random
    vocab           frequent tokens at random
    uniform         noise as wide as the model's own embeddings, or keys and values
    normal          N(0, 1), the start of `torch.nn.Embedding` that PEFT and P-tuning v2 have: here to compare with
    prompt          another soft prompt (Vu et al.: SPoT. ACL 2022. https://arxiv.org/abs/2110.07904)

An embedding prompt starts from the tokens' embeddings, a KV prompt from the keys and values that the model computes
for them, a state prompt from all that its layers carry after them; in float32. What gives another number of tokens than
P is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.errors import ConfigError
from softprompt.methods.base import Start
from softprompt.methods.rng import generator
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values as keys_values_of
from softprompt.prefix.prepare import exact_sites
from softprompt.prefix.seq2seq import SITES, check_sites
from softprompt.prefix.state import compute_states
from softprompt.prefix.verify import verify
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, StatePrompt, check_fits, form_class

INITS = ("text", "demonstrations", "labels", "vocab", "uniform", "normal", "prompt")
FREQUENT = 5000  # Lester et al. 2021, section 3.2: sample from the 5,000 most common tokens
UNIFORM_RANGE = 0.5  # same section: uniform in [-0.5, 0.5]


def initial_embeddings(lm: FrozenLM, start: Start) -> Tensor:
    """[P, H] float32 for an embedding prompt.

    Raises:
        ConfigError: an unknown initializer, one that lacks its text, labels or prompt, or another number of tokens.
        GeometryError: the prompt to start from does not fit the model.
    """
    size, draw = (start.n_tokens, lm.geometry.hidden), generator(start.seed)
    if start.init == "uniform":
        return ((torch.rand(size, generator=draw) * 2 - 1) * UNIFORM_RANGE).to(lm.device) * _spread(lm)
    if start.init == "normal":
        return torch.randn(size, generator=draw).to(lm.device)
    if start.init == "labels":
        return _label_means(lm, start)
    if start.init == "prompt":
        made = _other(lm, start)
        embeddings = made.input_embeddings()
        if embeddings is None:
            hint = "choose a method that trains keys and values, or an embedding prompt to start from"
            raise ConfigError("an embedding prompt cannot start from a KV prompt", where="method.init", hint=hint)
    else:
        embeddings = lm.embed(torch.tensor(token_ids(lm, start))).float()
    _check_length(len(embeddings), start)
    return embeddings


def initial_keys_values(lm: FrozenLM, start: Start, chosen_sites: Sequence[str] = ()) -> KVPrompt:
    """The KV prompt to start from. It begins with `start.lead` (BOS), whose keys are the attention sink.

    An embedding prompt is run once after the lead: its keys and values act as it does.

    Args:
        chosen_sites: of an encoder-decoder, where the prompt acts: of "encoder", "decoder", "cross"; if empty, where
            keys and values are exact on this model.

    Raises as `initial_embeddings`, and ConfigError for sites that the model does not have.
    """
    _check_sites(lm, chosen_sites)
    made = _everywhere(lm, start)
    sites, wanted = lm.geometry.sites, chosen_sites or exact_sites(lm)
    return KVPrompt(tuple(kv if not sites or sites[i] in wanted else None for i, kv in enumerate(made.layers)))


def initial_states(lm: FrozenLM, start: Start) -> StatePrompt:
    """What the model's layers carry after the tokens to start from, in float32; it begins with `start.lead` (BOS).

    Noise is that of keys and values; states start at zero then. Another prompt is run once after the lead.

    Of a model without such layers they are its keys and values alone. Raises as `initial_embeddings`, and
    UnsupportedModelError for a model that cannot start from given states.
    """
    verify(lm)
    if not lm.geometry.states:
        return StatePrompt(initial_keys_values(lm, start).states())
    if start.init == "prompt":
        other = _other(lm, start)
        if (states := other.states()) is not None:
            check_fits(made := StatePrompt(states), lm.geometry)
            _check_length(made.n_tokens, start)
            return made
        prefix = Prefix(other, start.lead)
    elif start.init in ("uniform", "normal"):
        prefix = Prefix(lead=tuple(frequent_tokens(lm, start.n_tokens, start.seed)))
    else:
        ids = [*start.lead, *token_ids(lm, start)]
        prefix = Prefix(lead=tuple(ids if start.init == "demonstrations" else ids[: start.n_tokens]))
    made = compute_states(lm, prefix).to(dtype=torch.float32)
    if any(lm.geometry.layers):  # without attention the number of tokens leaves no trace
        _check_length(made.n_tokens, start)
    return _noisy_states(made, start) if start.init in ("uniform", "normal") else made


def _noisy_states(model: StatePrompt, start: Start) -> StatePrompt:
    draw = generator(start.seed)

    def like(name: str, tensor: Tensor) -> Tensor:
        if name not in ("keys", "values"):
            return torch.zeros_like(tensor)
        noise = torch.randn(tensor.shape, generator=draw).to(tensor)
        return noise if start.init == "normal" else noise * tensor.std()

    return StatePrompt(tuple({name: like(name, held) for name, held in layer.items()} for layer in model.layers))


def initial_prompt(lm: FrozenLM, start: Start, form: str) -> SoftPrompt:
    """The prompt to start from, of a form ("embedding", "kv" or "state"); without gradient. Raises as those above."""
    if form_class(form).begins_the_sequence and lm.geometry.states:
        return initial_states(lm, start).freeze()
    if form_class(form).begins_the_sequence:
        return initial_keys_values(lm, start).freeze()
    return EmbeddingPrompt(initial_embeddings(lm, start)).freeze()


def _everywhere(lm: FrozenLM, start: Start) -> KVPrompt:
    if start.init in ("uniform", "normal"):
        return _noise(lm, start)
    if start.init == "prompt":
        other = _other(lm, start)
        layers = other.keys_values()
        made = _run(lm, Prefix(other, start.lead)) if layers is None else KVPrompt(layers)
    else:
        ids = [*start.lead, *token_ids(lm, start)]
        made = harvest(lm, ids if start.init == "demonstrations" else ids[: start.n_tokens])
    _check_length(made.n_tokens, start)
    return made


def token_ids(lm: FrozenLM, start: Start) -> list[int]:
    """P real token ids to start from: the text repeated or cut, the labels' tokens, or frequent tokens at random.

    Demonstrations are given as they are.
    """
    if start.init == "vocab":
        return frequent_tokens(lm, start.n_tokens, start.seed)
    if start.init == "demonstrations":
        return _fit(start.text, len(start.text), "demonstrations")
    if start.init == "text":
        return _fit(start.text, start.n_tokens, "text")
    if start.init == "labels":
        return _fit([token for label in start.labels for token in label], start.n_tokens, "labels")
    raise ConfigError(f"unknown initializer {start.init!r}", where="method.init", expected=f"one of {list(INITS)}")


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
    return _run(lm, Prefix(lead=tuple(ids)))


def _run(lm: FrozenLM, prefix: Prefix) -> KVPrompt:
    layers = keys_values_of(lm, prefix)
    return KVPrompt(tuple(None if kv is None else (kv[0][0].float(), kv[1][0].float()) for kv in layers))


def _check_sites(lm: FrozenLM, sites: Sequence[str]) -> None:
    if sites and not lm.is_encoder_decoder:
        what = "sites are an encoder-decoder's, and the base model is a causal one"
        raise ConfigError(what, where="method.sites", got=",".join(sites), hint="leave method.sites out")
    if unknown := [site for site in sites if site not in SITES]:
        raise ConfigError(f"unknown site {unknown[0]!r}", where="method.sites", expected=f"some of {','.join(SITES)}")
    if lm.is_encoder_decoder:
        exact = exact_sites(lm)
        check_sites(lm, sites or (exact or SITES)[:1])


def _noise(lm: FrozenLM, start: Start) -> KVPrompt:
    """Normal noise: plain, or with the spread, per layer, of the keys and values of frequent tokens."""
    model, draw = harvest(lm, frequent_tokens(lm, start.n_tokens, start.seed)), generator(start.seed)

    def like(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=draw).to(tensor)
        return noise if start.init == "normal" else noise * tensor.std()

    return KVPrompt(tuple(None if kv is None else (like(kv[0]), like(kv[1])) for kv in model.layers))


def _label_means(lm: FrozenLM, start: Start) -> Tensor:
    """One token per class, the mean of its subwords; the rest from the vocabulary (Lester et al. 2021, 3.2)."""
    if not start.labels:
        raise ConfigError("init labels needs class labels", where="method.init", hint="give rows with a label field")
    means = [lm.embed(torch.tensor(label)).float().mean(0) for label in start.labels[: start.n_tokens]]
    fill = frequent_tokens(lm, start.n_tokens - len(means), start.seed)
    return torch.cat([torch.stack(means), lm.embed(torch.tensor(fill, dtype=torch.long)).float()])


def _other(lm: FrozenLM, start: Start) -> SoftPrompt:
    """A copy of the prompt to start from, in float32 where the model is."""
    if start.prompt is None:
        raise ConfigError("init prompt has nothing to start from", where="method.init", hint="name a soft prompt")
    check_fits(start.prompt, lm.geometry)
    return start.prompt.to(device=lm.device, dtype=torch.float32).freeze()


def _check_length(n_tokens: int, start: Start) -> None:
    """Keys know their positions and demonstrations their ends, so nothing is cut or repeated behind the user's back."""
    if n_tokens != start.n_tokens:
        what, hint = f"init {start.init} gives another number of virtual tokens", f"--n-tokens {n_tokens}"
        raise ConfigError(what, where="method.n_tokens", expected=n_tokens, got=start.n_tokens, hint=hint)


def _fit(ids: Sequence[int], count: int, what: str) -> list[int]:
    if not ids:
        raise ConfigError(f"init {what} has nothing to start from", where="method.init", hint="give --init-text")
    return [ids[i % len(ids)] for i in range(count)]


def _spread(lm: FrozenLM) -> float:
    """Lester's range is for T5, whose embeddings have a standard deviation near 1: scale it to this model's.

    0.2887 is the standard deviation of uniform [-0.5, 0.5].
    """
    return float(lm.embed(torch.arange(min(2 * FREQUENT, lm.geometry.vocab))).float().std()) / 0.2887
