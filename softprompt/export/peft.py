"""`--to peft`: a PEFT adapter of a prompt-learning type, which `PeftModel.from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path

import torch

from softprompt.export.base import Exported, ExportSource, ExportTarget
from softprompt.export.registry import register_target
from softprompt.interchange import peft
from softprompt.interchange.import_card import check_embeds_alike

_NAME = "peft"


def _write(out: Path, source: ExportSource) -> Exported:
    prompt, card = source.prompt, source.card
    lead = torch.zeros(0, card.geometry.hidden)
    if card.layout.bos or card.layout.lead or card.geometry.sites:  # their embeddings are the base model's
        check_embeds_alike(source.lm, prompt, _NAME)
        lead = source.lm.embed(torch.tensor(source.around[0], dtype=torch.long))
    peft.write(out, prompt, card, lead)
    return Exported(out, f'model = PeftModel.from_pretrained(base_model, "{out}")')


register_target(ExportTarget(_NAME, "PEFT: an adapter of a prompt-learning type (both forms)", _write))
