"""Finds the path on which prefix + text equals concatenation on a loaded encoder–decoder.

Two paths are tried: slots with masks of our own (T5), then the model's own masks and positions, which any
encoder–decoder that takes embeddings allows. There each site of keys and values is proven by itself: those that tokens
have, with all that comes after them, must stand for these tokens.

Shapes: V vocabulary, A tokens of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.proof import failure_of, logit_difference, probe_ids
from softprompt.prefix.runtime import Company, PrefixRuntime
from softprompt.prefix.seq2seq import SITES, answer_hidden_states, gather_prefixes, record_text_kv
from softprompt.prefix.seq2seq_decoding import Seq2SeqDecodingSession
from softprompt.prefix.seq2seq_forward import DecoderRun, EncodedText, Past, run_encoder
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

_PROBE_TOKENS = 10
_LEAD = 3  # tokens of the probe that a prefix stands for
_COMPANIES: tuple[Company, ...] = ("padded", "equal", "alone")


class Seq2SeqTrial:
    """Finds the path that is exact on an encoder–decoder, and sets the model's runtime accordingly."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        self.runtime = PrefixRuntime.of(lm)
        self.ids = probe_ids(lm, _PROBE_TOKENS)
        self.answer = list(reversed(self.ids))[:6]
        draw = torch.Generator().manual_seed(0)
        size = lm.embed(self.ids).float().std().item()
        soft = torch.randn(_LEAD, lm.geometry.hidden, generator=draw) * size
        self.soft = EmbeddingPrompt(soft.to(lm.device, lm.dtype))

    def run(self) -> str:
        """Returns the reason why no path is exact, or ""."""
        if reason := failure_of(self._try_decoder):
            return reason
        self.runtime.path, self.runtime.kv_sites = "masked", frozenset(SITES)
        if reason := failure_of(self._try_masked):
            self.runtime.reasons["masked"] = reason
            self.runtime.path, self.runtime.kv_sites = "concatenated", frozenset()
            if reason := self._try_concatenated():
                return reason
            self._try_sites()
        self.runtime.takes_kv = bool(self.runtime.kv_sites)
        return ""

    def _whole(self, written: Sequence[int], text: Sequence[int] = (), embeds: Tensor | None = None) -> Tensor:
        """Logits [len(written), V] by the model's own forward pass: of a text, or of embeddings."""
        read = {"input_ids": torch.tensor([list(text)], device=self.lm.device)}
        if embeds is not None:
            read = {"inputs_embeds": embeds[None]}
        ids = torch.tensor([list(written)], device=self.lm.device)
        return self.lm.hf_model(**read, decoder_input_ids=ids, use_cache=False).logits[0]

    def _try_decoder(self) -> str:
        """The head behind the decoder, and whether the decoder is causal."""
        lm, written = self.lm, [*self.lm.start_ids, *self.answer]
        wanted = self._whole(written, self.ids)
        states = run_encoder(lm, lm.embed(self.ids)[None], self._ones(self.ids), self._nothing("encoder")).states
        text = EncodedText(states, self._ones(self.ids))
        self.runtime.path = "concatenated"
        for ids in (written, written[:_LEAD]):
            run = DecoderRun(lm, text, self._nothing("decoder"), self._nothing("cross"))
            ours = lm.logits(run.run(torch.tensor([ids], device=lm.device))[0])
            if reason := logit_difference(lm, ours, wanted[: len(ids)], "of its decoder"):
                return (
                    reason if ids is written else "its decoder is not causal: logits change with the tokens after them"
                )
        return ""

    def _try_masked(self) -> str:
        """Replace a text's first tokens by their keys and values, recorded with the whole text, at all three sites, and
        by an embedding prompt in the encoder."""
        lm = self.lm
        if lm.layer_types or not all(lm.geometry.layers):
            return "its layers differ"
        ids = self.ids[:6]
        written = [*ids[3:], *lm.start_ids, *ids[:2]]
        text = [*lm.opening, *ids, *lm.closing]
        whole, last = (self._whole(answer, text)[-3:] for answer in (written, written[3:]))
        layers = [kv and (kv[0][0, :, :3], kv[1][0, :, :3]) for kv in record_text_kv(lm, text, written)]
        prefixes = [Prefix(KVPrompt(tuple(layers))), Prefix(EmbeddingPrompt(lm.embed(ids[:3])))]
        answers = [[*ids[:2], 0]] * 2
        return self._difference(prefixes, [ids[3:]] * 2, answers, [0, 1], [whole, last])

    def _try_concatenated(self) -> str:
        """Texts of several lengths together, of one length, or each alone; then steps of a token."""
        reason = ""
        for company in _COMPANIES:
            self.runtime.company = company
            if company == "padded" and not self.lm.encoder_decoder.pads:
                continue
            if not (reason := failure_of(self._rows_difference)):
                break
        else:
            return failure_of(self._embeddings_difference) or reason
        self.runtime.steps = True
        self.runtime.steps = not failure_of(self._steps_difference)
        return ""

    def _embeddings_difference(self) -> str:
        """Whether the model's own decoder is causal when its encoder gets embeddings."""
        embeds, written = self.lm.embed(self.ids), [*self.lm.start_ids, *self.answer]
        whole, begin = (self._whole(ids, embeds=embeds) for ids in (written, written[:_LEAD]))
        differs = logit_difference(self.lm, begin, whole[:_LEAD])
        return differs and "its decoder is not causal in Transformers once its encoder gets embeddings"

    def _rows_difference(self) -> str:
        """Behind a text and behind virtual tokens, two rows of each length."""
        texts = [self.ids[_LEAD:], self.ids[_LEAD:-2], self.ids[_LEAD:]]
        answers = [self.answer, self.answer[:-3], list(reversed(self.answer))]
        prefixes = [Prefix(self.soft), Prefix(lead=tuple(self.ids[:_LEAD]))]
        rows = [(prefix, text, answer) for prefix in (0, 1) for text, answer in zip(texts, answers, strict=True)]
        wanted = [self._truth(prefixes[prefix], text, answer) for prefix, text, answer in rows]
        owners, reads = [row[0] for row in rows], [row[1] for row in rows]
        writes = [row[2] for row in rows]
        return self._difference(prefixes, reads, writes, owners, wanted)

    def _truth(self, prefix: Prefix, text: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Logits [len(answer), V] by the model's own forward pass: of ids where all are text."""
        lm, written = self.lm, [*self.lm.start_ids, *answer[:-1]]
        ids = [*lm.opening, *text, *lm.closing]
        if prefix.prompt is None:
            logits = self._whole(written, [*prefix.lead, *ids])
        else:
            logits = self._whole(written, embeds=torch.cat([self.soft.embeddings, lm.embed(ids)]))
        return logits[-len(answer) :]

    def _difference(
        self,
        prefixes: Sequence[Prefix],
        texts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        owners: Sequence[int],
        wanted: Sequence[Tensor],
    ) -> str:
        states = answer_hidden_states(self.lm, gather_prefixes(self.lm, prefixes), texts, answers, owners)
        return logit_difference(self.lm, self.lm.logits(states), torch.cat(list(wanted)))

    def _steps_difference(self) -> str:
        """Answers that grow by a token a step, in the model's cache, against the whole answer at once."""
        lm, prefix = self.lm, Prefix(self.soft)
        texts = [self.ids[_LEAD:], self.ids[_LEAD:-2]]
        session = Seq2SeqDecodingSession(lm, gather_prefixes(lm, [prefix]), texts, [0, 0], len(self.answer))
        states = [session.hidden]
        for token in self.answer[:-1]:
            states.append(session.step(torch.tensor([token] * 2, device=lm.device)))
        wanted = [self._truth(prefix, text, self.answer) for text in texts]
        return logit_difference(lm, lm.logits(torch.stack(states, 1).flatten(0, 1)), torch.cat(wanted))

    def _try_sites(self) -> None:
        """Where keys and values in place of tokens are exact. Each site is proven by itself."""
        attempts = {"encoder": self._encoder_site, "decoder": self._decoder_site, "cross": self._cross_site}
        for site, attempt in attempts.items():
            if reason := failure_of(attempt):
                self.runtime.site_reasons[site] = reason
            else:
                self.runtime.kv_sites |= {site}

    def _encoder_site(self) -> str:
        """The text's last tokens behind the keys and values of its first ones, as in the whole text."""
        whole, rest = self.lm.embed(self.ids)[None], self.lm.embed(self.ids[_LEAD:])[None]
        recorded = run_encoder(self.lm, whole, self._ones(self.ids), self._nothing("encoder"), record=True)
        past = self._first(recorded.cache.seen, "encoder")
        ours = run_encoder(self.lm, rest, self._ones(self.ids[_LEAD:]), past).states
        return self._state_difference(ours, recorded.states[:, _LEAD:])

    def _decoder_site(self) -> str:
        """The answer's last tokens behind the keys and values of its first ones, as in the whole answer."""
        written = torch.tensor([[*self.lm.start_ids, *self.answer]], device=self.lm.device)
        cross = self._nothing("cross")
        recorded = DecoderRun(self.lm, self._text(), self._nothing("decoder"), cross, record=True)
        whole = recorded.run(written)
        past = self._first(self._seen(recorded, "self_attention_cache"), "decoder")
        for room in (None, written.shape[1]):  # as in training, and in a cache that grows
            ours = DecoderRun(self.lm, self._text(), past, cross, room).run(written[:, _LEAD:])
            if reason := self._state_difference(ours, whole[:, _LEAD:]):
                return reason
        return ""

    def _cross_site(self) -> str:
        """An answer behind the keys and values of a text's first states, as behind these states."""
        text, own = self._text(), self._nothing("decoder")
        written = torch.tensor([[*self.lm.start_ids, *self.answer]], device=self.lm.device)
        recorded = DecoderRun(self.lm, text, own, self._nothing("cross"), record=True)
        recorded.run(written)
        past = self._first(self._seen(recorded, "cross_attention_cache"), "cross")
        twice = EncodedText(
            torch.cat([text.states[:, :_LEAD], text.states], 1), torch.cat([text.visible[:, :_LEAD], text.visible], 1)
        )
        wanted = DecoderRun(self.lm, twice, own, self._nothing("cross")).run(written)
        for room in (None, written.shape[1]):
            ours = DecoderRun(self.lm, text, own, past, room).run(written)
            if reason := self._state_difference(ours, wanted):
                return reason
        return ""

    def _text(self) -> EncodedText:
        ones = self._ones(self.ids)
        return EncodedText(
            run_encoder(self.lm, self.lm.embed(self.ids)[None], ones, self._nothing("encoder")).states, ones
        )

    def _ones(self, ids: Sequence[int]) -> Tensor:
        return torch.ones(1, len(ids), dtype=torch.bool, device=self.lm.device)

    def _nothing(self, site: str) -> Past:
        return Past((None,) * self.lm.geometry.sites.count(site), self._ones(()))

    def _seen(self, run: DecoderRun, cache: str) -> dict[int, tuple[Tensor, Tensor]]:
        return getattr(getattr(run.cache, cache), "seen", {})

    def _first(self, seen: dict[int, tuple[Tensor, Tensor]], site: str) -> Past:
        """The keys and values of the first tokens. Raises UnsupportedModelError for a layer that keeps none."""
        layers = [
            shape for shape, own in zip(self.lm.geometry.layers, self.lm.geometry.sites, strict=True) if own == site
        ]
        if not layers or None in layers or len(seen) != len(layers):
            raise UnsupportedModelError("its attention there takes no keys and values of others")
        kept = tuple((seen[i][0][:, :, :_LEAD], seen[i][1][:, :, :_LEAD]) for i in range(len(layers)))
        return Past(kept, self._ones(range(_LEAD)))

    def _state_difference(self, ours: Tensor, wanted: Tensor) -> str:
        return logit_difference(self.lm, ours, wanted, "there").replace("logits", "hidden states")
