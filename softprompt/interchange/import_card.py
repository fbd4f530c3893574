"""The card of an imported prompt, checked against the base model."""

from __future__ import annotations

from softprompt.data.template import Template, bos_ids, head
from softprompt.interchange.base import ImportedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import check_fits

_PLAIN = Template("text", "{text}")


def import_card(
    lm: FrozenLM, imported: ImportedPrompt, name: str, *, template: Template | None = None, bos: bool | None = None
) -> Card:
    """The card of a foreign prompt.

    Foreign tools put the virtual tokens first and then the tokenized text, so a BOS that the tokenizer adds comes after
    the virtual tokens.

    Args:
        template: how records become text; None takes the template of softprompt's own export, or the bare text.
        bos: whether the text begins with BOS; None takes the value of that export, or follows the tokenizer.

    Raises GeometryError if the prompt does not fit the base model.
    """
    check_fits(imported.prompt, lm.geometry)
    chosen = template or (imported.layout.template if imported.layout else _PLAIN)
    if bos is None:
        bos = imported.layout.bos if imported.layout else True
    return Card.draft(
        name,
        imported.prompt,
        lm.geometry,
        layout=Layout(follow_bos=bos and bool(bos_ids(lm.tokenizer)), follow=head(chosen, lm.tokenizer)),
        template=chosen.to_dict(),
        labels=imported.layout.labels if imported.layout else (),
        method=imported.method,
    )
