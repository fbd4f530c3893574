"""The files of `softprompt inspect`: a page with its numbers, pictures, and points for TensorBoard's projector."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from typer.core import TyperCommand

from softprompt.errors import StoreError
from softprompt.files import check_writable, write_file

if TYPE_CHECKING:  # for types alone: where Typer keeps its click is private to it
    from typer._click import Context

    from softprompt.prompts.base import SoftPrompt
    from softprompt.report.page import InspectedPrompt

DEFAULT_FILE = "."  # value of --html without a file
_PAGES = (".html", ".htm")
_LONGEST = 80  # characters of a file name made of prompts' names


class InspectCommand(TyperCommand):
    """A verb whose `--html` may stand alone: a word after it is its file only if it ends in .html."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """The arguments, with the default file for an `--html` that stands alone."""
        pairs = pairwise([*args, ""])
        is_alone = [arg == "--html" and not after.endswith(_PAGES) for arg, after in pairs]
        whole = [f"--html={DEFAULT_FILE}" if alone else arg for arg, alone in zip(args, is_alone, strict=True)]
        return super().parse_args(ctx, whole)


@dataclass(frozen=True)
class InspectFiles:
    """Where the files go.

    Args:
        html: the page's file, "." for the default one; None for no page.
        png: folder of the pictures.
        projector: folder of the points.
        overwrite: whether files that are there may be replaced.
    """

    html: str | None
    png: Path | None
    projector: Path | None
    overwrite: bool

    def page_file(self, names: Sequence[str]) -> Path | None:
        """The page's file: NAME.inspect.html in the working folder unless one is given."""
        if self.html is None:
            return None
        joined = "+".join(name.strip("/.").replace("/", "-") for name in names)
        joined = joined if len(joined) <= _LONGEST else f"{joined[:_LONGEST]}+"
        return Path(self.html if self.html != DEFAULT_FILE else f"{joined}.inspect.html")

    def check(self, names: Sequence[str]) -> None:
        """Find out before any model is loaded whether the files can be written.

        Raises StoreError if one is there already or a folder cannot be written in, MissingExtraError for pictures
        without matplotlib.
        """
        page = self.page_file(names)
        for path in (page, page and numbers_file(page)):
            if path is not None:
                self._check_free(path)
        if self.projector is not None:
            self._check_free(self.projector / "tensors.tsv")
        if self.png is not None:
            from softprompt.report.pictures import check_drawing

            check_drawing()
            check_writable(self.png)

    def write(self, prompts: Sequence[InspectedPrompt], soft_prompts: Sequence[SoftPrompt]) -> list[Path]:
        """Write everything that is wanted; the files and folders that were written.

        Args:
            soft_prompts: in the same order.
        """
        written: list[Path] = []
        if (page := self.page_file([prompt.name for prompt in prompts])) is not None:
            written += self._write_page(page, prompts)
        if self.png is not None:
            written += self._write_pictures(self.png, prompts)
        if self.projector is not None:
            from softprompt.report.projector import projector_files

            pairs = zip(prompts, soft_prompts, strict=True)
            entries = [(prompt.name, soft_prompt, prompt.inspection) for prompt, soft_prompt in pairs]
            for name, content in projector_files(entries).items():
                write_file(self.projector / name, content.encode(), overwrite=self.overwrite)
            written.append(self.projector)
        return written

    def _write_page(self, path: Path, prompts: Sequence[InspectedPrompt]) -> list[Path]:
        from softprompt.report.page import numbers, page

        beside = numbers_file(path)
        text = json.dumps(numbers(prompts), ensure_ascii=False, indent=1) + "\n"
        write_file(beside, text.encode(errors="backslashreplace"), overwrite=self.overwrite)
        write_file(path, page(prompts, beside.name).encode(), overwrite=self.overwrite)
        return [path, beside]

    def _write_pictures(self, folder: Path, prompts: Sequence[InspectedPrompt]) -> list[Path]:
        from softprompt.report.pictures import named_figures, png

        figures = named_figures(prompts)
        for name in figures:
            self._check_free(folder / name)
        for name, figure in figures.items():
            write_file(folder / name, png(figure), overwrite=self.overwrite)
        return [folder]

    def _check_free(self, path: Path) -> None:
        check_writable(path.parent)
        if os.path.lexists(path) and not self.overwrite:
            raise StoreError("already there, nothing was written", where=path, hint="another file, or --overwrite")


def numbers_file(page: Path) -> Path:
    """The file with all numbers beside a page."""
    return page.with_suffix(".json")


def labels_of_names(names: Sequence[str], card_names: Sequence[str]) -> list[str]:
    """What each soft prompt is called: as its card says, or as it was typed where two cards say the same."""
    pairs = zip(names, card_names, strict=True)
    return [name if card_names.count(card_name) > 1 else card_name for name, card_name in pairs]
