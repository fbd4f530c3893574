"""Soft prompts for a `SoftPromptModel`: a saved one, one that is trained on, or a new one by a training method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.data.template import Template, bos_ids
from softprompt.data.tokenizer import has_chat_template
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.chat_template import pinned_chat_template
from softprompt.formatting.formatted_prompt import layout_for, layout_ids, opening_ids
from softprompt.methods.base import Method, MethodContext, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.registry import build_method, method_settings, method_spec
from softprompt.modeling.backbone import Placement
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model, load_tokenizer
from softprompt.models.placement import DeviceMap
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits, form_class

_NEED_ROWS = ("selected", "demonstrations", "best")  # initializations that are made of a task's rows


@final
class FixedPrompt(Method):
    """A finished soft prompt in the place of a method: nothing of it is trained."""

    def __init__(self, prompt: SoftPrompt) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self) -> tuple[SoftPrompt]:
        return (self.prompt,)


@dataclass(frozen=True, eq=False)
class ModelPrompt:
    """A soft prompt, in training or finished, with all that its artifact says of it.

    Attributes:
        card: of the artifact; not saved yet for a prompt in training.
    """

    method: Method
    card: Card


def open_base(
    base: str | PreTrainedModel | FrozenLM,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    device: str = "auto",
    load_in: str | None = None,
    device_map: str | DeviceMap | None = None,
    trust_remote_code: bool = False,
) -> FrozenLM:
    """The base model, loaded by name or as it is.

    Args:
        tokenizer: of a model that is loaded already; by default that of its name.
        dtype, device, load_in, device_map, trust_remote_code: as in `load_model`, for a name.

    Raises:
        ModelError: it or its tokenizer cannot be loaded.
        UnsupportedModelError: an encoder–decoder.
    """
    if isinstance(base, str):
        lm = load_model(
            base,
            dtype=dtype,
            device=device,
            load_in=load_in,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    elif isinstance(base, FrozenLM):
        lm = base
    else:
        name = base.name_or_path or base.config.model_type
        lm = FrozenLM(base, tokenizer or load_tokenizer(name), name)
    if lm.is_encoder_decoder:
        hint = "softprompt train, and softprompt.fit in Python, train encoder-decoders"
        raise UnsupportedModelError("SoftPromptModel is for causal models", where=lm.name, hint=hint)
    return lm


def load_prompt(lm: FrozenLM, name: str | Path, *, is_trainable: bool) -> ModelPrompt:
    """A saved soft prompt.

    Args:
        name: as for `store.find`, or a folder.
        is_trainable: train it on; a form of another kind than the two plain ones becomes one of these.

    Raises:
        StoreError: missing, damaged or altered.
        WrongBaseError: made for another base model.
    """
    prompt, card = store.load(_folder(name), lm.geometry)
    if not is_trainable:
        return ModelPrompt(FixedPrompt(prompt), card)
    name_of_method = "prompt-tuning" if prompt.input_embeddings() is not None else "prefix-tuning"
    method = build_method(name_of_method, lm, Start(prompt.n_tokens, init="prompt", prompt=prompt))
    data = {"trained_on": card.trained_on} if card.trained_on else {}
    about: dict[str, object] = {"name": name_of_method, "n_tokens": prompt.n_tokens, "init": "prompt"}
    about |= {"init_from": card.name, "init_sha256": card.sha256}
    template = Template.from_dict(card.template)
    (live,) = method.freeze()
    draft = Card.draft(
        card.name,
        live,
        lm.geometry,
        layout=card.layout,
        template=template.to_dict(),
        chat_template=card.chat_template,
        labels=card.labels,
        method=about,
        data=data,
        license=card.license,
    )
    return ModelPrompt(method, draft)


def new_prompt(
    lm: FrozenLM,
    method: str | Mapping[str, object] | MethodConfig,
    *,
    template: str | Template | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> ModelPrompt:
    """A soft prompt at its start, to be trained.

    Args:
        method: a method's name, or its settings as in the section `method` of `softprompt train`.
        template: how the texts are written that it is trained on; the card tells it `softprompt generate`. By default
            the model's chat template, or bare text for a model without one.
        labels: class labels, which init "labels" starts from.

    Raises:
        ConfigError: settings that do not exist or do not fit, or a method that trains several prompts.
        StoreError, WrongBaseError: a soft prompt that the settings name cannot be used.
    """
    settings = _settings(method)
    template = _template(lm, template)
    loaded = {name: store.load(_folder(name), lm.geometry)[0] for name in settings.prompt_names()}
    start = _start(lm, settings, template, labels, loaded, seed)
    built = build_method(settings.name, lm, start, MethodContext(settings, loaded))
    prompts = built.freeze()
    if len(prompts) != 1:
        what, hint = "this method trains several prompts at once, a model holds one", "softprompt train can train it"
        raise ConfigError(what, where="method.name", got=settings.name, hint=hint)
    check_fits(prompts[0], lm.geometry)
    layout = layout_for(lm, template, prompts[0].form)
    about = settings.model_dump(mode="json") | {"init": start.init}
    draft = Card.draft(
        "soft-prompt",
        prompts[0],
        lm.geometry,
        layout=layout,
        template=template.to_dict(),
        chat_template=pinned_chat_template(template, lm.tokenizer),
        labels=tuple(labels),
        method=about,
    )
    return ModelPrompt(built, draft)


def placement_of(lm: FrozenLM, card: Card) -> Placement:
    """Where the virtual tokens of this artifact stand in a caller's texts."""
    lead, _ = layout_ids(lm, card.layout)
    opening = lead
    if form_class(card.form).begins_the_sequence and not card.layout.follow_bos:
        opening = tuple(opening_ids(lm, Template.from_dict(card.template)))
    return Placement(lead, opening, required=len(opening) > len(bos_ids(lm.tokenizer)))


