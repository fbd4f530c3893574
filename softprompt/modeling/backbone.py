"""The base model without its head, with the soft prompt in front of every sequence.

The caller writes sequences as for the base model, and the virtual tokens stand where they were trained: after the
sequence's opening (BOS, or what opens the system turn) if the prefix holds it, else before everything. Hidden states
are those of the caller's tokens only.

Shapes: B batch rows, L columns, C columns of the cache, n tokens of the opening, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from softprompt.errors import DataError, UnsupportedModelError
from softprompt.methods.base import Method
from softprompt.modeling.generation_cache import GenerationCache
from softprompt.modeling.rows import RowPlan, padded_states, plan_rows
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import states_with_cache
from softprompt.prefix.kv import Prefix, PrefixKV, embedded, embedded_ids
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes
from softprompt.prompts.base import SoftPrompt

_BASE = "base."  # of the names of the base model's weights, which are not part of the state dict


@dataclass(frozen=True)
class Placement:
    """Where the virtual tokens stand in a caller's texts.

    Attributes:
        lead: ids before the virtual tokens.
        opening: ids that the prefix holds and that the caller's texts begin with, so they are not run again. A BOS may
            be missing, since not every caller writes one.
        required: whether every text must begin with the opening, as with virtual tokens in the system turn.
    """

    lead: tuple[int, ...]
    opening: tuple[int, ...]
    required: bool


@dataclass(eq=False)
class _Prepared:
    """The prefix as it was run, and the state of the soft prompt that it was run in."""

    key: tuple[object, ...]
    prefix_kv: PrefixKV
    opening: Tensor | None = None  # hidden states [n, H]


@final
class SoftPromptBackbone(nn.Module):
    """Hidden states of sequences after a soft prompt.

    Args:
        prompt: the soft prompt, in training or finished (`FixedPrompt`).
        placement: where it stands in a text.
    """

    def __init__(self, lm: FrozenLM, prompt: Method, placement: Placement) -> None:
        super().__init__()
        self.lm = lm
        self.base = lm.hf_model
        self.prompt = prompt
        self.lead, self.opening = placement.lead, placement.opening
        self.required = placement.required
        self.gradient_checkpointing = False
        self._prepared: _Prepared | None = None
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_base_is_not_missing)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        last_only: bool = False,
        cache: GenerationCache | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, L, H] of the given tokens.

        A place of padding has the state of the last token before it.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], or [B, C + L] with a cache; zeros are padding on any side.
            position_ids: [B, L] for several sequences in a row, each counted from 0.
            past_key_values, cache: a cache that an earlier call returned, by its names before and since Transformers
                5.24.
            cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, seq_idx: not read; padding-free batches give them
                beside `position_ids`, which say the same.
            last_only: return the last column [B, 1, H] alone.

        Raises:
            DataError: no ids, masks or positions that cannot be read, or sequences too long for the context.
            UnsupportedModelError: embeddings instead of ids, or another cache.
        """
        ids_BL = _checked_ids(input_ids, inputs_embeds)
        cache = _checked_cache(past_key_values if cache is None else cache)
        if cache is None and use_cache:
            cache = GenerationCache()
        if cache is not None and position_ids is not None:
            raise DataError("positions of rows with a cache are known from the mask", where="position_ids")
        visible_BL = _visible(attention_mask, ids_BL, 0 if cache is None else cache.get_seq_length())
        with self.lm.checkpoint_layers(self.gradient_checkpointing and self.training):
            prefix_kv = self._prepare()
            if cache is None:
                plan = plan_rows(ids_BL, visible_BL, position_ids, self.opening)
                states_BLH = self._padded(prefix_kv, plan)[:, -1 if last_only else 0 :]
            else:
                cache.append(ids_BL, visible_BL)
                states_BLH = self._continued(cache, prefix_kv, ids_BL.shape[1], last_only)
        return states_with_cache(states_BLH, cache)

    def live(self) -> SoftPrompt:
        """The soft prompt, with gradient if it is being trained."""
        (prompt,) = self.prompt()
        return prompt

    def is_learning(self) -> bool:
        """Whether this call's states carry a gradient."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.prompt.parameters())

    def train(self, mode: bool = True) -> SoftPromptBackbone:
        """Set the mode of the soft prompt; the frozen base always runs without dropout."""
        super().train(mode)
        self.base.eval()
        return self

    def _continued(self, cache: GenerationCache, prefix_kv: PrefixKV, new: int, last_only: bool) -> Tensor:
        """States [B, L, H] of the cache's last `new` columns, or [B, 1, H] of the last one."""
        if self.required and cache.get_seq_length() == new:
            self._check_opened(plan_rows(cache.ids, cache.visible, None, self.opening))
        if (last_only or new == 1) and not self.is_learning():
            state_BH = cache.last_state(self.lm, prefix_kv, self.opening)
            if state_BH is not None:
                return state_BH[:, None]
        plan = plan_rows(cache.ids, cache.visible, None, self.opening)
        return self._padded(prefix_kv, plan)[:, -1 if last_only else -new :]

    def _padded(self, prefix_kv: PrefixKV, plan: RowPlan) -> Tensor:
        """States [B, L, H]."""
        self._check_opened(plan)
        opening_nH = self._opening(prefix_kv) if len(plan.opened) else None
        states_RH = torch.zeros(0, self.lm.geometry.hidden, dtype=self.lm.dtype, device=self.lm.device)
        if plan.rows:
            states_RH = hidden_states(self.lm, prefix_kv, [Row(ids) for ids in plan.rows])
        return padded_states(plan, states_RH, opening_nH)

    def _check_opened(self, plan: RowPlan) -> None:
        """Raise DataError if a sequence lacks the opening that it must have."""
        if self.required and len(plan.opened) < plan.sequences:
            raise DataError(
                "this soft prompt stands in the system turn, so every text must begin with that turn",
                where="input_ids",
                expected=repr(self.lm.tokenizer.decode(list(self.opening))),
                hint="render the conversation with an empty system turn",
            )

    def _opening(self, prefix_kv: PrefixKV) -> Tensor:
        """`_opening_states`, computed once as long as the prefix stays."""
        if self._prepared is None:
            return self._opening_states(prefix_kv)
        if self._prepared.opening is None:
            with torch.no_grad():
                self._prepared.opening = self._opening_states(prefix_kv)
        return self._prepared.opening

    def _opening_states(self, prefix_kv: PrefixKV) -> Tensor:
        """Hidden states [n, H] of the opening's tokens; the last one predicts the token after the whole prefix.

        Keys and values have no such state. After them the opening is run once more.
        """
        prefix = Prefix(self.live(), self.lead)
        if prefix.prompt is None or prefix.prompt.input_embeddings() is None:
            return hidden_states(self.lm, prefix_kv, [Row(self.opening)])
        ids_1S = embedded_ids(self.lm, prefix)[None]
        states_SH = self.lm.backbone.run(embeds_BLH=embedded(self.lm, prefix)[None], embedded_ids_BL=ids_1S)[0]
        return torch.cat([states_SH[: len(self.opening) - 1], states_SH[-1:]])

    def _prepare(self) -> PrefixKV:
        """The prefix, run in this call; without gradient only if it has changed since the last one."""
        if self.is_learning():
            self._prepared = None
            return prepare_prefixes(self.lm, [Prefix(self.live(), self.lead)])
        key = self._state()
        if self._prepared is None or self._prepared.key != key:
            with torch.no_grad():
                self._prepared = _Prepared(key, prepare_prefixes(self.lm, [Prefix(self.live(), self.lead)]))
        return self._prepared.prefix_kv

    def _state(self) -> tuple[object, ...]:
        """What the prefix depends on: place and version of every tensor of the soft prompt, and of the base."""
        tensors = [*self.prompt.parameters(), *self.prompt.buffers()]
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors if not tensor.is_inference())
        modes = (torch.is_inference_mode_enabled(), torch.is_autocast_enabled(self.lm.device.type))
        return versions, self.prompt.training, modes, self.lm.device, self.lm.dtype


