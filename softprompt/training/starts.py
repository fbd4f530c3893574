"""The untrained start of a soft prompt, kept beside the run's log: the control of everything `inspect` reads.

.runs/NAME/starts/trials/…              while it trains: of each prompt of each trial
.runs/NAME/starts/NAME.safetensors      afterwards, with the digest of the prompt that came of it
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.files import read_tensors, writing
from softprompt.prompts.base import Shape, SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import form_class
from softprompt.training.prepare import RUNS

_FOLDER = "starts"
_TRIALS = "trials"
_BECAME = "prompt_sha256"  # metadata: digest of the trained prompt


class Starts:
    """The starts in a run's folder."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / _FOLDER

    def write(self, trials: Mapping[str, Sequence[SoftPrompt]]) -> None:
        """Write the prompts of every trial, by its name, before their first step."""
        with writing(self.run):
            (self.folder / _TRIALS).mkdir(parents=True, exist_ok=True)
            for trial, prompts in trials.items():
                for number, prompt in enumerate(prompts):
                    save_file(_plain(prompt.tensors()), self._path(trial, number), metadata={"format": "pt"})

    def of_trial(self, trial: str, number: int = 0) -> dict[str, Tensor] | None:
        """The tensors of a trial's start; None for a run of softprompt 0.1."""
        path = self._path(trial, number)
        return read_tensors(path) if path.exists() else None

    def keep(self, trial: str, number: int, card: Card) -> None:
        """Note which saved soft prompt came of the start of this trial; does nothing if that was not written."""
        tensors = self.of_trial(trial, number)
        if tensors is not None:
            with writing(self.run):
                metadata = {"format": "pt", _BECAME: card.sha256}
                save_file(tensors, self.folder / f"{card.name}.safetensors", metadata=metadata)

    def forget_trials(self) -> None:
        """Remove the starts of all trials, once the soft prompts are saved."""
        shutil.rmtree(self.folder / _TRIALS, ignore_errors=True)

    def _path(self, trial: str, number: int) -> Path:
        digest = hashlib.sha256(trial.encode()).hexdigest()[:16]  # a trial's name may hold any character
        return self.folder / _TRIALS / f"{digest}.{number}.safetensors"


def find_start(folder: Path, card: Card) -> SoftPrompt | None:
    """The start of the soft prompt in this folder; None if its run was on another machine, or is gone."""
    for path in (folder.parent / RUNS).glob(f"*/{_FOLDER}/{folder.name}.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                became = (file.metadata() or {}).get(_BECAME)
            if became == card.sha256:
                return _read(path, card)
        except (OSError, SafetensorError, StoreError):  # a damaged copy is as none: it is a control, not the prompt
            continue
    return None


def _read(path: Path, card: Card) -> SoftPrompt:
    form = form_class(card.form)

    def check(header: Mapping[str, tuple[Shape, str]]) -> None:
        stored = {name: shape for name, (shape, _) in header.items()}
        shapes = form.expected_shapes(card.geometry, card.n_tokens, stored)
        if stored != shapes:
            raise StoreError("the start has other shapes than the soft prompt", where=path)

    return form.from_tensors(read_tensors(path, check), card.geometry)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
