"""The checks on one accepted causal model."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import time
from pathlib import Path

import torch
from oracle import Oracle, OracleFailed, off, oracle, short, weights, where
from tiny import random_prompt, text_ids
from torch.nn.functional import cross_entropy

import softprompt
from softprompt.data.tokenize import Example
from softprompt.engine.base import Job
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import SoftpromptError
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import has_state_layers
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes
from softprompt.prefix.rope import shift_positions
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import EmbeddingPrompt

RECURRENT_TOLERANCE = 1e-3
TOLERANCE = 1e-4  # of logits, absolute where they are small, else relative to the largest
LENGTHS = (14, 1, 5, 23, 9)
NEW = 12


def has_states(lm: FrozenLM) -> bool:
    """Whether layers carry recurrent or convolution states."""
    return has_state_layers(lm.hf_model.config.get_text_config())


class Checks:
    """The checks on one accepted causal model; each result is "ok", "off 1e-2", "refused: …" or "crash: …"."""

    def __init__(self, lm, folder: Path, repo: str) -> None:
        self.lm, self.folder, self.repo, self.oracle = lm, folder, repo, Oracle(lm.hf_model)
        self.found: dict[str, str] = {}
        self.notes: list[str] = []

    def run(self, only: set[str]) -> None:
        for name in ("emb", "text", "kv", "long", "grad", "gen", "train", "move", "serve"):
            if only and name not in only:
                continue

            begin = time.monotonic()
            try:
                self.found[name] = getattr(self, name)()
            except SoftpromptError as error:
                self.found[name] = "refused: " + short(error)
            except OracleFailed as error:
                self.found[name] = "no oracle: " + str(error)
            except Exception as error:
                self.found[name] = "crash: " + short(error) + " @ " + where(error, self.repo)
            self.found[name + "_s"] = f"{time.monotonic() - begin:.1f}"

    def compared(self, prefix, rows) -> float:

        with torch.no_grad():
            wanted = [oracle(self.oracle.logits, prefix, row) for row in rows]
            worst = 0.0
            for capacity in (None, 1, 10_000):
                states = hidden_states(
                    self.lm, prepare_prefixes(self.lm, [prefix]), [Row(row) for row in rows], capacity=capacity
                )
                for own, want in zip(self.lm.logits(states).split([len(r) for r in rows]), wanted, strict=True):
                    worst = max(worst, off(own, want))
        return worst

    def said(self, worst: float, again) -> str:
        """In float32 a difference may be rounding: then it is none in float64.

        Recurrent layers compute in float32 whatever the model's dtype, and round at other places of a longer text.
        """
        if worst <= (RECURRENT_TOLERANCE if has_states(self.lm) else TOLERANCE):
            return f"ok {worst:.0e}"
        try:
            exact = again()
        except Exception as error:
            return f"off {worst:.0e} (float64: {short(error)[:80]})"
        rounding = exact <= 1e-9
        return f"{'ok' if rounding else 'OFF'} {worst:.0e} ({'rounding: ' if rounding else ''}{exact:.0e} in float64)"

    def doubled(self):
        """The same in float64."""

        lm = FrozenLM(copy.deepcopy(self.lm.hf_model).double(), self.lm.tokenizer, self.lm.name)
        return Checks(lm, self.folder, self.repo)

    def takes_kv(self) -> bool:
        """Whether keys and values are all that the model carries from a prefix."""
        verify(self.lm)
        return PrefixRuntime.of(self.lm).takes_kv

    def rows(self):
        return [text_ids(n, 10 + n) for n in LENGTHS]

    def emb(self) -> str:

        def one(checks: Checks) -> float:
            prefixes = [
                Prefix(random_prompt(checks.lm, "embedding", 8, 1), (3, 9), (20, 21)),
                Prefix(random_prompt(checks.lm, "embedding", 30, 2)),
            ]
            return max(checks.compared(prefix, checks.rows()) for prefix in prefixes)

        return self.said(one(self), lambda: one(self.doubled()))

    def text(self) -> str:
        if self.oracle.second([1]):
            return "- a virtual token is no text for this model: it has no per-layer embedding of its own"

        def one(checks: Checks) -> float:
            text, worst = text_ids(17, 3), 0.0
            prefix = Prefix(EmbeddingPrompt(checks.lm.embed(text)))
            with torch.no_grad():
                for row in checks.rows():
                    out = checks.lm.hf_model(input_ids=torch.tensor([[*text, *row]]), use_cache=False).logits[
                        0, len(text) :
                    ]
                    own = checks.lm.logits(hidden_states(checks.lm, prepare_prefixes(checks.lm, [prefix]), [Row(row)]))
                    worst = max(worst, off(own, out))
            return worst

        return self.said(one(self), lambda: one(self.doubled()))

    def kv(self) -> str:
        if not self.takes_kv():
            return "- no keys and values"

        def one(checks: Checks) -> float:
            prefixes = [
                Prefix(random_prompt(checks.lm, "kv", 10, 4), (), (20, 21)),
                Prefix(random_prompt(checks.lm, "kv", 5, 5)),
            ]
            return max(checks.compared(prefix, checks.rows()) for prefix in prefixes)

        return self.said(one(self), lambda: one(self.doubled()))

    def long(self) -> str:
        """Behind windows, chunks and original contexts: a row that nearly fills the context."""

        def one(checks: Checks) -> float:
            room = min(checks.lm.geometry.max_positions, 256) - 12
            return checks.compared(
                Prefix(random_prompt(checks.lm, "embedding", 8, 1)), [text_ids(room, 11), text_ids(7, 12)]
            )

        return self.said(one(self), lambda: one(self.doubled()))

    def grad(self) -> str:
        """A mistake shows for every prompt. Rounding that flips one choice of a router shows for that prompt alone."""
        results = [self.grad_of(8)]
        while len(results) < 3 and not results[-1].startswith("ok"):
            results.append(self.grad_of(8 + 100 * len(results)))
        passed = results[-1].startswith("ok")
        return results[0] if len(results) == 1 or not passed else f"{results[-1]} (another prompt: {results[0]})"

    def grad_of(self, seed: int) -> str:
        def one(checks: Checks) -> float:
            lm = checks.lm
            examples = []
            for i, n in enumerate((9, 2, 15, 3, 7, 12)):
                mask = [False] * ((n + 1) // 2) + [True] * (n // 2)
                examples.append(Example(tuple(text_ids(n, 50 + i)), tuple(mask), "x"))
            forms = ["embedding", "kv"] if self.takes_kv() else ["embedding"]
            prompts = [random_prompt(lm, form, 7, seed, grad=True) for form in forms]
            prefixes = [Prefix(prompt, (3,) if prompt.form == "embedding" else (), (50, 51)) for prompt in prompts]
            owners = [i % len(prefixes) for i in range(len(examples))]
            leaves = [t for prompt in prompts for t in prompt.tensors().values()]
            ours = token_losses(lm, prepare_prefixes(lm, prefixes), examples, owners).sum()
            our_grads = torch.autograd.grad(ours, leaves, allow_unused=True)
            total = torch.zeros((), dtype=lm.dtype)
            for row, owner in zip(examples, owners, strict=True):
                logits = oracle(checks.oracle.logits, prefixes[owner], list(row.ids))
                mask = torch.tensor(row.mask[1:])
                total = total + cross_entropy(logits[:-1][mask], torch.tensor(row.ids)[1:][mask], reduction="sum")
            wanted = torch.autograd.grad(total, leaves, allow_unused=True)
            worst = abs((ours - total).item()) / max(1.0, abs(total.item()))
            for mine, theirs, leaf in zip(our_grads, wanted, leaves, strict=True):
                mine = torch.zeros_like(leaf) if mine is None else mine  # layers that a model runs without gradient
                theirs = torch.zeros_like(leaf) if theirs is None else theirs
                worst = max(worst, ((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)).item())
            return worst

        return self.said(one(self), lambda: one(self.doubled()))

    def gen(self) -> str:

        lm, bad, forms = self.lm, [], ["embedding"]
        forms += ["kv"] if self.takes_kv() else []
        prefixes = [Prefix(random_prompt(lm, "embedding", 8, 1), (3, 9), (20, 21))]
        prefixes += [
            Prefix(random_prompt(lm, f, 6, 4), (), (30,)) for f in (["kv"] if "kv" in forms else ["embedding"])
        ]
        rows = [text_ids(n, 70 + n) for n in (3, 11, 7)]
        sampling = Sampling(max_new_tokens=NEW)
        with torch.no_grad():
            for owners in ([0, 1, 0], [0, 0, 0], [1, 1, 1]):
                own = sorted(set(owners))
                numbers = [own.index(o) for o in owners]
                ours = decode_batch(
                    lm, prepare_prefixes(lm, [prefixes[o] for o in own]), rows, numbers, sampling, end_ids=[[2]] * 3
                )
                for i, (row, owner) in enumerate(zip(rows, owners, strict=True)):
                    wanted = oracle(self.oracle.greedy, prefixes[owner], row, NEW)
                    if ours[i].ids != wanted:
                        at = next((j for j, (a, b) in enumerate(zip(ours[i].ids, wanted)) if a != b), -1)
                        bad.append(f"{owners} row {i} ({prefixes[owner].prompt.form}) from token {at}")
        return "OFF " + "; ".join(bad[:3]) if bad else f"ok ({'+'.join(forms)})"

    def train(self) -> str:

        data = self.folder / "rows.jsonl"
        rows = [
            {"text": f"row {i} says {'good' if i % 2 else 'bad'}", "label": "yes" if i % 2 else "no"} for i in range(60)
        ]
        data.write_text("\n".join(json.dumps(row) for row in rows))
        before, told = weights(self.lm), []
        for method, init in (("prompt-tuning", "text"), ("prefix-tuning", "auto")):
            if method == "prefix-tuning" and not self.takes_kv():
                continue
            flags = {
                "model": str(self.folder), "data": str(data), "name": method, "method.name": method, "train.steps": 3,
                "train.batch_size": 4, "method.n_tokens": 6, "dtype": "float32", "chat": False, "template": "{text}\n",
                "train.eval_rows": 8,
            }  # fmt: skip
            if init != "auto":
                flags["method.init"] = init
            elif not self.lm.is_encoder_decoder:
                flags["method.text_tokens"] = 128
            os.environ["SOFTPROMPT_HOME"] = str(self.folder / "prompts")
            outcome = softprompt.fit(softprompt.prepare(softprompt.resolve(flags)), self.lm)
            assert outcome.result.step == 3, outcome.result
            init = outcome.card.config.get("init") if hasattr(outcome.card, "config") else None
            told.append(f"{method} {outcome.result.validation_loss:.2f}")
        if weights(self.lm) != before:
            return "OFF the frozen model changed"
        return "ok " + ", ".join(told)

    def move(self) -> str:

        if not self.takes_kv():
            return "-"
        shift_positions(self.lm, random_prompt(self.lm, "kv", 4, 6), [3] * 4)
        return "ok"

    def serve(self) -> str:
        return asyncio.run(asyncio.wait_for(self._serve(), 90))

    async def _serve(self) -> str:

        lm = self.lm
        engine = TransformersEngine(lm, Capacity(rows=16, batch_tokens=48, cache_tokens=2048))
        await engine.start()
        try:
            prefixes = {
                "a": Prefix(random_prompt(lm, "embedding", 8, 1), (3, 9), (20, 21)),
                "b": Prefix(random_prompt(lm, "kv", 6, 4), (), (30,)),
            }
            for name, prefix in prefixes.items():
                await engine.load(name, prefix)
            rows = [text_ids(1 + 5 * i % 17, i) for i in range(6)]
            names = ["a", "b", None] * 2

            async def answer(i: int) -> list[int]:
                job = Job(str(i), names[i], tuple(rows[i]), Sampling(NEW), frozenset([2]))
                return [token.id async for token in engine.stream(job) if token.finish != "stop"]

            answers = await asyncio.gather(*(answer(i) for i in range(6)))
            with torch.no_grad():
                for i, ours in enumerate(answers):
                    prefix = prefixes.get(names[i], Prefix())
                    (wanted,) = decode_batch(
                        lm, prepare_prefixes(lm, [prefix]), [rows[i]], [0], Sampling(NEW), end_ids=[[2]]
                    )
                    if wanted.ids != ours:
                        return f"OFF row {i} ({names[i]})"
        finally:
            await engine.stop()
        return "ok"