def _checked_ids(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Token ids [B, L]; DataError if there are none, UnsupportedModelError for embeddings in their place."""
    if inputs_embeds is not None:
        what, hint = "text after a soft prompt is run as token ids, not as embeddings", "give input_ids"
        raise UnsupportedModelError(what, where="inputs_embeds", hint=hint)
    if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
        got = None if input_ids is None else tuple(input_ids.shape)
        raise DataError("there are no token ids", where="input_ids", expected="[rows, tokens]", got=got)
    return input_ids


def _checked_cache(cache: object) -> GenerationCache | None:
    if cache is None or isinstance(cache, GenerationCache):
        return cache
    raise UnsupportedModelError(
        "the keys and values of a soft prompt are in a cache of its own",
        where="past_key_values",
        expected="one that this model returned",
        got=type(cache).__name__,
        hint="leave past_key_values out",
    )


def _visible(attention_mask: Tensor | None, ids_BL: Tensor, before: int) -> Tensor:
    """[B, L] True for tokens. Raises DataError for a mask of another shape."""
    if attention_mask is None:
        return torch.ones_like(ids_BL, dtype=torch.bool)
    rows, new = ids_BL.shape
    if attention_mask.shape not in ((rows, new), (rows, before + new)):
        expected, got = f"[{rows}, {before + new}]", tuple(attention_mask.shape)
        raise DataError("the mask has another shape", where="attention_mask", expected=expected, got=got)
    return attention_mask[:, -new:].to(ids_BL.device).bool()


def _without_base(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """A state dict holds the soft prompt alone: the base model's weights never change."""
    for name in [name for name in state if name.startswith(prefix + _BASE)]:
        del state[name]


def _base_is_not_missing(module: nn.Module, keys: Any) -> None:
    """A state dict without the base model's weights is complete."""
    keys.missing_keys[:] = [name for name in keys.missing_keys if f".{_BASE}" not in f".{name}"]
