"""Checks that every engine makes before it runs anything: models, prefixes and jobs that do not fit."""

from __future__ import annotations

from collections.abc import Mapping

from softprompt.engine.base import Job
from softprompt.errors import EngineError, GeometryError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import packs_rows
from softprompt.prompts.forms import check_fits

SEED_LIMIT = 2**63


def check_supported(lm: FrozenLM) -> None:
    """Raises UnsupportedModelError for a model that carries more than keys and values, or other things."""
    shapes = set(lm.geometry.layers)
    reason = ""
    if lm.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif lm.geometry.states:
        reason = "its layers carry recurrent or convolution states, and pages hold keys and values"
    elif not packs_rows(lm):
        reason = "its masks depend on places in its own cache, which pages do not keep"
    elif None in shapes:
        reason = "some of its layers attend to keys and values of other layers"
    elif getattr(lm.hf_model.config.get_text_config(), "kv_lora_rank", None):
        reason = "its cache holds latents, from which keys and values are made in every step"
    if reason:
        raise unsupported(lm, reason)


def check_one_shape(lm: FrozenLM) -> None:
    """Raises UnsupportedModelError unless the keys and values of all layers have one shape."""
    shapes = set(lm.geometry.layers)
    if len(shapes) > 1 or any(shape.key_dim != shape.value_dim for shape in shapes if shape):
        raise unsupported(lm, "its layers keep keys and values of different shapes")


def unsupported(lm: FrozenLM, reason: str) -> UnsupportedModelError:
    """The error for a model that the engine cannot run."""
    return UnsupportedModelError(
        f"{lm.geometry.architecture} models cannot be batched continuously",
        where=lm.name,
        got=reason,
        hint="softprompt generate runs this model",
    )


def check_prefix(lm: FrozenLM, name: str, prefix: Prefix, capacities: Mapping[str, int]) -> None:
    """Raises EngineError unless a text and a new token fit after the prefix.

    Args:
        capacities: maximum tokens of a job, by what limits them ("context", "cache").
    """
    if prefix.masked_span[0] < prefix.masked_span[1]:
        raise EngineError("an engine cannot mask virtual tokens", where=name, hint="drop the unseen ones: prune")
    if prefix.prompt is not None and prefix.prompt.begins_the_sequence and prefix.lead:
        raise EngineError("a KV prompt starts at position 0, so no lead can stand before it", where=name)
    check_ids(lm, name, (*prefix.lead, *prefix.follow))
    try:
        if prefix.prompt is not None:
            check_fits(prefix.prompt, lm.geometry)
    except GeometryError as error:
        raise EngineError(
            f"the soft prompt does not fit the model: {error.what}",
            where=name,
            expected=error.expected,
            got=error.got,
        ) from error
    size = prefix.prompt.n_tokens if prefix.prompt else 0
    check_context_room(name, len(prefix.lead) + size + len(prefix.follow), 2, capacities, "fewer virtual tokens")


def check_job(lm: FrozenLM, job: Job) -> None:
    """Raises EngineError for a job without tokens, with ids outside the vocabulary, or with an invalid seed."""
    if not job.ids:
        raise EngineError("a job has no tokens", where=job.id, hint="give at least one token of text")
    if not 0 <= job.sampling.seed < SEED_LIMIT:
        raise EngineError(
            "the seed is out of range", where=job.id, expected=f"0 to {SEED_LIMIT - 1}", got=job.sampling.seed
        )
    check_ids(lm, job.id, (*job.ids, *(token for token, _ in job.bias)))


def check_ids(lm: FrozenLM, where: str, ids: tuple[int, ...]) -> None:
    """Raises EngineError for an id outside the vocabulary."""
    vocab = lm.geometry.vocab
    if strange := [i for i in ids if not 0 <= i < vocab]:
        raise EngineError("an id is no token of the model", where=where, expected=f"0 to {vocab - 1}", got=strange[0])


def check_context_room(where: str, before: int, new: int, capacities: Mapping[str, int], hint: str) -> None:
    """Raises EngineError if `before` and `new` tokens together exceed one of the capacities."""
    for name, capacity in capacities.items():
        if before + new > capacity:
            raise EngineError(
                f"it does not fit in the {name}",
                where=where,
                expected=f"at most {capacity} tokens",
                got=f"{before} and {new} new ones",
                hint=hint,
            )
