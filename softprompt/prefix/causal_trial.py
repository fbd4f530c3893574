"""Finds the fastest path on which prefix + rows equals concatenation on a loaded causal model.

Three paths are tried, the fastest first: packed rows after shared keys and values, padded rows from the model's own
cache, plain concatenation. The first path whose logits equal the model's own is taken.

Shapes: T tokens of the rows, H width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from softprompt.models.backbone import NO_ID
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix, run_prefixes
from softprompt.prefix.limits import attention_limits
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.proof import PROBE_TOKENS, failure_of, logit_difference, probe_ids
from softprompt.prefix.runtime import MaskStyle, PrefixPath, PrefixRuntime
from softprompt.prefix.state import compute_states, run_states, state_hidden_states, state_keys_values
from softprompt.prefix.state_decoding import StateDecodingSession
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

_LONG_PROBE_TOKENS = 24  # to go past limits of attention
_TRIAL_LIMIT = 3  # tokens that attention reaches back then
_LEAD = 3  # tokens of the probe before the rows


class CausalTrial:
    """Finds the fastest path that is exact on a causal model, and sets the model's runtime accordingly."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        self.runtime = PrefixRuntime.of(lm)
        self._take(PROBE_TOKENS)
        draw = torch.Generator().manual_seed(0)
        size = lm.embedding_table[: lm.geometry.vocab].float().std().item()  # of a token's embedding
        soft = torch.randn(_LEAD, lm.geometry.hidden, generator=draw) * size
        self.soft = EmbeddingPrompt(soft.to(lm.device, lm.dtype))

    def _take(self, count: int) -> None:
        """Use a probe of this many tokens: a lead and two rows after it, one a token shorter."""
        self.ids = probe_ids(self.lm, count)
        self.rows = [self.ids[_LEAD:], self.ids[_LEAD:-1]]

    def run(self) -> str:
        """Returns the reason why no path is exact, or ""."""
        if reason := failure_of(self._try_head):
            return reason
        attempts: dict[PrefixPath, Callable[[], str]] = {
            "packed": self._try_packed,
            "state": self._try_state,
            "concatenated": self._try_concatenated,
        }
        for path, attempt in attempts.items():
            self.runtime.path = path
            if not (reason := failure_of(attempt)):
                return ""
            self.runtime.reasons[path] = reason
        return reason

    def _try_head(self) -> str:
        """The whole model's logits of the probe against those of the backbone's states."""
        ids = torch.tensor([self.ids], device=self.lm.device)
        whole = self.lm.hf_model(input_ids=ids, use_cache=False).logits[0].to(ids.device)
        ours = self.lm.logits(self.lm.backbone.run(ids_BL=ids)[0])
        if reason := logit_difference(self.lm, ours, whole, "of its head alone"):
            return reason
        begin = self.lm.logits(self.lm.backbone.run(ids_BL=ids[:, :_LEAD])[0])
        if logit_difference(self.lm, begin, whole[:_LEAD]):
            return "it is not causal: a token's logits change with the tokens after it"
        return ""

    def _truth(self, soft: bool) -> Tensor:
        """Logits [T, V] of both rows after the lead, or after virtual tokens, by the model's own forward pass."""
        return torch.cat([self._row_truth(row, soft) for row in self.rows])

    def _row_truth(self, row: list[int], soft: bool) -> Tensor:
        if not soft:
            ids = torch.tensor([[*self.ids[:_LEAD], *row]], device=self.lm.device)
            states_LH = self.lm.backbone.run(ids_BL=ids)[0]
        else:
            embeds = torch.cat([self.soft.embeddings, self.lm.embed(row)])
            ids = torch.tensor([[NO_ID] * _LEAD + row], device=self.lm.device)
            states_LH = self.lm.backbone.run(embeds_BLH=embeds[None], embedded_ids_BL=ids)[0]
        return self.lm.logits(states_LH)[_LEAD:]

    def _prefixes(self, soft: bool) -> list[Prefix]:
        return [Prefix(self.soft) if soft else Prefix(lead=tuple(self.ids[:_LEAD]))]

    def _try_packed(self) -> str:
        """Find how the model takes masks; then its windows, and whether rows can share a prefix while decoding."""
        if self.lm.backbone.has_own_masks:
            return "its attention is limited by places in the cache"
        styles: list[MaskStyle] = ["per layer type", "single"] if self.lm.layer_types else ["single"]
        reason = ""
        for style in styles:
            self.runtime.mask_style = style
            if not (reason := self._past_limits(self._packed_difference)):
                break
        else:
            self.runtime.mask_style = None
            return reason
        self.runtime.shares = True
        self.runtime.shares = not failure_of(self._shared_difference)
        return ""

    def _packed_difference(self) -> str:
        for soft in (False, True):
            prefixes = run_prefixes(self.lm, self._prefixes(soft))
            states = packed_hidden_states(
                self.lm, prefixes, [Row(row) for row in self.rows], capacity=2 * len(self.ids)
            )
            if reason := logit_difference(self.lm, self.lm.logits(states), self._truth(soft)):
                return reason
        return ""

    def _shared_difference(self) -> str:
        """Rows that share one stored prefix while decoding."""
        prefixes = run_prefixes(self.lm, self._prefixes(soft=True))
        session = DecodingSession(self.lm, prefixes, [row[:1] for row in self.rows], [0, 0], 1)
        states = session.step(torch.tensor([row[1] for row in self.rows], device=self.lm.device))
        wanted = self._row_truth(self.rows[0], soft=True)[[1, 1]]
        return logit_difference(self.lm, self.lm.logits(states), wanted)

    def _try_state(self) -> str:
        if self.lm.backbone.cache_argument is None:
            return "it takes no cache"
        self.runtime.takes_kv = self.runtime.takes_states = False
        if reason := self._try_padding():
            return reason
        if reason := self._gradient_difference():
            return reason
        self._try_steps()
        self.runtime.takes_kv = not failure_of(self._kv_difference)
        self.runtime.takes_states = bool(self.lm.geometry.states) and not self._past_limits(self._given_difference)
        return ""

    def _try_concatenated(self) -> str:
        self.runtime.takes_kv = False
        if reason := self._try_padding():
            return reason
        self.runtime.steps = self.lm.backbone.cache_argument is not None
        if self.runtime.steps:
            self._try_steps()
        return ""

    def _try_padding(self) -> str:
        """Rows of several lengths together, or else each length by itself."""
        self.runtime.pads = True
        if self._past_limits(self._state_difference):
            self.runtime.pads = False
            return self._past_limits(self._state_difference)
        return ""

    def _try_steps(self) -> None:
        """Whether rows grow in the model's cache, and whether those of several lengths may share one."""
        self.runtime.steps = self.runtime.merges = True
        if self._past_limits(self._steps_difference):
            self.runtime.merges = False
            self.runtime.steps = not self._past_limits(self._steps_difference)

    def _past_limits(self, attempt: Callable[[], str]) -> str:
        """The reason why an attempt failed; "" if it did not, also with the limits of attention shorter than the
        trial."""
        if reason := failure_of(attempt):
            return reason
        with attention_limits(self.lm, _TRIAL_LIMIT) as windows:
            if windows is None:
                return ""
            self._take(_LONG_PROBE_TOKENS)
            self.runtime.windows = windows
            try:
                reason = failure_of(attempt)
            finally:
                self._take(PROBE_TOKENS)
                self.runtime.windows = self.lm.geometry.windows
        return reason and f"past a limit of its attention, {reason}"

    def _state_difference(self) -> str:
        """Another prefix is run in between: some models keep states outside of their cache."""
        for soft in (False, True):
            prefixes = run_states(self.lm, [*self._prefixes(soft), Prefix(lead=tuple(self.ids[1:_LEAD]))])
            states = state_hidden_states(self.lm, prefixes, [Row(row) for row in self.rows])
            if reason := logit_difference(self.lm, self.lm.logits(states), self._truth(soft)):
                return reason
        return ""

    def _steps_difference(self) -> str:
        """Two rows of different lengths, which take their steps in turn."""
        prefixes = run_states(self.lm, self._prefixes(soft=True))
        row = self.rows[0]
        session = StateDecodingSession(self.lm, prefixes, [row[:1], row[:2]], [0, 0], len(row))
        ours = [self.lm.logits(session.hidden)]
        for pair in itertools.pairwise(row[1:]):
            ours.append(self.lm.logits(session.step(torch.tensor(pair, device=self.lm.device))))
        truth = self._row_truth(row, soft=True)
        wanted = torch.stack([truth[:-1], truth[1:]], dim=1)
        return logit_difference(self.lm, torch.stack(ours), wanted)

    def _kv_difference(self) -> str:
        """Keys and values of the lead as a soft prompt: everything that the model carries?"""
        self.runtime.takes_kv = True
        layers = state_keys_values(self.lm, Prefix(lead=tuple(self.ids[: _LEAD - 1])))
        return self._prompt_difference(KVPrompt(tuple(kv and (kv[0][0], kv[1][0]) for kv in layers)))

    def _given_difference(self) -> str:
        """What layers carry from the lead as a soft prompt, after another prefix was run."""
        self.runtime.takes_states = True
        prompt = compute_states(self.lm, Prefix(lead=tuple(self.ids[: _LEAD - 1])))
        run_states(self.lm, [Prefix(lead=tuple(self.ids[1:_LEAD]))])
        return self._prompt_difference(prompt)

    def _prompt_difference(self, prompt: SoftPrompt) -> str:
        """A soft prompt that stands for all tokens of the lead but the last."""
        prefixes = run_states(self.lm, [Prefix(prompt, follow=(self.ids[_LEAD - 1],))])
        states = state_hidden_states(self.lm, prefixes, [Row(row) for row in self.rows])
        return logit_difference(self.lm, self.lm.logits(states), self._truth(soft=False))

    def _gradient_difference(self) -> str:
        """The gradient of the logits' mean square by the virtual tokens, against concatenation's."""
        gradients = list[Tensor]()
        paths: tuple[PrefixPath, ...] = ("concatenated", "state")
        for path in paths:
            self.runtime.path = path
            with torch.enable_grad():
                leaf = self.soft.embeddings.detach().clone().requires_grad_(True)
                prefixes = run_states(self.lm, [Prefix(EmbeddingPrompt(leaf))])
                logits = self.lm.logits(state_hidden_states(self.lm, prefixes, [Row(row) for row in self.rows]))
                gradients += torch.autograd.grad(logits.float().square().mean(), leaf)
        return logit_difference(self.lm, gradients[1], gradients[0], "'s gradients after a prefix")
