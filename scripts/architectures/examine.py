"""Everything about one architecture, as a flat dict."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from checks import Checks
from oracle import Oracle, off, short, where
from seq2seq_checks import Seq2SeqChecks
from tiny import text_ids, tiny_model, tokenizer
from transformers.modeling_outputs import BaseModelOutputWithPast

import softprompt
from configs import tiny_config
from softprompt.errors import SoftpromptError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import SITES
from softprompt.prefix.verify import verify


def examine(name: str, model_type: str, changes: dict, auto: str, repo: str, only: set[str]) -> dict:
    """The facts of one architecture as a flat dict."""

    fact: dict = {"name": name, "model_type": model_type, "auto": auto, "verdict": "", "reason": ""}
    try:
        config = tiny_config(model_type, changes)
        model = tiny_model(config, auto)
    except Exception as error:
        return fact | {"verdict": "not built", "reason": short(error) + " @ " + where(error, repo)}
    text = model.config.get_text_config()
    fact["class"] = type(model).__name__
    fact["encdec"] = bool(getattr(text, "is_encoder_decoder", False)) or bool(model.config.is_encoder_decoder)
    fact["params"] = sum(p.numel() for p in model.parameters())
    fact |= plain_facts(model, fact["encdec"])
    if not fact["encdec"] and fact["plain"] == "ok":
        fact |= {"head": head_fact(model), "concat": concat_fact(model)}
    if fact["plain"] != "ok":
        return fact | {"verdict": "no text model", "reason": fact["plain"]}
    folder = Path(tempfile.mkdtemp(prefix="arch-"))
    try:
        return fact | product_facts(name, model, folder, repo, only, fact)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plain_facts(model, encdec: bool) -> dict:
    """What Transformers itself can do with text alone."""

    ids = torch.tensor([text_ids(12, 5)])
    more = {"decoder_input_ids": torch.tensor([[0, *text_ids(4, 6)]])} if encdec else {}
    fact = {"plain": "ok", "embeds": "", "causal": ""}
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, **more).logits
        if not torch.isfinite(logits).all():
            return fact | {"plain": "not finite"}
    except Exception as error:
        return fact | {"plain": short(error)}
    try:
        with torch.no_grad():
            embeds = model.get_input_embeddings()(ids)
            same = model(inputs_embeds=embeds, use_cache=False, **more).logits
        difference = off(same, logits)
        fact["embeds"] = "ok" if difference < 1e-4 else f"differs {difference:.0e}"
    except Exception as error:
        fact["embeds"] = "no: " + short(error)[:120]
    if not encdec:
        try:
            with torch.no_grad():
                head = model(input_ids=ids[:, :7], use_cache=False).logits
            difference = off(head, logits[:, :7])
            fact["causal"] = "ok" if difference < 1e-3 else f"differs {difference:.0e}"
        except Exception as error:
            fact["causal"] = "no: " + short(error)[:120]
    return fact


def head_fact(model) -> str:
    """Whether logits are the output embedding of the last hidden states ("linear"), or need the model's own forward
    behind the backbone ("own": scales, a transform), which a shallow copy with a stub for a backbone gives."""

    class Out(BaseModelOutputWithPast):
        def __getattr__(self, name):
            return None

    class Stub(torch.nn.Module):
        def forward(self, *args, inputs_embeds=None, **kwargs):
            return Out(last_hidden_state=inputs_embeds)

        def __getattr__(self, name):
            return getattr(backbone, name)

    ids = torch.tensor([text_ids(12, 5)])
    try:
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits
            backbone = model.base_model
            if backbone is model:  # the prefix names a part that this class calls otherwise
                backbone = model.get_decoder()
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
            cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
            head = model.get_output_embeddings()
            plain = head(hidden) if head is not None else torch.zeros_like(wanted)
            plain = plain if cap is None else cap * torch.tanh(plain / cap)
            if plain.shape == wanted.shape and off(plain, wanted) < 1e-4:
                return "linear"
            name = next(n for n, m in model._modules.items() if m is backbone)
            tail = copy.copy(model)
            tail._modules = dict(model._modules) | {name: Stub()}
            own = tail(inputs_embeds=hidden, use_cache=False).logits
            return "own" if off(own, wanted) < 1e-4 else "differs"
    except Exception as error:
        return "no: " + short(error)[:100]


def concat_fact(model) -> str:
    """Whether an embedding prompt could be concatenated in front of each row: rows padded to the right in a batch get
    what they get alone, and decoding with Transformers' own cache gives what the whole text again at every step gives."""

    oracle, prompt = Oracle(model), torch.randn(6, model.get_input_embeddings().weight.shape[1]) * 0.5
    rows = [torch.cat([prompt, oracle.embed(torch.tensor(text_ids(n, n)))]) for n in (9, 3, 14)]
    try:
        with torch.no_grad():
            alone = [model(inputs_embeds=row[None], use_cache=False).logits[0] for row in rows]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.tensor([[1] * len(row) + [0] * (padded.shape[1] - len(row)) for row in rows])
            both = model(inputs_embeds=padded, attention_mask=mask, use_cache=False).logits
            worst = max(off(both[i, : len(row)], own) for i, (row, own) in enumerate(zip(rows, alone)))
            if worst > 1e-3:  # a causal model needs no mask for what is padded to the right
                both = model(inputs_embeds=padded, use_cache=False).logits
                worst = max(off(both[i, : len(row)], own) for i, (row, own) in enumerate(zip(rows, alone)))
            if worst > 1e-3:
                return f"padding {worst:.0e}"
            wanted = oracle.growing(rows[0][None], [None] * len(rows[0]), 8, -1)
            out = model(inputs_embeds=rows[0][None], use_cache=True)
            found = [int(out.logits[0, -1].argmax())]
            while len(found) < 8:
                name = (
                    "past_key_values"
                    if hasattr(out, "past_key_values")
                    else "cache_params"
                    if hasattr(out, "cache_params")
                    else "state"
                )
                out = model(input_ids=torch.tensor([found[-1:]]), **{name: getattr(out, name)}, use_cache=True)
                found.append(int(out.logits[0, -1].argmax()))
            return "ok" if found == wanted else "its own cache differs"
    except Exception as error:
        return "no: " + short(error)[:120]


