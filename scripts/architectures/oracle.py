"""Transformers' own model on concatenated inputs, one row at a time: what softprompt must equal."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from transformers import DynamicCache

from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt


class Oracle:
    """Transformers' own model on concatenated inputs; one row at a time."""

    def __init__(self, model) -> None:
        self.model = model
        self.text = model.config.get_text_config()

    def embed(self, ids):
        """Embeddings as the model takes them: Falcon-H1 scales token ids' alone."""
        scale = self.text.embedding_multiplier if self.text.model_type == "falcon_h1" else 1.0
        return self.model.get_input_embeddings()(ids) * scale

    def second(self, ids: list[int | None]) -> dict:
        """Gemma's per-layer embeddings of these ids; virtual tokens (None) have those of the padding token."""
        if not getattr(self.text, "hidden_size_per_layer_input", None):
            return {}
        backbone = self.model.get_decoder()
        known = torch.tensor([[self.text.pad_token_id or 0 if i is None else i for i in ids]])
        return {"per_layer_inputs": backbone.get_per_layer_inputs(known)}

    def front(self, prefix):

        parts = [self.embed(torch.tensor(prefix.lead, dtype=torch.long))] if prefix.lead else []
        if isinstance(prefix.prompt, EmbeddingPrompt):
            parts.append(prefix.prompt.embeddings)
        if prefix.follow:
            parts.append(self.embed(torch.tensor(prefix.follow, dtype=torch.long)))
        return parts

    def cache(self, prompt):

        cache = DynamicCache()
        try:
            for i, layer in enumerate(prompt.layers):
                if layer is not None:
                    cache.update(layer[0][None], layer[1][None], i)
        except Exception:  # layers that keep something else: the kinds of layers come from the config
            cache = DynamicCache(config=self.model.config)
            for i, layer in enumerate(prompt.layers):
                if layer is not None:
                    cache.update(layer[0][None], layer[1][None], i)
        return cache

    def logits(self, prefix, ids):

        if isinstance(prefix.prompt, KVPrompt):
            text = torch.tensor([[*prefix.follow, *ids]])
            out = self.model(input_ids=text, past_key_values=self.cache(prefix.prompt), use_cache=True)
        else:
            parts = [*self.front(prefix), self.embed(torch.tensor(ids))]
            virtual = prefix.prompt.n_tokens if prefix.prompt is not None else 0
            second = self.second([*prefix.lead, *[None] * virtual, *prefix.follow, *ids])
            out = self.model(inputs_embeds=torch.cat(parts)[None], use_cache=False, **second)
        return out.logits[0, -len(ids) :]

    def greedy(self, prefix, ids, new: int, end: int = 2):
        """The whole text again at every step after embeddings, step by step after keys and values."""

        if not isinstance(prefix.prompt, KVPrompt):
            embeds = torch.cat([*self.front(prefix), self.embed(torch.tensor(ids))])[None]
            virtual = prefix.prompt.n_tokens if prefix.prompt is not None else 0
            found = self.growing(embeds, [*prefix.lead, *[None] * virtual, *prefix.follow, *ids], new, end)
        else:
            cache, text, found = self.cache(prefix.prompt), [*prefix.follow, *ids], []
            for _ in range(new):
                out = self.model(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
                cache, text = out.past_key_values, [int(out.logits[0, -1].argmax())]
                found += text
                if text[0] == end:
                    break
        return found[: found.index(end)] if end in found else found

    def growing(self, embeds, known: list[int | None], new: int, end: int) -> list[int]:
        """Greedy tokens by the whole text again at every step."""
        found: list[int] = []
        while len(found) < new and end not in found:
            second = self.second([*known, *found])
            logits = self.model(inputs_embeds=embeds.clone(), use_cache=False, **second).logits
            found.append(int(logits[0, -1].argmax()))
            embeds = torch.cat([embeds, self.embed(torch.tensor([found[-1:]]))], dim=1)
        return found


def short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    text = " ".join(text.split())
    return text[:300]


def where(error: BaseException, repo: str) -> str:
    """The last lines of the repository and of Transformers in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(repo) and "site-packages" not in f.filename]
    last = frames[-1] if frames else None
    told = [f"{Path(f.filename).relative_to(repo)}:{f.lineno}" for f in ours[-2:]]
    if last is not None and (not ours or last is not ours[-1]):
        told.append("/".join(Path(last.filename).parts[-2:]) + f":{last.lineno}")
    return " < ".join(reversed(told))


def off(ours, wanted) -> float:
    """Largest difference, relative to the largest number where that is above one."""
    return ((ours - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)).item()


def weights(lm) -> str:
    """The digest of the frozen weights, or "" where they are of a kind that has no bytes (torchao)."""
    try:
        return lm.digest()
    except Exception:
        return ""


class OracleFailed(Exception):
    """Transformers itself does not do it."""


def oracle(call, *args):
    try:
        return call(*args)
    except Exception as error:
        raise OracleFailed(short(error)) from error
