"""Makes new soft prompts from saved ones by concatenation, weighted sums, averages and resizing.

    concatenate([a, b], lm)      a's virtual tokens, then b's
    combine([a, b], [0.7, 0.3])  0.7·a + 0.3·b, token by token
    average([a, b, c])           their mean
    resize(a, 16, lm)            16 virtual tokens

`lm` is needed for KV prompts only: their keys are rotated to new positions (`prefix.rope`). Results are in float32.
Nothing is trained: evaluate a result before use, or train from it.

Shapes: P virtual tokens, H embedding width, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits
from softprompt.prompts.kv_prompt import KVPrompt

Named = Mapping[str, tuple[SoftPrompt, Card]]


def concatenate(prompts: Sequence[SoftPrompt], lm: FrozenLM | None = None) -> SoftPrompt:
    """The virtual tokens of all prompts, one prompt after the other. Lengths add up.

    The keys of a KV prompt are moved to the positions after the prompts before it. All tokens are kept, also a later
    prompt's first, which was trained as an attention sink. Dropping it helps a little if the prompts are computed from
    the two halves of a text (KL to the text 0.143 -> 0.118 and 0.214 -> 0.194; without moving the keys 0.230 and 0.389;
    SmolLM2-135M), and can hurt if they are trained (loss of a task after another task's prompt 0.036 -> 0.142; in the
    other order 0.091 -> 0.038). The prompts do not attend to each other, unlike the two halves of one text.

    Raises:
        PromptError: different forms, or layers.
        ConfigError: a KV prompt without `lm`.
        UnsupportedModelError, GeometryError: the keys cannot be moved (that far).
    """
    _check_alike(prompts, lengths=False)
    shifted: list[SoftPrompt] = []
    start = 0
    for prompt in prompts:
        shifted.append(_shift(prompt.to(dtype=torch.float32), [start] * prompt.n_tokens, lm))
        start += prompt.n_tokens
    return shifted[0].concatenate(shifted[1:])


def combine(prompts: Sequence[SoftPrompt], weights: Sequence[float]) -> SoftPrompt:
    """The weighted sum Σ weights[i]·prompts[i], token by token; for KV prompts of keys and of values.

    Raises PromptError for different forms, lengths or layers.
    """
    _check_alike(prompts, lengths=True)

    def weighted(tensors: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(tensors[0], dtype=torch.float32)
        for weight, tensor in zip(weights, tensors, strict=True):
            total += weight * tensor.float().to(total.device)
        return total

    first, *others = (prompt.materialize() for prompt in prompts)
    return first.zip_map(others, weighted)


def average(prompts: Sequence[SoftPrompt]) -> SoftPrompt:
    """The mean, token by token. Raises PromptError for different forms, lengths or layers."""
    return combine(prompts, [1 / len(prompts)] * len(prompts))


def resize(prompt: SoftPrompt, n_tokens: int, lm: FrozenLM | None = None) -> SoftPrompt:
    """The prompt with fewer or more virtual tokens.

    Fewer: the first token (the attention sink) and the last ones are kept. More: the tokens are repeated from the first
    on. Tokens are never interpolated, since the mean of two trained tokens was not trained.

    Measured on SmolLM2-135M, help desk, validation loss. A KV prompt of 32 tokens 0.024; its first and last 15 tokens
    0.034, 16 evenly spaced 0.64, the first 16 1.9; all repeated 0.026. A KV prompt of 96 tokens 0.012; half of them
    selected in this way 0.88, evenly spaced 0.25. 24 embeddings 2.45; repeated to 36 2.52, interpolated 3.27. So a
    shortened prompt is a start for training; `prune` measures which tokens can be dropped.

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


def select(prompt: SoftPrompt, tokens: Sequence[int], lm: FrozenLM | None = None) -> SoftPrompt:
    """The virtual tokens with these numbers, in this order; the keys of a KV prompt are moved to close the gaps.

    Raises ConfigError, UnsupportedModelError as `concatenate`.
    """
    chosen = prompt.select(tokens).to(dtype=torch.float32)
    return _shift(chosen, [new - old for new, old in enumerate(tokens)], lm)


