"""Everything that is known and cached about one loaded model as far as prefixes go."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Literal, final

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import AttentionFunction, can_switch_attention
from softprompt.prefix.attention_switch import AttentionSwitch

# How a model takes masks: a dict with one per layer type (Qwen, Gemma) or a single one (Llama, Mistral, GPT-2).
MaskStyle = Literal["per layer type", "single"]
# The two numbers of a rotated pair: F apart (Llama, and GPT-NeoX for the first R of D), adjacent (Cohere, GLM), or
# no rotation.
RopeLayout = Literal["halves", "pairs", "still"]
# How rows come after a prefix. "packed": packed rows after shared keys and values, with masks of our own. "state":
# padded rows from copies of the model's own cache. "concatenated": the prefix's embeddings before each row. "masked",
# of encoder–decoders: padded rows after keys and values of any number, with masks of our own.
PrefixPath = Literal["packed", "state", "concatenated", "masked"]
# Rows of an encoder–decoder that run together: of any length, of equal length, or none, since its experts have room for
# so many tokens of a batch.
Company = Literal["padded", "equal", "alone"]


@final
class PrefixRuntime:
    """The state of one loaded model, as an extension of its FrozenLM: two models share nothing.

    Attributes:
        exact: whether `verify` has proven the model. `verifying` is held while it does.
        path: how rows come after a prefix, set by `verify`.
        takes_kv: whether a soft prompt of keys and values is exact, set by `verify`.
        takes_states: whether a soft prompt of states is exact, set by `verify`.
        kv_sites: of an encoder–decoder, the sites where it is. Each of the others has its reason in `site_reasons`.
        company: the rows of an encoder–decoder that run together, set by `verify`.
        pads: whether padding after a row changes nothing in it, set by `verify`.
        steps: whether the model's own cache is exact when tokens come one by one, set by `verify`.
        merges: whether rows of several lengths may share such a cache, padded on the left, set by `verify`.
        shares: whether rows may attend to one stored prefix while decoding, set by `verify`.
        mask_style: how a causal model takes masks, set by `verify`.
        windows: for each layer the sliding window in tokens, or None.
        reasons: why a faster path was not taken.
        rope_layouts: for each layer how its keys are rotated, None for a layer without keys; set by `rope`.
    """

    def __init__(self, lm: FrozenLM) -> None:
        self._model = lm.hf_model if lm.is_encoder_decoder else lm.backbone.module
        self.switch = AttentionSwitch.of(self._model)
        self.verifying = threading.RLock()
        self.exact = False
        self.path: PrefixPath = "packed"
        self.takes_kv = True
        self.takes_states = False
        self.pads = True
        self.steps = True
        self.merges = False
        self.shares = False
        self.windows = lm.geometry.windows
        self.reasons: dict[PrefixPath, str] = {}
        self.mask_style: MaskStyle | None = None
        self.rope_layouts: tuple[RopeLayout | None, ...] | None = None
        self.kv_sites = frozenset[str]()
        self.site_reasons: dict[str, str] = {}
        self.company: Company = "padded"

    @staticmethod
    def of(lm: FrozenLM) -> PrefixRuntime:
        """The runtime of this model, made on first use."""
        return lm.extension(PrefixRuntime)

    def use_attention(self, attention: AttentionFunction | str) -> AbstractContextManager[None]:
        """Another attention for a while: one of Transformers' by name, or a function for this thread's calls.

        The model is shared by all threads: others that want another attention wait, and others that just call the model
        in the middle get its own.
        """
        return self.switch.use(self._model, attention)

    @property
    def attention_name(self) -> str:
        """Transformers' name of the model's own attention implementation."""
        return self.switch.name(self._model)

    @cached_property
    def can_switch_attention(self) -> bool:
        """Whether `use_attention` has an effect on this kind of model."""
        return can_switch_attention(self._model)
