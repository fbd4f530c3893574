"""The README of an exported PEFT adapter: the text and the code with which PEFT sees what softprompt would have fed."""

from __future__ import annotations

import json
from collections.abc import Mapping

from softprompt.prompts.card import Card


def adapter_readme(card: Card, config: Mapping[str, object], n_lead: int) -> str:
    """Markdown.

    Args:
        config: of the adapter, as written in adapter_config.json.
        n_lead: how many of its first virtual tokens are tokens that stand before the prompt.
    """
    base, apart = str(config["base_model_name_or_path"]), bool(card.geometry.sites)
    lead = f"The first {n_lead} virtual tokens are the tokens that come before the prompt, such as BOS. "
    frame = json.dumps(card.template, ensure_ascii=False)
    lines = [
        f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [soft-prompt, softprompt]\n---",
        f"# {card.name}",
        f"A soft prompt of {config['num_virtual_tokens']} virtual tokens for the frozen model `{base}`, exported by "
        f"softprompt as a PEFT adapter of type {config['peft_type']}. {lead if n_lead else ''}",
        _encoder_decoder_use(card) if apart else _causal_use(card),
        f"The texts are rows laid out as in training:\n\n```json\n{frame}\n```",
        f"`softprompt import FOLDER --model MODEL --name {card.name}` reads it back.",
    ]
    if not apart:
        chat = (
            "With kind `chat` the text is the user's turn: render it with the chat template and its generation prompt, "
            "and take a BOS that the template writes away."
        )
        lines.insert(-1, chat)
    return "\n\n".join(lines) + "\n"


def _causal_use(card: Card) -> str:
    bos = card.layout.follow_bos
    return (
        "PEFT puts the virtual tokens in front of everything, so tokenise the text "
        + ("with" if bos else "without")
        + " the special tokens that the tokenizer adds, and pad on the right:\n\n"
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, FOLDER)\n"
        f'batch = tokenizer(texts, add_special_tokens={bos}, padding=True, return_tensors="pt")\n'
        "logits = model(**batch).logits\n```"
    )


def _encoder_decoder_use(card: Card) -> str:
    """Every text ends as its tokenizer ends it; a BOS before the text is written only after the virtual tokens."""
    if card.layout.follow_bos:
        what = "with the special tokens that the tokenizer adds"
        given = "texts, add_special_tokens=True"
    else:
        what = "with the end token that the tokenizer puts behind a text, and without a BOS"
        given = "[text + tokenizer.eos_token for text in texts], add_special_tokens=False"
    return (
        "The virtual tokens stand before the text (embeddings) or before the answer (keys and values). Tokenise the "
        f"text {what}, and pad on the right:\n\n"
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, FOLDER)\n"
        f'batch = tokenizer({given}, padding=True, return_tensors="pt")\n'
        "answers = model.generate(**batch)\n```"
    )
