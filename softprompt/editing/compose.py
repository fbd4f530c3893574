"""New soft prompts from saved ones: joined, averaged, weighted, resized.

    concatenate([a, b], lm)      a's virtual tokens, then b's
    combine([a, b], [0.7, 0.3])  0.7·a + 0.3·b, token by token
    average([a, b, c])           their mean
    resize(a, 16, lm)            16 virtual tokens

`lm` is needed for KV prompts only: their keys stand at positions, and are turned to new ones (`attach.moved`). Results
are in float32. Nothing here trains: a result is a good start, or good enough, and `softprompt eval` tells which.

Shapes: P virtual tokens, H embedding width, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from softprompt.editing.expression import (
    Concatenation,
    Expression,
    PromptName,
    Resized,
    Sum,
    parse_expression,
    prompt_names,
)
from softprompt.errors import ConfigError, GeometryError, PromptError, WrongBaseError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.rope import shift_positions
from softprompt.prompts.card import Card, provenance
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, Prompt, check_fits

Named = Mapping[str, tuple[Prompt, Card]]
P = TypeVar("P", EmbeddingPrompt, KVPrompt)


def concatenate(prompts: Sequence[Prompt], lm: FrozenLM | None = None) -> Prompt:
    """The virtual tokens of all, one prompt's behind the other's. Lengths add up.

    The keys of a KV prompt are moved behind those of the ones before it. All tokens stay, its first too, which has
    learned to be the first. Leaving that out helps a little where the prompts are harvested from a text's two halves
    (KL to the text 0.143 -> 0.118 and 0.214 -> 0.194; without moving the keys 0.230 and 0.389; SmolLM2-135M), and
    can hurt where they are trained (loss of a task behind another task's prompt 0.036 -> 0.142; the other way round
    0.091 -> 0.038). The joined prompts have not seen each other: a text's second half, harvested alone, is not what
    it is behind its first half.

    Raises:
        PromptError: different forms, or layers.
        ConfigError: a KV prompt without `lm`.
        UnsupportedModelError, GeometryError: the keys cannot be moved (that far).
    """
    _check_alike(prompts, lengths=False)
    if all(isinstance(prompt, EmbeddingPrompt) for prompt in prompts):
        return EmbeddingPrompt(torch.cat([prompt.embeddings.float() for prompt in _only(prompts, EmbeddingPrompt)]))
    shifted, start = list[KVPrompt](), 0
    for prompt in _only(prompts, KVPrompt):
        shifted.append(_moved(prompt, [start] * prompt.n_tokens, lm))
        start += prompt.n_tokens
    return _map(shifted, lambda tensors: torch.cat([tensor.float() for tensor in tensors], dim=1))


def combine(prompts: Sequence[Prompt], weights: Sequence[float]) -> Prompt:
    """Σ weights[i]·prompts[i], token by token; for KV prompts of keys and of values.

    Raises PromptError for different forms, lengths or layers.
    """
    _check_alike(prompts, lengths=True)

    def weighted(tensors: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(tensors[0], dtype=torch.float32)
        for weight, tensor in zip(weights, tensors, strict=True):
            total += weight * tensor.float().to(total.device)
        return total

    return _map(prompts, weighted)


def average(prompts: Sequence[Prompt]) -> Prompt:
    """The mean, token by token. Raises PromptError for different forms, lengths or layers."""
    return combine(prompts, [1 / len(prompts)] * len(prompts))


def resize(prompt: Prompt, n_tokens: int, lm: FrozenLM | None = None) -> Prompt:
    """With fewer or more virtual tokens.

    Fewer: the first, on which attention dumps what belongs nowhere, and the last ones are kept. More: the tokens from
    the first on once more. No tokens are mixed: the mean of two neighbours is none that was ever trained.

    Measured on SmolLM2-135M, help desk, validation loss. A KV prompt of 32 tokens 0.024; the first and the last 15 of
    them 0.034, 16 evenly spaced 0.64, the first 16 1.9; all once more 0.026. One of 96 tokens 0.012; half of them so
    0.88, evenly spaced 0.25. 24 embeddings 2.45; made 36 so 2.52, by interpolation 3.27. So a cut prompt is a start
    to train on; `pruning` finds by trial which tokens can go.

    Raises:
        PromptError: no virtual token left.
        ConfigError, UnsupportedModelError, GeometryError: as `concatenate`.
    """
    if n_tokens < 1:
        raise PromptError("a soft prompt needs at least one virtual token", expected=">= 1", got=n_tokens)
    old = prompt.n_tokens
    if n_tokens <= old:
        return select(prompt, [0, *range(old - n_tokens + 1, old)], lm)
    return select(prompt, [i % old for i in range(n_tokens)], lm)


def select(prompt: Prompt, tokens: Sequence[int], lm: FrozenLM | None = None) -> Prompt:
    """The virtual tokens with these numbers, in this order; the keys of a KV prompt are moved to close the gaps.

    Raises ConfigError, UnsupportedModelError as `concatenate`.
    """
    index = list(tokens)
    if isinstance(prompt, EmbeddingPrompt):
        return EmbeddingPrompt(prompt.embeddings[index].float())
    chosen = _map([prompt], lambda tensors: tensors[0][:, index].float())
    return _moved(chosen, [new - old for new, old in enumerate(index)], lm)


def compose(
    expression: str, sources: Named, name: str, *, lm: FrozenLM | None = None, template_of: str | None = None
) -> tuple[Prompt, Card]:
    """The soft prompt that an expression of saved ones stands for, and its card.

    Args:
        expression: see `expression.py`.
        sources: every soft prompt named in it.
        name: of the result.
        lm: the base model, for KV prompts whose tokens move.
        template_of: whose template, layout and labels the result gets; not needed where all agree.

    Raises:
        ConfigError: the expression is malformed, or templates differ and `template_of` does not choose.
        WrongBaseError: different base models.
        PromptError: forms or lengths that do not go together; a result that does not fit the base model.
    """
    tree = parse_expression(expression)
    cards = {used: sources[used][1] for used in prompt_names(tree)}
    check_sources(cards, template_of)
    made = _evaluate(tree, {used: sources[used][0] for used in cards}, lm)
    frame = cards[template_of or next(iter(cards))]
    check_fits(made, frame.geometry)
    if made.n_tokens >= frame.geometry.max_positions:
        most = f"< {frame.geometry.max_positions} virtual tokens"
        raise GeometryError("the result would fill the model's whole context", expected=most, got=made.n_tokens)
    licenses = {card.license for card in cards.values()}
    inputs = [{"name": used, "sha256": card.sha256} for used, card in cards.items()]
    return made, Card(
        name=name,
        form=made.form,
        n_tokens=made.n_tokens,
        sha256="0" * 64,  # store.save fills it in
        base=frame.base,
        layout=frame.layout,
        template=frame.template,
        labels=frame.labels,
        method={"name": "compose", "expression": expression},
        data={"inputs": inputs, "trained_on": [place for card in cards.values() for place in card.trained_on]},
        license=licenses.pop() if len(licenses) == 1 else None,
        **provenance(),
    )


def check_sources(cards: Mapping[str, Card], template_of: str | None = None) -> None:
    """Raise unless these soft prompts can be composed: one base model, one form, one frame. See `compose`."""
    first, *others = cards
    for other in others:
        if reason := cards[first].geometry.differs(cards[other].geometry):
            raise WrongBaseError(
                "these soft prompts belong to different base models",
                where=f"{first}, {other}",
                got=f"{cards[first].geometry.base} and {cards[other].geometry.base}: {reason}",
                hint="train one of them again on the other's base model",
            )
        if cards[first].form != cards[other].form:
            raise _not_alike("forms", f"{first}: {cards[first].form}", f"{other}: {cards[other].form}")
    if template_of is not None:
        if template_of not in cards:
            raise ConfigError(
                "not part of the expression", where="--template-of", expected=list(cards), got=template_of
            )
        return
    for other in others:
        for part in ("template", "layout", "labels"):
            if getattr(cards[first], part) != getattr(cards[other], part):
                raise ConfigError(
                    f"these soft prompts were trained with different {part}{'' if part.endswith('s') else 's'}",
                    where=f"{first}, {other}",
                    hint=f"--template-of {first} gives the result that one's template, layout and labels",
                )


def _evaluate(tree: Expression, prompts: Mapping[str, Prompt], lm: FrozenLM | None) -> Prompt:
    if isinstance(tree, PromptName):
        return select(prompts[tree.name], range(prompts[tree.name].n_tokens))
    if isinstance(tree, Resized):
        return resize(_evaluate(tree.part, prompts, lm), tree.n_tokens, lm)
    parts = [_evaluate(part, prompts, lm) for part in tree.parts]
    if isinstance(tree, Concatenation):
        return concatenate(parts, lm)
    return combine(parts, tree.weights) if isinstance(tree, Sum) else average(parts)


def _moved(prompt: KVPrompt, by: Sequence[int], lm: FrozenLM | None) -> KVPrompt:
    if not any(by):
        return prompt
    if lm is None:
        raise ConfigError("moving the keys of a KV prompt needs the base model", hint="give it: lm=, or --model M")
    return shift_positions(lm, prompt, by)


def _check_alike(prompts: Sequence[Prompt], *, lengths: bool) -> None:
    """Raise PromptError unless all have one form, the same layers and, if asked for, one length."""
    for other in prompts[1:]:
        if prompts[0].form != other.form:
            raise _not_alike("forms", prompts[0].form, other.form)
        shapes = [
            {name: tuple(tensor.shape[:-2] + tensor.shape[-1:]) for name, tensor in prompt.tensors().items()}
            for prompt in (prompts[0], other)
        ]
        if shapes[0] != shapes[1]:
            raise WrongBaseError("these soft prompts are made for different base models: their tensors differ")
        if lengths and prompts[0].n_tokens != other.n_tokens:
            first, second = f"{prompts[0].n_tokens} virtual tokens", f"{other.n_tokens}"
            hint = f"make them as long as each other first: resize(NAME, {min(prompts[0].n_tokens, other.n_tokens)})"
            raise _not_alike("lengths", first, second, hint)


def _not_alike(what: str, first: str, second: str, hint: str = "train both with the same form") -> PromptError:
    return PromptError(f"soft prompts of different {what} cannot be composed", got=f"{first} and {second}", hint=hint)


def _only(prompts: Sequence[Prompt], kind: type[P]) -> list[P]:
    return [prompt for prompt in prompts if isinstance(prompt, kind)]


def _map(prompts: Sequence[Any], change: Any) -> Any:
    """A prompt of the same form whose every tensor is `change` of the prompts' own at that place."""
    first = prompts[0]
    if isinstance(first, EmbeddingPrompt):
        return EmbeddingPrompt(change([prompt.embeddings for prompt in prompts]))
    layers = []
    for kvs in zip(*(prompt.layers for prompt in prompts), strict=True):
        layers.append(None if kvs[0] is None else tuple(change([kv[part] for kv in kvs]) for part in (0, 1)))
    return KVPrompt(tuple(layers))
