"""The real 135M model and soft prompts of both forms, for engines that cannot run a random two-layer model.

Results go to the folder $SOFTPROMPT_ENGINE_RESULTS, from which the table of docs/guides/engines.md is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from softprompt.data.template import Template
from softprompt.export.base import ExportOptions, ExportSource
from softprompt.export.check import CheckReport
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix, require_causal
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

TEXT = "You are a helpful assistant of a parcel service. Answer in one short and friendly sentence, and never promise."
N_TOKENS = 16

SourceOf = Callable[..., ExportSource]
Record = Callable[[str, str, str, CheckReport], None]


@pytest.fixture(scope="session")
def lm() -> FrozenLM:
    """SmolLM2-135M in float32."""
    return load_model("smollm2-135m", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def source_of(lm: FrozenLM) -> SourceOf:
    """Makes a soft prompt like a trained one, near a text but of no text, with a chat template or a plain one."""

    def make(
        form: str, *, seed: int = 0, chat: bool = False, options: ExportOptions | None = None, name: str = "tone"
    ) -> ExportSource:
        template = Template("chat", "{text}") if chat else Template("text", "Question: {text}\nAnswer:")
        prompt = near_text(lm, form, seed)
        card = Card.draft(
            name,
            prompt,
            lm.geometry,
            layout=layout_for(lm, template, form),
            template=template.to_dict(),
            method={"name": "prompt-tuning" if form == "embedding" else "prefix-tuning"},
        )
        return ExportSource(prompt, card, lambda: lm, options or ExportOptions())

    return make


@pytest.fixture(scope="session")
def record() -> Record:
    """Keeps the report of (target, form, weights) for the guide's table."""
    return keep_report


def keep_report(target: str, form: str, weights: str, report: CheckReport) -> None:
    folder = os.environ.get("SOFTPROMPT_ENGINE_RESULTS")
    if folder:
        facts = {"target": target, "form": form, "weights": weights, **asdict(report)}
        name = f"{target}-{form}-{weights}.json".replace("/", "-").replace(" ", "-")
        (Path(folder) / name).write_text(json.dumps(facts, indent=1) + "\n")


def near_text(lm: FrozenLM, form: str, seed: int) -> SoftPrompt:
    """The embeddings, or keys and values, of a text, with noise that no text has."""
    draw = torch.Generator().manual_seed(seed)
    embeddings = lm.embed(torch.tensor(lm.encode(TEXT)[:N_TOKENS])).detach()
    moved = EmbeddingPrompt(embeddings + 0.3 * embeddings.std() * torch.randn(embeddings.shape, generator=draw))
    if form == "embedding":
        return moved
    with torch.no_grad():
        layers = require_causal(prepare_prefixes(lm, [Prefix(moved)])).layers

    def noisy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0] + 0.05 * tensor.std() * torch.randn(tensor.shape[1:], generator=draw)

    return KVPrompt(tuple(None if kv is None else (noisy(kv[0]), noisy(kv[1])) for kv in layers))
