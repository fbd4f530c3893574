"""Settings that every method has. A method's own settings are a subclass, in the method's module.

    class ToyConfig(MethodConfig):
        width: int = Field(default=64, ge=1, description="width of the network")

`softprompt.methods.registry` finds the subclass by `name`, the section's first field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from softprompt.settings import Section, flag, split_names

Init = Literal["text", "selected", "labels", "vocab", "uniform", "normal", "demonstrations", "prompt", "best"]
Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(split_names)]

# Settings that several methods have.
FrozenTokens = Annotated[int, Field(ge=0, description="first tokens of a KV prompt that are not trained")]
Sites = Annotated[
    str | None, Field(description="where a KV prompt acts in an encoder-decoder, of encoder,decoder,cross")
]
Hidden = Annotated[int, Field(ge=1, description="width of the network that reparameterizes the prompt")]


class MethodConfig(Section):
    """The method that is trained, and the initialization of its virtual tokens."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "name": {"mixture": "attempt"},
        "init": {"attended": "selected"},
    }
    _foreign: dict[str, object] = PrivateAttr(default_factory=dict)

    name: str = Field(
        default="prefix-tuning",
        description="how the prompt is parameterized",
        json_schema_extra=flag(
            "--method", help="prefix-tuning, prompt-tuning, … (softprompt train --print-config lists them)."
        ),
    )
    n_tokens: int = Field(
        default=32,
        ge=1,
        le=8192,
        description="virtual tokens",
        json_schema_extra=flag("--n-tokens", help="Virtual tokens."),
    )
    init: Init = Field(
        default="text",
        description="initialization of the virtual tokens; selected: the tokens of a long text that receive most "
        "attention; best: the best of text, labels, vocab and demonstrations on validation rows",
        json_schema_extra=flag(
            "--init", help="Where they start: text, selected, demonstrations, labels, vocab, uniform, prompt, best."
        ),
    )
    text_tokens: int = Field(
        default=1024,
        ge=1,
        description="with init selected and no init_text: tokens of demonstrations to select from, at most half a "
        "context",
    )
    init_text: str | None = Field(
        default=None,
        description="the text to start from; made from the task by default",
        json_schema_extra=flag("--init-text", help="The text to start from."),
    )
    init_from: str | None = Field(
        default=None,
        description="the soft prompt to start from, with init prompt",
        json_schema_extra=flag("--init-from", help="The soft prompt to start from."),
    )
    teachers: Names = Field(
        default=(), description="soft prompts of the tasks, one for each, that training is distilled from"
    )
    kept: Numbers = Field(
        default=(), description="start from these virtual tokens of the initialization only (rewinding after prune)"
    )

    @classmethod
    def variants(cls) -> dict[str, type[Section]]:
        """The settings class of every method by name."""
        from softprompt.methods.registry import method_specs  # it imports this module

        return {name: spec.settings for name, spec in method_specs().items()}

    def prompt_names(self) -> tuple[str, ...]:
        """Saved soft prompts that the settings name; they are loaded before the method is built."""
        start = (self.init_from,) if self.init_from else ()
        return (*start, *self.teachers)

    def foreign(self) -> dict[str, object]:
        """Settings of other methods that were set, as 0.1 allowed; they have no effect."""
        return dict(self._foreign)

    def ignored(self) -> dict[str, object]:
        """As `foreign`, without those at the default that 0.1 had; `to_yaml` writes them."""
        from softprompt.methods.legacy import not_default

        return not_default(self._foreign)

    def with_foreign(self, values: Mapping[str, object]) -> MethodConfig:
        """A copy that remembers settings of other methods."""
        copy = self.model_copy()
        copy._foreign = dict(values)
        return copy
