"""Writes the README.md of an artifact: a Hugging Face model card."""

from __future__ import annotations

from pathlib import Path

import yaml

from softprompt.prompts.card import Card


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
        f"Method: {card.method.get('name', 'unknown')}. Training rows: {card.data.get('train_rows', 'unknown')}. "
        "A soft prompt is derived from its training data: treat it with the same care.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def public_name(base: str) -> str:
    """A base model's name without paths of this machine: the last part of a local path, and of its adapter's."""
    if "+" in base and not Path(base).exists():
        return "+".join(public_name(part) for part in base.split("+", 1))
    is_path = base.startswith((".", "~")) or Path(base).is_absolute() or base.count("/") > 1
    return Path(base).name if is_path else base