def product_facts(name: str, model, folder: Path, repo: str, only: set[str], fact: dict) -> dict:

    lm, loaded = None, ""
    try:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer(closing=fact["encdec"]).save_pretrained(folder)
    except Exception as error:
        loaded = "not saved: " + short(error)
    if not loaded:
        try:
            lm = softprompt.load_model(str(folder), dtype="float32", device="cpu")
            loaded = "ok"
        except SoftpromptError as error:
            loaded = ("refused: " if isinstance(error, UnsupportedModelError) else "not loaded: ") + short(error)
        except Exception as error:
            loaded = "crash: " + short(error) + " @ " + where(error, repo)
    found = {"loaded": loaded}
    if lm is None and (loaded.startswith("not ")):
        # The loader does not know this class, or cannot read it back: would the rest work?
        try:
            lm = FrozenLM(model, tokenizer(closing=fact["encdec"]), name)
            found["direct"] = "ok"
        except SoftpromptError as error:
            found["direct"] = "refused: " + short(error)
        except Exception as error:
            found["direct"] = "crash: " + short(error) + " @ " + where(error, repo)
    if lm is None:
        how = "refused" if loaded.startswith(("refused", "not loaded")) else "crash"
        return found | {"verdict": how, "stage": "load", "reason": loaded.partition(": ")[2]}
    found["attention"] = str(lm.hf_model.config._attn_implementation)
    found["layers"] = len(lm.geometry.layers)
    found["without_kv"] = sum(layer is None for layer in lm.geometry.layers)
    found["windows"] = sorted({str(w) for w in lm.geometry.windows})
    try:
        verify(lm)
        found["verified"] = "ok"
        runtime = PrefixRuntime.of(lm)
        found |= {
            "path": runtime.path,
            "takes_kv": runtime.takes_kv,
            "takes_states": runtime.takes_states,
            "kv_sites": [site for site in SITES if site in runtime.kv_sites],
            "pads": runtime.pads,
            "steps": runtime.steps,
            "shares": runtime.shares,
            "reasons": dict(runtime.reasons),
        }
    except SoftpromptError as error:
        found["verified"] = "refused: " + short(error)
    except Exception as error:
        found["verified"] = "crash: " + short(error) + " @ " + where(error, repo)
    if found["verified"] != "ok":
        how, _, reason = found["verified"].partition(": ")
        if loaded != "ok":
            how, reason = "refused", loaded.partition(": ")[2] + " | and: " + reason
        return found | {"verdict": how, "stage": "verify" if loaded == "ok" else "load", "reason": reason}
    checks = (Seq2SeqChecks if lm.is_encoder_decoder else Checks)(lm, folder, repo)
    checks.run(only)
    found |= checks.found
    exact = ("emb", "text", "kv", "long", "grad", "gen", "train")
    bad = {key: value for key, value in checks.found.items() if key in exact and not value.startswith(("ok", "-"))}
    if any(value.startswith(("OFF", "off")) for value in bad.values()):
        verdict = "wrong"
    elif any(value.startswith("crash") for value in bad.values()):
        verdict = "crash"
    elif any(value.startswith("refused") for value in bad.values()):
        verdict = "partly"
    elif bad:
        verdict = "exact*"  # Transformers has nothing to compare with
    else:
        verdict = "exact"
    reason = "; ".join(f"{key}: {value}" for key, value in bad.items())
    if loaded != "ok":
        return found | {
            "verdict": "refused",
            "stage": "load",
            "inner": verdict,
            "reason": loaded.partition(": ")[2] + (" | " + reason if reason else ""),
        }
    return found | {"verdict": verdict, "stage": "checks", "reason": reason}
