"""Writes the README.md of an artifact, a Hugging Face model card: the short one of its folder, and that of the Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml

from softprompt.models.sources import PUBLISHED_AS
from softprompt.prompts.card import Card
from softprompt.prompts.forms import form_class

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TASK = {"type": "text-generation", "name": "Text generation"}


def model_card(card: Card, *, bytes_on_disk: int, curve: str | None) -> str:
    """The model card: Markdown with a YAML header.

    Args:
        bytes_on_disk: size of the tensors.
        curve: file name of the plot of the learning curve in the same folder, or None.
    """
    geometry = card.geometry
    base = public_name(geometry.base)
    header = {
        "base_model": base,
        "library_name": "softprompt",
        "tags": ["softprompt", "soft-prompt", str(card.method.get("name", card.form))],
    }
    if card.license:
        header["license"] = card.license
    quantized = f" In training its weights were quantized ({geometry.quantization})." if geometry.quantization else ""
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in card.metrics.items() if isinstance(value, float))
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {card.name}",
        f"A soft prompt: {card.n_tokens} virtual tokens ({card.form} form, {bytes_on_disk / 1024:,.0f} KiB) for the "
        f"frozen model `{base}` (fingerprint `{geometry.fingerprint}`). The base model itself is not in here."
        f"{quantized}",
        f'```\nsoftprompt generate {card.name} --model {base} "your text"\n```',
        "| result | value |\n|---|---|\n" + metrics if metrics else "",
        f"![learning curve]({curve})" if curve else "",
        f"Method: {card.method.get('name', 'unknown')}. {_objective(card)}"
        f"Training rows: {card.data.get('train_rows', 'unknown')}. "
        "A soft prompt is derived from its training data: treat it with the same care.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _objective(card: Card) -> str:
    """The objective as a sentence, such as "Objective: dpo (beta 0.1, reference start). "; "" for next tokens."""
    objective = card.recipe.get("objective")
    if not isinstance(objective, dict):
        return ""
    settings = cast("dict[str, object]", objective)
    kept = ("beta", "reference", "label_smoothing", "sft_weight")
    kept += ("reward", "group_size", "temperature", "max_new_tokens")
    shown = ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in kept if name in settings)
    return f"Objective: {settings.get('name')} ({shown}). "


def public_name(base: str) -> str:
    """A base model's name without paths of this machine: the last part of a local path, and of its adapter's."""
    if "+" in base and not Path(base).exists():
        return "+".join(public_name(part) for part in base.split("+", 1))
    is_path = base.startswith((".", "~")) or Path(base).is_absolute() or base.count("/") > 1
    return Path(base).name if is_path else base


def hub_model_card(card: Card, repo: str, *, bytes_on_disk: int, pictures: Sequence[str] = ()) -> str:
    """The model card of a repository on the Hub: `model_card` with the Hub's metadata, and how to use it in engines.

    Args:
        repo: owner/name.
        bytes_on_disk: size of the tensors.
        pictures: file names of pictures in the repository.
    """
    geometry = card.geometry
    base = hub_base(geometry.base)
    header: dict[str, object] = {"library_name": "softprompt", "pipeline_tag": "text-generation"}
    if _HUB_ID.fullmatch(base):
        header |= {"base_model": base, "base_model_relation": "adapter"}
    method = str(card.method.get("name", card.form))
    header["tags"] = ["softprompt", "soft-prompt", method]
    if card.license:
        header["license"] = card.license
    scores = dict(_numbers(card.metrics))
    if scores:
        header["model-index"] = [{"name": repo.split("/")[-1], "results": [_results(scores)]}]
    quantized = f" In training its weights were quantized ({geometry.quantization})." if geometry.quantization else ""
    table = "\n".join(f"| {name} | {value:.6g} |" for name, value in scores.items())
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {repo.split('/')[-1]}",
        f"A soft prompt: {card.n_tokens} virtual tokens ({card.form} form, {bytes_on_disk / 1024:,.0f} KiB) for the "
        f"frozen model `{base}` (fingerprint `{geometry.fingerprint}`). The base model itself is not in here."
        f"{quantized}",
        *_uses(card, repo, base),
        "## Results\n\nAs its card has them, of training and of rows held out from it." if scores else "",
        "| result | value |\n|---|---|\n" + table if scores else "",
        *(f"![{Path(name).stem}]({name})" for name in pictures),
        f"Method: {method}. {_objective(card)}Training rows: {card.data.get('train_rows', 'unknown')}. "
        "A soft prompt is derived from its training data: treat it with the same care.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def loadable_name(base: str) -> str:
    """The name by which other tools load the base model: on the Hub where it has one, without paths of this machine."""
    return PUBLISHED_AS.get(base, public_name(base))


def hub_base(base: str) -> str:
    """As `loadable_name`, without the adapter that is merged into the base model."""
    return loadable_name(public_name(base).split("+")[0])


def _results(scores: Mapping[str, float]) -> dict[str, object]:
    """The scores as one result of the metadata's `model-index`."""
    dataset = {"name": "rows held out in training", "type": "custom"}
    metrics = [{"type": name, "value": value, "name": name.replace("_", " ")} for name, value in scores.items()]
    return {"task": _TASK, "dataset": dataset, "metrics": metrics}


def _numbers(metrics: Mapping[str, object], before: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers of the card's metrics; those of a group are named group.name."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _numbers(cast("dict[str, object]", value), f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{before}{name}", value


def _uses(card: Card, repo: str, base: str) -> list[str]:
    """How to use it: in softprompt itself, and the exports that its form allows."""
    name, model = repo.split("/")[-1].lower(), f" --model {base}"
    lines = [
        "## Use",
        f'```sh\npip install softprompt\nsoftprompt generate {repo}{model} "your text"\n'
        f"softprompt serve --prompt {name}={repo}{model}\n```",
        f'```python\nimport softprompt\n\nlm = softprompt.load_model("{base}")\n'
        f'prompts = softprompt.load_prompts(lm, ["{repo}"])\n'
        f'print(softprompt.generate(lm, prompts, [softprompt.Request("your text", "{repo}")], softprompt.Sampling()))\n'
        "```",
    ]
    rows = [
        f"| {engine} | `softprompt export {repo} --to {to}{model} --out {name}-{to}{more}` |"
        for engine, to, more in _targets(card)
    ]
    if rows:
        lines.append("Other engines run a file that is made from it; the README.md beside that file has the command:")
        lines.append("| engine | file |\n|---|---|\n" + "\n".join(rows))
    return lines


def _targets(card: Card) -> list[tuple[str, str, str]]:
    """(engine, target of `softprompt export`, further options) of the engines that can run this form."""
    if card.geometry.sites or card.geometry.states:
        return []
    if form_class(card.form).begins_the_sequence:
        return [
            ("Transformers", "transformers", ""),
            ("vLLM", "vllm", ""),
            ("llama.cpp", "llama-slot", " --gguf MODEL.gguf"),
            ("mlx-lm", "mlx", ""),
        ]
    return [
        ("Transformers with PEFT", "lora", ""),
        ("vLLM, SGLang", "lora", ""),
        ("llama.cpp, Ollama", "gguf-lora", " --gguf MODEL.gguf"),
        ("mlx-lm", "mlx", ""),
    ]
