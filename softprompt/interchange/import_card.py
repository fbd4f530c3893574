"""The card of an imported prompt, checked against the base model."""

from __future__ import annotations

from dataclasses import replace

from softprompt.data.template import Template, answered_apart, bos_ids, head
from softprompt.data.tokenizer import chat_template_text
from softprompt.errors import GeometryError, WrongBaseError
from softprompt.interchange.base import ImportedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sources import may_be_one_model
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import check_fits, form_class

_PLAIN = Template("text", "{text}")


def import_card(
    lm: FrozenLM,
    imported: ImportedPrompt,
    name: str,
    *,
    template: Template | None = None,
    bos: bool | None = None,
    force: bool = False,
) -> Card:
    """The card of a foreign prompt.

    Foreign tools put the virtual tokens first and then the tokenized text, so a BOS that the tokenizer adds comes after
    the virtual tokens.

    Args:
        template: how records become text; None takes the template of softprompt's own export, or the bare text.
        bos: whether the text begins with BOS; None takes the value of that export, or follows the tokenizer.
        force: import it although the file names another base model.

    Raises:
        GeometryError: the prompt does not fit the base model.
        WrongBaseError: the file says that it was made for another one, or with another chat template.
        DataError: a chat template for an encoder–decoder.
    """
    check_fits(imported.prompt, lm.geometry)
    _check_room(lm, imported)
    check_embeds_alike(lm, imported.prompt, str(imported.method.get("imported_from", "")))
    if not force:
        _check_base(lm, imported)
    chosen = template or (imported.layout.template if imported.layout else _PLAIN)
    if lm.is_encoder_decoder:
        chosen = answered_apart(chosen)
    found = chat_template_text(lm.tokenizer)
    if chosen.chat_template not in ("", found):  # that of a stranger's file: never rendered
        what = "the soft prompt was exported with another chat template than the model's tokenizer has"
        raise WrongBaseError(what, where=name, hint="--template TEXT --chat imports it with the model's own")
    chosen = replace(chosen, chat_template="")
    if bos is None:
        bos = imported.layout.bos if imported.layout else True
    own = imported.layout.around if imported.layout and template is None else None
    layout = own or Layout(follow_bos=bos and bool(bos_ids(lm.tokenizer)), follow=head(chosen, lm.tokenizer))
    return Card.draft(
        name,
        imported.prompt,
        lm.geometry,
        layout=layout,
        template=chosen.to_dict(),
        chat_template=found if chosen.kind == "chat" else "",
        labels=imported.layout.labels if imported.layout else (),
        method=imported.method,
    )


def check_embeds_alike(lm: FrozenLM, prompt: SoftPrompt, format_name: str) -> None:
    """Raise GeometryError for PEFT's embedding prompts of a model that scales the embeddings it looks up (Pegasus).

    PEFT looks up the text's embeddings itself and passes them to the encoder, which scales ids alone: virtual tokens
    trained so expect an unscaled text, which the model was not trained on.
    """
    scale = lm.encoder_decoder.embedding_scale if lm.is_encoder_decoder else 1.0
    if format_name == "peft" and scale != 1.0 and not form_class(prompt.form).begins_the_sequence:
        raise GeometryError(
            "PEFT runs this model with another text before it than softprompt does",
            where=lm.name,
            got=f"{lm.geometry.architecture} scales embeddings by {scale:.3g}, PEFT does not",
            hint="keys and values of the decoder can be exchanged (--method prefix-tuning --method.sites decoder)",
        )


def _check_room(lm: FrozenLM, imported: ImportedPrompt) -> None:
    """Raise GeometryError for a table as long as the context, such as a model's own embeddings."""
    most = lm.geometry.max_positions
    if imported.prompt.n_tokens >= most:
        what, expected = "a soft prompt as long as the model's context", f"< {most} virtual tokens"
        raise GeometryError(what, where=lm.name, expected=expected, got=imported.prompt.n_tokens)


def _check_base(lm: FrozenLM, imported: ImportedPrompt) -> None:
    """Raise WrongBaseError for a prompt of another base model: by its weights if they are known, else by its name."""
    stored = imported.layout.base if imported.layout else None
    if stored is not None:
        reason = lm.geometry.differs(stored)
    else:
        same = imported.made_for in ("", lm.loaded_from) or may_be_one_model(imported.made_for, lm.name)
        reason = None if same else "the file names another"
    if reason is not None:
        made_for = imported.made_for[:100] or "another base model"
        raise WrongBaseError(
            "this soft prompt was made for another base model",
            where=lm.name,
            expected=made_for,
            got=f"{lm.name}: {reason}",
            hint=f"--model {made_for}, or --force if it is the same model under another name",
        )