def compose(
    expression: str, sources: Named, name: str, *, lm: FrozenLM | None = None, template_of: str | None = None
) -> tuple[SoftPrompt, Card]:
    """Evaluate an expression of saved soft prompts; returns the new prompt and its card.

    Args:
        expression: see `expression.py`.
        sources: prompt and card of every name in the expression.
        name: of the result.
        lm: the base model, for KV prompts whose tokens change their positions.
        template_of: name of the prompt whose template, layout and labels the result gets, if they differ.

    Raises:
        ConfigError: the expression is malformed, or templates differ and `template_of` does not choose.
        WrongBaseError: different base models.
        PromptError: forms or lengths that do not match.
        GeometryError: a result that does not fit the base model.
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
    return made, Card.draft(
        name,
        made,
        frame.geometry,
        layout=frame.layout,
        template=frame.template,
        chat_template=frame.chat_template or next(iter(filter(None, (c.chat_template for c in cards.values()))), ""),
        labels=frame.labels,
        method={"name": "compose", "expression": expression},
        data={"inputs": inputs, "trained_on": [rows for card in cards.values() for rows in card.trained_on]},
        license=licenses.pop() if len(licenses) == 1 else None,
    )


def check_sources(cards: Mapping[str, Card], template_of: str | None = None) -> None:
    """Raise unless these soft prompts have one base model, one form and one template. See `compose`."""
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
        for part in ("template", "chat_template", "layout", "labels"):
            values = getattr(cards[first], part), getattr(cards[other], part)
            unknown = part == "chat_template" and "" in values  # of a prompt of softprompt 0.1
            if values[0] != values[1] and not unknown:
                raise ConfigError(
                    f"these soft prompts were trained with different {part.replace('_', ' ').removesuffix('s')}s",
                    where=f"{first}, {other}",
                    hint=f"--template-of {first} gives the result that one's template, layout and labels",
                )


def _evaluate(tree: Expression, prompts: Mapping[str, SoftPrompt], lm: FrozenLM | None) -> SoftPrompt:
    if isinstance(tree, PromptName):
        return select(prompts[tree.name], range(prompts[tree.name].n_tokens))
    if isinstance(tree, Resized):
        return resize(_evaluate(tree.part, prompts, lm), tree.n_tokens, lm)
    parts = [_evaluate(part, prompts, lm) for part in tree.parts]
    if isinstance(tree, Concatenation):
        return concatenate(parts, lm)
    return combine(parts, tree.weights) if isinstance(tree, Sum) else average(parts)


def _shift(prompt: SoftPrompt, by: Sequence[int], lm: FrozenLM | None) -> SoftPrompt:
    """The prompt with the keys of token i, if it has any, moved by `by[i]` positions."""
    layers = prompt.keys_values() if any(by) else None
    if layers is None:
        return prompt
    if lm is None:
        raise ConfigError("moving the keys of a KV prompt needs the base model", hint="give it: lm=, or --model M")
    return shift_positions(lm, KVPrompt(layers), by)


def _check_alike(prompts: Sequence[SoftPrompt], *, lengths: bool) -> None:
    """Raise PromptError unless all have one form, the same layers and, if asked for, one length."""
    for other in prompts[1:]:
        if prompts[0].form != other.form:
            raise _not_alike("forms", prompts[0].form, other.form)
        if _shapes_without_tokens(prompts[0]) != _shapes_without_tokens(other):
            raise WrongBaseError("these soft prompts are made for different base models: their tensors differ")
        if lengths and prompts[0].n_tokens != other.n_tokens:
            first, second = f"{prompts[0].n_tokens} virtual tokens", f"{other.n_tokens}"
            hint = f"make them as long as each other first: resize(NAME, {min(prompts[0].n_tokens, other.n_tokens)})"
            raise _not_alike("lengths", first, second, hint)


def _shapes_without_tokens(prompt: SoftPrompt) -> dict[str, tuple[int, ...]]:
    tensors = prompt.materialize().tensors()  # [P, H] or [K, P, D]
    return {name: tuple(tensor.shape[:-2] + tensor.shape[-1:]) for name, tensor in tensors.items()}


def _not_alike(what: str, first: str, second: str, hint: str = "train both with the same form") -> PromptError:
    return PromptError(f"soft prompts of different {what} cannot be composed", got=f"{first} and {second}", hint=hint)
