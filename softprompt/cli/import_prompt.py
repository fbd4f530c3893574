"""`softprompt import`: soft prompts of other tools."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, BaseAdapter, Device, DeviceSplit, Dtype, LoadIn, Model, TrustRemoteCode
from softprompt.errors import ConfigError, DataError, StoreError
from softprompt.settings import unescaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from softprompt.data.template import Template
    from softprompt.interchange.base import ImportedPrompt
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.prompts.card import Card


def import_command(
    path: Annotated[
        Path, typer.Argument(help="Folder of a PEFT adapter, or a .safetensors, .pt, .npy, .nemo or .zip file.")
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the soft prompt.")],
    model: Model = None,
    base_adapter: BaseAdapter = None,
    template: Annotated[str | None, typer.Option(help=r"Row to text, e.g. 'Review: {text}\nSentiment:'.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Whether the text after the virtual tokens begins with BOS.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only this task of a file with several.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Import it although the file names another base.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace soft prompts of that name.")] = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Import a soft prompt that another tool made: PEFT, Google prompt-tuning, NeMo, Cartridges, KoboldAI, or a tensor.

    softprompt import my-adapter --model smollm2-135m --name tone

    softprompt import prompts.nemo --model OWNER/NAME --name support --task billing

    softprompt import prompt.safetensors --model OWNER/NAME --name tone

    A file with several tasks becomes NAME.TASK for each, unless --task picks one. Nothing in the file is run: a
    pickle that does more than hold tensors is refused. A prompt of another base model is refused, unless --force says
    that it is the same model under another name. The text is fed as the other tool feeds it: virtual tokens
    first, then BOS if the tokenizer adds one, then the template, by default the text alone.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.interchange.import_card import import_card
    from softprompt.interchange.registry import detect_format, read_foreign
    from softprompt.prompts import store
    from softprompt.prompts.forms import size_of
    from softprompt.prompts.model_card import model_card

    store.check_free(store.locate(name), overwrite)
    kind = detect_format(path)
    if model is None:
        raise ConfigError("which base model is this soft prompt for", where="--model", hint="--model OWNER/NAME")
    lm = load_base(model, [], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    chosen = _template(lm, template, chat)
    prompts = _by_name(read_foreign(path, lm.geometry), name, task, path)
    cards = {
        key: import_card(lm, imported, Path(key).name, template=chosen, bos=bos, force=force)
        for key, imported in prompts.items()
    }
    for key in prompts:
        store.check_free(store.locate(key), overwrite)
    for key, imported in prompts.items():
        size = size_of(imported.prompt)
        readme = model_card(cards[key], bytes_on_disk=size, curve=None)
        card = store.save(key, imported.prompt, cards[key], readme=readme, overwrite=overwrite)
        _report(key, kind, imported, card, as_json)


def _by_name(imported: list[ImportedPrompt], name: str, task: str | None, path: Path) -> dict[str, ImportedPrompt]:
    """The prompts to keep, by the names they get: NAME, or NAME.TASK if there are several.

    Raises:
        ConfigError: a task that the file does not have.
        StoreError: two tasks whose names become one.
    """
    tasks = [prompt.task for prompt in imported]
    if task is not None:
        picked = [prompt for prompt in imported if prompt.task == task]
        if not picked:
            have = ", ".join(filter(None, tasks[:20])) or "a file with one prompt, without --task"
            raise ConfigError(f"no task {task!r} in the file", where=path, expected=have)
        return {name: picked[0]}
    if len(imported) == 1:
        return {name: imported[0]}
    named = {f"{name}.{re.sub('[^a-z0-9._-]+', '-', prompt.task.lower())}": prompt for prompt in imported}
    if len(named) < len(imported):
        raise StoreError("two tasks would get one name", where=path, got=", ".join(tasks), hint="--task picks one")
    return named


def _template(lm: FrozenLM, text: str | None, chat: bool) -> Template | None:
    """The user's template, or None to leave the choice to the file."""
    from softprompt.data.template import Template
    from softprompt.data.tokenizer import has_chat_template

    if chat and not has_chat_template(lm.tokenizer):
        raise DataError("--chat needs a chat template, and the tokenizer has no chat template", hint="leave --chat out")
    if text is None and not chat:
        return None
    return Template("chat" if chat else "text", "{text}" if text is None else unescaped(text))


def _template_words(template: Mapping[str, object]) -> str:
    """How a row is written: the template's text, and whether the base model's chat template is around it."""
    text = json.dumps(template.get("text", "{text}"), ensure_ascii=False)
    return text if template.get("kind") == "text" else f"{text} in the model's chat template"


def _report(name: str, kind: str, imported: ImportedPrompt, card: Card, as_json: bool) -> None:
    if as_json:
        rows = {"name": name, "format": kind, "form": card.form, "n_tokens": card.n_tokens}
        typer.echo(json.dumps(rows | {"method": card.method, "layout": card.layout.model_dump()}))
        return
    made_for = f"\n  made for    {imported.made_for[:100]}, as the file says" if imported.made_for else ""
    bos = "BOS, then " if card.layout.follow_bos else ""
    method = card.method["name"]
    text = (
        f"{name}: {card.form} prompt, {card.n_tokens} virtual tokens, from {kind} ({method}){made_for}"
        f"\n  text        virtual tokens, then {bos}{_template_words(card.template)}"
        f'\n  next        softprompt generate {name} --model {card.geometry.base} "your text"'
    )
    Console(soft_wrap=True).print(Text(escaped(text)))
