"""A foreign prompt as an artifact of one's own: checked against the base model, in a frame, with a card."""

from __future__ import annotations

from softprompt.data.template import Template, bos_ids, head
from softprompt.interchange.base import ImportedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import check_fits

PLAIN = Template("text", "{text}")


def import_card(
    lm: FrozenLM, found: ImportedPrompt, name: str, *, template: Template | None = None, bos: bool | None = None
) -> Card:
    """The card to save a foreign prompt with.

    Foreign tools put the virtual tokens first and then the text as the tokenizer makes it, so a BOS that the
    tokenizer adds stands behind the virtual tokens.

    Args:
        template: how records become text; None takes the frame of softprompt's own export, or the bare text.
        bos: whether the text begins with BOS; None takes that frame, or what the tokenizer does.

    Raises GeometryError if the prompt does not fit the base model.
    """
    check_fits(found.prompt, lm.geometry)
    chosen = template or (found.frame.template if found.frame else PLAIN)
    if bos is None:
        bos = found.frame.bos if found.frame else True
    return Card.draft(
        name,
        found.prompt,
        lm.geometry,
        layout=Layout(follow_bos=bos and bool(bos_ids(lm.tokenizer)), follow=head(chosen, lm.tokenizer)),
        template=chosen.to_dict(),
        labels=found.frame.labels if found.frame else (),
        method=found.facts,
    )