def _folder(name: str | Path) -> str | Path:
    """A name for `store.find`, or the folder of that name here that holds an artifact."""
    here = Path(name)
    is_saved = store.PROMPT_NAME.fullmatch(str(name)) is not None and (store.home() / name).is_dir()
    return here if isinstance(name, Path) or ((here / store.CARD).is_file() and not is_saved) else name


def _start(
    lm: FrozenLM,
    settings: MethodConfig,
    template: Template,
    labels: Sequence[str],
    prompts: Mapping[str, SoftPrompt],
    seed: int,
) -> Start:
    """Where the virtual tokens start; keys and values begin with what opens a text."""
    trains_kv = method_spec(settings.name).trains_kv
    return Start(
        settings.n_tokens,
        init="vocab" if settings.init == "text" and not settings.init_text else settings.init,
        text=tuple(lm.encode(settings.init_text or "")),
        labels=tuple(tuple(lm.encode(label)) for label in labels),
        prompt=prompts.get(settings.init_from or ""),
        lead=tuple(opening_ids(lm, template)) if trains_kv else (),
        seed=seed,
    )


def _template(lm: FrozenLM, template: str | Template | None) -> Template:
    if isinstance(template, Template):
        return template
    if template is not None:
        return Template("text", template)
    return Template("chat") if has_chat_template(lm.tokenizer) else Template("text", "{text}")


def _settings(method: str | Mapping[str, object] | MethodConfig) -> MethodConfig:
    """The settings, of which none needs a task's rows. Raises ConfigError."""
    values: Mapping[str, object] = {"name": method} if isinstance(method, str) else {}
    if isinstance(method, Mapping):
        values = method
    if isinstance(method, MethodConfig):
        values = method.model_dump(exclude_unset=True) | {"name": method.name}
    try:
        settings = method_settings(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["method", *(str(part) for part in first["loc"])])
        raise ConfigError(first["msg"], where=where, got=first.get("input")) from error
    if settings.init in _NEED_ROWS:
        what, hint = "this initialization is made of training rows, which a model has not", "init text with init_text"
        raise ConfigError(what, where="method.init", got=settings.init, hint=hint)
    return settings
