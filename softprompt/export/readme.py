"""The README.md of an exported soft prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softprompt.prompts.card import Card
from softprompt.prompts.model_card import public_name


def export_readme(card: Card, command: str, usage: str, notes: Sequence[str]) -> str:
    """Markdown: the command, how texts are written, and the limits.

    Args:
        command: shell or Python lines that run it.
        usage: what follows them.
        notes: a sentence each.
    """
    base = public_name(card.geometry.base)
    language = "python" if command.startswith(("import ", "from ")) else "sh"
    template = json.dumps(card.template, ensure_ascii=False)
    parts = [
        f"# {card.name}",
        f"A soft prompt of {card.n_tokens} virtual tokens ({card.form}) for the frozen model `{base}`, exported by "
        "softprompt.",
        f"```{language}\n{command}\n```",
        usage,
        "\n".join(f"- {note}" for note in notes),
        f"Rows were written in training as:\n\n```json\n{template}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
