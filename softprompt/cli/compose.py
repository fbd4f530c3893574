"""`softprompt compose`: a new soft prompt from saved ones."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import BaseAdapter, Device, DeviceSplit, Dtype, LoadIn, Model, TrustRemoteCode


def compose_command(
    expression: Annotated[str, typer.Argument(help='Such as "0.7*a + 0.3*b"; see above.')],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the result.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a soft prompt of that name.")] = False,
    template_of: Annotated[
        str | None, typer.Option(help="Whose template, layout and labels the result gets, where they differ.")
    ] = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make a soft prompt from saved ones of the same base model and form.

    "0.7*a + 0.3*b", "a - b"       weighted sum, token by token

    "average(a, b, c)"             mean, token by token

    "a | b"                        a's virtual tokens, then b's

    "resize(a, 16)"                fewer tokens (the first and the last ones), or more

    Names may hold - and ., so operators need a space on both sides. Parentheses group.

    The base model is loaded only to join or resize KV prompts, whose keys are rotated to their new positions.
    """
    from softprompt.editing.compose import check_sources, compose
    from softprompt.editing.expression import moves_tokens, parse_expression, prompt_names
    from softprompt.prompts import store
    from softprompt.prompts.forms import form_class, size_of
    from softprompt.prompts.model_card import model_card

    tree = parse_expression(expression)
    folder = store.locate(name)
    store.check_free(folder, overwrite)
    used = prompt_names(tree)
    cards = {source: store.load_card(store.find(source)) for source in used}
    check_sources(cards, template_of)
    lm = None
    if moves_tokens(tree) and form_class(cards[used[0]].form).begins_the_sequence:
        from softprompt.cli.base_model import load_base

        lm = load_base(model, used, dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    sources = {source: store.load(source, None if lm is None else lm.geometry) for source in used}
    prompt, card = compose(expression, sources, folder.name, lm=lm, template_of=template_of)
    size = size_of(prompt)
    card = store.save(
        folder, prompt, card, readme=model_card(card, bytes_on_disk=size, curve=None), overwrite=overwrite
    )
    console = Console(soft_wrap=True)
    console.print(
        Text(escaped(f"saved       {folder}  ({card.form}, {card.n_tokens} virtual tokens, {size / 1024:,.0f} KiB)"))
    )
    distilled = all("text_sha256" in card.data for card in cards.values())
    see = f"softprompt fidelity {name}" if distilled else f"softprompt eval {name} --data FILE"
    console.print(Text(escaped(f"next        {see}   (nothing was trained: measure it first)")))
