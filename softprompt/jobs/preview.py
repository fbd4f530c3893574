"""What a job would do with a file, before there is a job: rows with the learned tokens, and what `auto` would choose.

The checks of the job itself run here on the file, or on its first rows if it is long. No weights are loaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from softprompt.data.objective_rows import encode_pairs
from softprompt.data.parsing import parse_rows
from softprompt.data.read_options import ReadOptions
from softprompt.data.readers import read_rows
from softprompt.data.template import head
from softprompt.data.tokenize import Example, encode_rows, learned_runs
from softprompt.data.tokenizer import Tokenizer
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.errors import DataError
from softprompt.jobs.plan import (
    FILE_FIELDS,
    TEXT_FILE,
    TRAIN_FILE,
    VALIDATION_FILE,
    job_settings,
    prepare_job,
    train_settings,
)
from softprompt.jobs.records import DistillRequest, JobBase, NewJob, TuningMethod
from softprompt.models.loading import load_tokenizer
from softprompt.training.auto import Choice
from softprompt.training.config import TrainConfig
from softprompt.training.prepare import PreparedTask, PreparedTraining

MOST_ROWS, MOST_BYTES = 1000, 2**20  # of a file that a preview reads
Piece: TypeAlias = tuple[str, bool, int]  # text, whether it is learned, and its number of tokens
_STARTS = ("method.init", "method.text_tokens")  # choices that only some runs make


@dataclass(frozen=True)
class PreviewRow:
    """A row as the model reads it.

    Attributes:
        where: its line.
        pieces: of the row with its answer; of a pair that is compared, with the chosen one.
        rejected: of such a pair with the rejected answer; None of other rows.
    """

    where: str
    pieces: tuple[Piece, ...]
    rejected: tuple[Piece, ...] | None = None


@dataclass(frozen=True)
class JobPreview:
    """What a job would do with its files.

    Attributes:
        rows: the first ones of the training file.
        head: constant text before every row.
        train_rows, validation_rows: how many rows of each kind there would be; 0 of a distillation.
        tokens: of all training rows, or of the text to distill; of pairs that are compared, with both answers.
        learned_tokens: of all training rows.
        settings: those of the run, each with the reason for its value.
        notes: what a user should know about the rows, a sentence each.
        read_rows: the number of rows that the preview is about, if the file has more; else None.
        method_types: the kinds of training that the rows are for.
    """

    rows: tuple[PreviewRow, ...]
    head: str
    train_rows: int
    validation_rows: int
    tokens: int
    learned_tokens: int
    settings: tuple[Choice, ...]
    notes: tuple[str, ...]
    read_rows: int | None = None
    method_types: tuple[TuningMethod, ...] = ("supervised",)


def preview_rows(
    new: NewJob, base: JobBase, training: Path, n_rows: int, validation: Path | None, shown: int
) -> JobPreview:
    """What a job would learn of rows, and the settings that it would train with.

    Args:
        training: the content of the training file, of `n_rows` rows.
        validation: the content of the validation file.
        shown: rows to show.

    Raises DataError for rows that the job would refuse, ConfigError for settings.
    """
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        with _in_words_of_the_api(data):
            read = _copy_head(training, data / TRAIN_FILE)
            is_whole = read >= n_rows
            if validation is not None and is_whole:  # labels may be further down in a file that is not read to its end
                _copy_head(validation, data / VALIDATION_FILE)
            settings = job_settings(new, base, data, f"{scratch}/preview", base.device, _start(new, base))
            prepared = prepare_job(new, settings, resume=False)
            assert isinstance(prepared, PreparedTraining)
            (task,) = prepared.tasks
            tokenizer = load_tokenizer(settings.base_model)
            rows = _shown_rows(new.method, data / TRAIN_FILE, task, tokenizer, shown)
            method_types = _method_types(data / TRAIN_FILE)
        share = n_rows / read if read and not is_whole else 1.0
        count = round(len(task.train) * share)
        return JobPreview(
            rows,
            head(task.template, tokenizer),
            count,
            len(task.validation),
            round(sum(len(answer.ids) for row in task.train for answer in _answers(row)) * share),
            round(sum(sum(answer.mask) for row in task.train for answer in _answers(row)) * share),
            _training_choices(new, prepared, count),
            (*task.splits.notes, *task.notes),
            None if is_whole else read,
            method_types,
        )


def preview_text(new: NewJob, base: JobBase, text: Path) -> JobPreview:
    """What a job would make of a text, and the settings that it would distill with.

    Args:
        new: without `distill`, the mode is chosen: "text" if the text fits in the context, else "document".

    Raises DataError for a text that the job would refuse, ConfigError for settings.
    """
    asked = new.soft_prompt.distill
    if asked is not None:
        return _preview_text(new, base, text, f"{asked.mode} as given")
    try:
        return _preview_text(_with_mode(new, "text"), base, text, "the whole text fits in the model's context")
    except DataError:
        return _preview_text(_with_mode(new, "document"), base, text, "longer than the context: it is read in chunks")


def _preview_text(new: NewJob, base: JobBase, text: Path, why_mode: str) -> JobPreview:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        share = _copy_beginning(text, data / TEXT_FILE)
        with _in_words_of_the_api(data):
            settings = job_settings(new, base, data, f"{scratch}/preview", base.device, None)
            prepared = prepare_job(new, settings, resume=False)
        assert isinstance(prepared, PreparedDistillation)
        tokenizer = load_tokenizer(settings.base_model)
        tokens = round(len(tokenizer.encode(prepared.text, add_special_tokens=False)) / share)
    study, asked = prepared.settings.study, new.soft_prompt
    mode = "text" if prepared.settings.text else "document"
    size, given = prepared.sizes[0], asked.n_tokens is not None
    choices = (
        Choice("distill.mode", mode, why_mode),
        _plain("method.name", prepared.settings.method.name, asked.method is not None),
        Choice("method.n_tokens", size, "as given" if given else f"the default, for a text of {tokens} tokens"),
        Choice("study.queries", study.queries, f"about the text, {study.held_out} of them only to measure"),
        *_loop_choices(new, train_settings(prepared), study.queries - study.held_out, {}),
    )
    chunks = round(len(prepared.chunks) / share)
    notes = [f"the text is read in {chunks} chunks"] if chunks > 1 else []
    notes += [f"numbers are estimates: this is about the first {MOST_BYTES:,} bytes"] if share < 1 else []
    return JobPreview((), "", 0, 0, tokens, 0, choices, tuple(notes))


def _with_mode(new: NewJob, mode: str) -> NewJob:
    distill = DistillRequest("", "document" if mode == "document" else "text")
    return replace(new, soft_prompt=replace(new.soft_prompt, distill=distill))


def _start(new: NewJob, base: JobBase) -> str | None:
    """The folder of the soft prompt that the job goes on from."""
    name = new.init_prompt
    return name if name is None or "/" in name else str(Path(base.prompts) / name)


def _copy_head(source: Path, target: Path) -> int:
    """Copy the first lines of a file, whole ones; returns how many are not empty.

    Raises DataError if not even one fits.
    """
    copied = rows = 0
    with source.open("rb") as file, target.open("wb") as out:
        while rows < MOST_ROWS and (line := file.readline(MOST_BYTES - copied + 1)):
            if copied + len(line) <= MOST_BYTES:
                copied, rows = copied + len(line), rows + bool(line.strip())
                out.write(line)
            elif rows:
                break
            else:
                what, most = "the first row is too long for a preview", f"at most {MOST_BYTES:,} bytes"
                raise DataError(what, where=target, expected=most)
    return rows


def _copy_beginning(source: Path, target: Path) -> float:
    """Copy the beginning of a text, whole characters; returns its share of the text."""
    size = source.stat().st_size
    with source.open("rb") as file:
        text = file.read(MOST_BYTES)
    target.write_bytes(text if size <= MOST_BYTES else text.decode("utf-8", "ignore").encode())
    return min(1.0, MOST_BYTES / max(1, size))


def _shown_rows(
    method: TuningMethod, file: Path, task: PreparedTask, tokenizer: Tokenizer, shown: int
) -> tuple[PreviewRow, ...]:
    """The first rows of the file, those that would validate included."""
    records = parse_rows(islice(read_rows(file), shown), options=task.reading)
    encode = encode_pairs if method == "dpo" else encode_rows
    return tuple(
        PreviewRow(
            _line(row.where, file),
            tuple(learned_runs(row, tokenizer)),
            None if row.rejected is None else tuple(learned_runs(row.rejected, tokenizer)),
        )
        for row in encode(records, task.template, tokenizer)
    )


def _method_types(file: Path) -> tuple[TuningMethod, ...]:
    """What the rows of a file are for: pairs of answers can be compared, too."""
    first = parse_rows(islice(read_rows(file), 1), options=ReadOptions(pairs=True))[0]
    return ("supervised",) if first.rejected is None else ("supervised", "dpo")


def _answers(row: Example) -> tuple[Example, ...]:
    """The row, and of a pair that is compared also the one with the rejected answer."""
    return (row,) if row.rejected is None else (row, row.rejected)


def _training_choices(new: NewJob, prepared: PreparedTraining, rows: int) -> tuple[Choice, ...]:
    config, asked = prepared.config, new.soft_prompt
    chosen = {choice.setting: choice for choice in prepared.choices}
    choices = [
        chosen.get("method.name") or _plain("method.name", config.method.name, asked.method is not None),
        chosen.get("method.n_tokens") or _plain("method.n_tokens", config.method.n_tokens, asked.n_tokens is not None),
        *(chosen[name] for name in _STARTS if name in chosen),
    ]
    if new.method == "dpo":
        given = new.hyperparameters.beta not in (None, "auto")
        choices.append(_plain("objective.beta", config.objective.strength, given))
    return (*choices, *_loop_choices(new, config.train, rows, chosen))


def _loop_choices(new: NewJob, train: TrainConfig, rows: int, chosen: dict[str, Choice]) -> Sequence[Choice]:
    """The settings of the training loop on so many rows."""
    asked, steps = new.hyperparameters, train.total_steps(rows)
    factor = asked.learning_rate_multiplier
    rate = chosen.get("train.lr") or Choice("train.lr", train.lr, "the default")
    times = "" if factor == "auto" else f", times {factor:g} as given"
    choices = [
        Choice("train.lr", train.lr, rate.why + times),
        chosen.get("train.batch_size") or _plain("train.batch_size", train.batch_size, asked.batch_size != "auto"),
    ]
    if new.soft_prompt.minutes is not None:
        choices.append(Choice("train.minutes", new.soft_prompt.minutes, "as given: the schedule fits itself to them"))
    elif (most := new.soft_prompt.most_minutes) is not None:
        why = "at most: a slow machine, which measures itself first, may choose another start and fewer rows a step"
        choices.append(Choice("train.minutes", most, why))
    if steps is not None:
        epochs = round(steps * train.batch_size / rows, 1)
        given = asked.n_epochs != "auto"
        why = "as given" if given else f"{steps} steps on {rows} rows: about ten passes, between 100 and 600 steps"
        passes = asked.n_epochs if given else epochs
        choices.append(Choice("train.epochs", passes, why if given or train.steps is None else f"{steps} steps"))
        choices.append(Choice("train.steps", steps, f"{epochs:g} passes over {rows} rows, {train.batch_size} a step"))
    if train.patience is not None:
        why = "it ends early after so many validations without a better loss"
        choices.append(Choice("train.patience", train.patience, why))
    return choices


def _plain(setting: str, value: object, given: bool) -> Choice:
    return Choice(setting, value, "as given" if given else "the default")


def _line(where: str, file: Path) -> str:
    return where.removeprefix(str(file)).removeprefix(":")


@contextlib.contextmanager
def _in_words_of_the_api(data: Path) -> Iterator[None]:
    """Faults of a file by the name of its field; without hints, which name options of the command line."""
    try:
        yield
    except DataError as error:
        where, what = str(error.where or ""), error.what
        for name, field in FILE_FIELDS.items():
            where, what = (text.replace(str(data / name), field) for text in (where, what))
        raise DataError(what, where=where or None, expected=error.expected, got=error.got) from error
