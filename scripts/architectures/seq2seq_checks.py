"""The same checks on an encoder–decoder."""

from __future__ import annotations

import torch
from checks import NEW, Checks
from oracle import off, oracle
from tiny import random_prompt, text_ids
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from softprompt.data.tokenize import Example
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import exact_sites, prepare_prefixes
from softprompt.prefix.seq2seq import answer_hidden_states
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt


class Seq2SeqChecks(Checks):
    """The same on an encoder–decoder; embedding prompts stand in front of the encoder's text."""

    def plain(self, lm, prefix, text, answer):

        parts = [lm.embed(torch.tensor(prefix.lead))] if prefix.lead else []
        parts += [prefix.prompt.embeddings] if isinstance(prefix.prompt, EmbeddingPrompt) else []
        parts.append(lm.embed([*prefix.follow, *text, *lm.closing]))
        ids = torch.tensor([[lm.start_id, *answer[:-1]]])
        return lm.hf_model(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=ids, use_cache=False).logits[0]

    def emb(self) -> str:

        def one(checks) -> float:
            lm = checks.lm
            prefix = Prefix(random_prompt(lm, "embedding", 8, 1), (3, 9), (20, 21))
            texts, answers = checks.rows(), [text_ids(n, 90 + n) for n in (4, 9, 1, 6, 3)]
            with torch.no_grad():
                ours = lm.logits(answer_hidden_states(lm, prepare_prefixes(lm, [prefix]), texts, answers, [0] * 5))
                wanted = torch.cat([oracle(checks.plain, lm, prefix, t, a) for t, a in zip(texts, answers)])
            return off(ours, wanted)

        return self.said(one(self), lambda: one(self.doubled()))

    def text(self) -> str:

        def one(checks) -> float:
            lm, text, answer = checks.lm, text_ids(17, 3), text_ids(9, 4)
            prefix = Prefix(EmbeddingPrompt(lm.embed(text[:8])))
            with torch.no_grad():
                ours = lm.logits(answer_hidden_states(lm, prepare_prefixes(lm, [prefix]), [text[8:]], [answer], [0]))
                ids = torch.tensor([[lm.start_id, *answer[:-1]]])
                read = torch.tensor([[*text, *lm.closing]])
                wanted = lm.hf_model(input_ids=read, decoder_input_ids=ids, use_cache=False).logits[0]
            return off(ours, wanted)

        return self.said(one(self), lambda: one(self.doubled()))

    def kv(self) -> str:
        """Decoder and cross-attention with Transformers' own caches; the encoder's is `verify`'s business."""
        if not self.takes_kv():
            return "- no keys and values"

        def one(checks) -> float:
            lm, sites = checks.lm, checks.lm.geometry.sites
            whole, exact = random_prompt(lm, "kv", 5, 4), set(exact_sites(lm)) - {"encoder"}
            prompt = KVPrompt(tuple(kv if s in exact else None for kv, s in zip(whole.layers, sites)))
            texts, answers = checks.rows(), [text_ids(n, 90 + n) for n in (4, 9, 1, 6, 3)]

            def plain(text, answer):
                caches = [DynamicCache(), DynamicCache()]
                for cache, site in zip(caches, ("decoder", "cross")):
                    own = [kv for kv, s in zip(prompt.layers, sites) if s == site]
                    for i, kv in enumerate(own):
                        cache.update(kv[0][None], kv[1][None], i)
                both = EncoderDecoderCache(*caches)
                both.is_updated = {}
                read = lm.hf_model.get_encoder()(input_ids=torch.tensor([[*text, *lm.closing]]))
                mask = torch.ones(1, read[0].shape[1] + (5 if "cross" in exact else 0))
                ids = torch.tensor([[lm.start_id, *answer[:-1]]])
                out = lm.hf_model(
                    encoder_outputs=read,
                    attention_mask=mask,
                    decoder_input_ids=ids,
                    past_key_values=both,
                    use_cache=True,
                )
                return out.logits[0]

            with torch.no_grad():
                ours = lm.logits(
                    answer_hidden_states(lm, prepare_prefixes(lm, [Prefix(prompt)]), texts, answers, [0] * 5)
                )
                wanted = torch.cat([oracle(plain, t, a) for t, a in zip(texts, answers)])
            return off(ours, wanted)

        return self.said(one(self), lambda: one(self.doubled()))

    def grad(self) -> str:

        def one(checks) -> float:
            lm = checks.lm
            prefix = Prefix(random_prompt(lm, "embedding", 7, 8, grad=True), (3,), (50, 51))
            rows = [Example(tuple(text_ids(n, n)), tuple([False] * 4 + [True] * (n - 4)), "x") for n in (9, 12, 7)]
            leaf = prefix.prompt.embeddings
            ours = token_losses(lm, prepare_prefixes(lm, [prefix]), rows).sum()
            (mine,) = torch.autograd.grad(ours, [leaf])
            total = torch.zeros((), dtype=lm.dtype)
            for row in rows:
                answer = row.ids[4:]
                logits = oracle(checks.plain, lm, prefix, list(row.ids[:4]), list(answer))
                total = total + cross_entropy(logits, torch.tensor(answer), reduction="sum")
            (theirs,) = torch.autograd.grad(total, [leaf])
            return max(
                abs((ours - total).item()) / max(1.0, abs(total.item())),
                ((mine - theirs).norm() / theirs.norm()).item(),
            )

        return self.said(one(self), lambda: one(self.doubled()))

    def gen(self) -> str:

        lm, bad = self.lm, []
        prefixes = [Prefix(random_prompt(lm, "embedding", n, n), (3,), (20,)) for n in (8, 5)]
        rows, owners = [text_ids(n, 70 + n) for n in (3, 11, 7)], [0, 1, 0]
        with torch.no_grad():
            ours = decode_batch(lm, prepare_prefixes(lm, prefixes), rows, owners, Sampling(NEW), end_ids=[[2]] * 3)
            for i, (row, owner) in enumerate(zip(rows, owners)):
                p = prefixes[owner]
                embeds = torch.cat([lm.embed([3]), p.prompt.embeddings, lm.embed([20, *row, *lm.closing])])[None]
                how = GenerationConfig(
                    max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0, num_beams=1,
                    decoder_start_token_id=lm.start_id, forced_eos_token_id=None, forced_bos_token_id=None,
                )  # fmt: skip

                def greedy():
                    lm.hf_model.generation_config.forced_eos_token_id = None
                    lm.hf_model.generation_config.forced_bos_token_id = None
                    lm.hf_model.generation_config.num_beams = 1
                    lm.hf_model.generation_config.no_repeat_ngram_size = 0
                    lm.hf_model.generation_config.encoder_no_repeat_ngram_size = 0
                    lm.hf_model.generation_config.min_length = 0
                    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
                    return lm.hf_model.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=how)

                found = oracle(greedy)[0, 1:].tolist()
                found = found[: found.index(2)] if 2 in found else found
                if found != ours[i].ids:
                    bad.append(f"row {i}")
        return "OFF " + "; ".join(bad) if bad else "ok"

    def move(self) -> str:
        return "-"

    def long(self) -> str:
        return "ok -"
