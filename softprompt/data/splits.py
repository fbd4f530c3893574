"""Data on disk or on the Hub to checked records, and to the three splits of a run.

    rows = load_rows("questions.jsonl", require_target=False)
    splits = load_splits("examples/helpdesk")        # a folder, a file or a Hub dataset
    print(*splits.notes, sep="\\n")                   # what was decided on the way

Knows nothing about templates or tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, final

from softprompt.data.default_template import default_text
from softprompt.data.hub import is_hub_name, read_hub
from softprompt.data.memory_rows import RowSource, memory_rows
from softprompt.data.parsing import parse_rows
from softprompt.data.read_options import TEXT_PIECES, ReadOptions
from softprompt.data.readers import SUFFIXES, read_rows
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.sampler import permutation
from softprompt.data.template import Template
from softprompt.deprecation import renamed_keywords
from softprompt.errors import DataError

__all__ = ["Splits", "carve", "check_place", "data_digest", "inputs_of", "load_rows", "load_splits", "remarks"]

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_MOST_CARVED = 500


@final
@dataclass(frozen=True)
class Splits:
    """The rows of a run.

    Attributes:
        train: at least one row.
        validation: at least one row; split off the training rows when there is no such file.
        test: may be empty.
        notes: what a user should know about how the splits came about, a sentence each.
    """

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    notes: tuple[str, ...] = ()


@renamed_keywords(path="source")
def load_rows(source: RowSource, *, require_target: bool = True, options: ReadOptions | None = None) -> list[Record]:
    """The checked rows of one file (JSONL, JSON, CSV, TSV, Parquet or text), or of rows in memory; never none.

    Args:
        source: a file's path, a list of dicts, or a `datasets.Dataset`.
        require_target: False for inference files.
        options: names of columns, pieces and ends of texts.

    Raises:
        DataError: the file is missing, empty, damaged, not UTF-8, or a row is not usable.
    """
    if not isinstance(source, str | Path):
        return _checked(memory_rows(source), "rows", require_target, options)
    path = Path(source)
    if path.suffix.lower() == ".txt" and (options is None or options.pieces is None):
        options = replace(options or ReadOptions(), pieces=TEXT_PIECES)
    return _checked(read_rows(path), str(source), require_target, options)


def check_place(path: str | Path) -> None:
    """Refuse a place without a data file, or a file without a row, before anything slow: one row is read.

    A folder is left to `load_splits`, and so is what may be a Hub dataset.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, or damaged where it begins.
    """
    place = Path(path)
    if place.is_dir() or _may_be_hub(place, path):
        return
    if next(read_rows(place), None) is None:
        raise _no_rows(path)


@renamed_keywords(path="source")
def load_splits(
    source: RowSource, *, seed: int = 0, fraction: float = 0.1, options: ReadOptions | None = None
) -> Splits:
    """The splits of a run.

    Args:
        source: a file (training rows); a folder with `train.*`, one of `validation.*`, `valid.*`, `val.*` or `dev.*`,
            and `test.*`; when nothing has that name, a Hub dataset `owner/name[:config]`; rows in memory (a list of
            dicts, a `datasets.Dataset`), or a mapping of splits to them.
        seed: chooses the validation rows when they are split off.
        fraction: how many of the training rows are then split off, at most 500.
        options: names of columns, pieces and ends of texts.

    Raises:
        DataError: no training rows, several files for one split, splits of different kinds, a label that
            the training rows do not have, or what `load_rows` refuses.
    """
    splits, where = _load(source, options), str(source) if isinstance(source, str | Path) else "rows"
    name, notes = _validation_name(splits, where), list[str]()
    if "train" not in splits:
        raise DataError("there are no training rows", where=where, expected="train", got=", ".join(splits) or None)
    train, test = splits["train"], splits.get("test", [])
    validation = splits[name] if name else []
    if name and name != "validation":
        notes.append(f"{name!r} is the validation split")
    _check_agreement(train, [*validation, *test])
    notes += remarks([*train, *validation, *test])
    if not validation:
        train, validation = carve(train, fraction, seed)
        notes.append(
            f"no validation split: {_count(validation)} of {len(train) + len(validation)} training rows "
            f"were split off (seed {seed})"
        )
    notes += _absent_notes(train, splits.get(name or "", []), test) + _overlap_notes(train, validation, test)
    return Splits(train, validation, test, tuple(notes))


def remarks(records: Sequence[Record]) -> list[str]:
    """What was left out or added when rows were read, each with the number of its rows."""
    counts = Counter(record.remark for record in records if record.remark)
    return [f"{count} of {len(records)} rows: {remark}" for remark, count in counts.items()]


def _load(source: RowSource, options: ReadOptions | None) -> dict[str, list[Record]]:
    """The splits that a place has, by their names there."""
    if isinstance(source, Mapping):
        rows = cast(Mapping[str, object], source)
        return {name: _checked(memory_rows(part, name), name, True, options) for name, part in rows.items()}
    if not isinstance(source, str | Path):
        return {"train": load_rows(source, options=options)}
    place = Path(source)
    if place.is_dir():
        return _load_folder(place, options)
    if _may_be_hub(place, source):
        return _load_hub(str(source), options)
    return {"train": load_rows(place, options=options)}


def carve(train: Sequence[Record], fraction: float = 0.1, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Split validation rows off the training rows; the same ones for the same rows and seed.

    At least 1 row and at most 500; both parts keep the order of the rows. The last row of a label stays in
    training, so that every label can be learned.

    Returns:
        (training rows, validation rows)

    Raises:
        DataError: a fraction or seed out of range, or no row that could be spared.
    """
    if not 0 < fraction < 1:
        raise DataError("the validation fraction must be between 0 and 1", got=fraction)
    if not 0 <= seed < 2**63:
        raise DataError("the seed must be in 0 ... 2**63 - 1", got=seed)
    wanted = min(max(1, round(len(train) * fraction)), _MOST_CARVED, len(train) - 1)
    left = Counter(record.target for record in train if shape_of(record).has_classes)
    taken: set[int] = set()
    order: list[int] = permutation(len(train), seed).tolist()
    for i in order:
        if len(taken) == wanted:
            break
        if shape_of(train[i]).has_classes:
            if left[train[i].target] == 1:
                continue
            left[train[i].target] -= 1
        taken.add(i)
    if not taken:
        raise DataError(
            "no training row can be spared for validation",
            where=train[0].where if train else None,
            expected="two rows, or for text/label rows some label that occurs twice",
            got=_count(train),
            hint="add rows, or a validation file beside the training file",
        )
    kept = [record for i, record in enumerate(train) if i not in taken]
    return kept, [record for i, record in enumerate(train) if i in taken]


def data_digest(records: Iterable[Record]) -> str:
    """SHA-256, in hex, of what the rows say and their order; where they were read from does not matter."""
    sha = hashlib.sha256()
    for record in records:
        turns = [[message.role, message.content] for message in record.messages]
        row = [
            record.kind,
            dict(record.fields),
            record.target,
            turns,
            list(record.references),
            record.context,
        ]
        row += [list(record.choices)] if record.choices else []  # digests of rows without them are those of 0.1
        row += [False] if not record.ends else []
        sha.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return sha.hexdigest()


def inputs_of(record: Record) -> tuple[object, ...]:
    """The input of a row: equal for two rows exactly if the model reads the same.

    Further fields do not count: most are row numbers and the like, which would hide that rows are the same.
    """
    if record.is_conversation:
        turns = record.messages[:-1] if record.target is not None else record.messages
        return (*turns, *record.choices)
    names = Template("text", default_text(record)).names
    texts = (record.fields.get(name) for name in dict.fromkeys((*names, "prompt", "text", "text2")))
    return (*texts, *record.choices)


def _checked(
    rows: Iterable[tuple[str, object]], where: str, require_target: bool = True, options: ReadOptions | None = None
) -> list[Record]:
    """Parsed rows; none at all is an error."""
    records = parse_rows(rows, require_target=require_target, options=options)
    if not records:
        raise _no_rows(where)
    return records


def _no_rows(where: str | Path) -> DataError:
    return DataError("the file has no rows", where=where, hint='write one row a line: {"text": ..., "label": ...}')


def _may_be_hub(place: Path, path: str | Path) -> bool:
    """Whether this names a Hub dataset, if there is one: no file here, and not the name of one."""
    return not place.exists() and is_hub_name(str(path)) and place.suffix.lower() not in SUFFIXES


def _load_folder(folder: Path, options: ReadOptions | None = None) -> dict[str, list[Record]]:
    """The splits in a folder, by the names of their files."""
    splits: dict[str, list[Record]] = {}
    for name in ("train", *VALIDATION_NAMES, "test"):
        files = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
        if len(files) > 1:
            got = ", ".join(file.name for file in files)
            raise DataError(f"there are several files for the split {name!r}", where=folder, got=got)
        if files:
            splits[name] = load_rows(files[0], options=options)
    if "train" not in splits:
        raise DataError(
            "the folder has no training file",
            where=folder,
            expected=f"train{', train'.join(SUFFIXES)}",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder",
        )
    return splits


def _load_hub(name: str, options: ReadOptions | None = None) -> dict[str, list[Record]]:
    """The splits of a Hub dataset; a test split without any labels is left out, it cannot be scored."""
    splits: dict[str, list[Record]] = {}
    for split, rows in read_hub(name).items():
        if split == "train" or split in VALIDATION_NAMES:
            splits[split] = _checked(rows, f"{name}/{split}", True, options)
        elif split == "test":
            records = _checked(rows, f"{name}/{split}", False, options)
            if scorable := [r for r in records if r.target is not None or not shape_of(r).has_answers]:
                splits[split] = scorable
    return splits


def _validation_name(splits: Iterable[str], path: str | Path) -> str | None:
    """The one name under which there are validation rows."""
    names = [name for name in VALIDATION_NAMES if name in splits]
    if len(names) > 1:
        got = " and ".join(names)
        raise DataError("there is more than one validation split", where=path, expected="one of them", got=got)
    return names[0] if names else None


def _check_agreement(train: Sequence[Record], others: Sequence[Record]) -> None:
    """Every split has the training rows' kind, and no labels that the training rows lack."""
    for record in others:
        if record.kind != train[0].kind:
            raise DataError(
                "the splits hold rows of different kinds",
                where=record.where,
                expected=f"kind {train[0].kind!r}, as in {train[0].where}",
                got=f"kind {record.kind!r}",
            )
    if not shape_of(train[0]).has_classes:
        return
    known = {record.target for record in train}
    strange = [record for record in others if record.target not in known]
    if strange:
        raise DataError(
            "labels occur that the training rows do not have",
            where=strange[0].where,
            expected=f"one of {_listed(known)}",
            got=_listed({record.target for record in strange}),
            hint="check the spelling of the labels, or add training rows for them",
        )


def _absent_notes(*splits: Sequence[Record]) -> list[str]:
    """Say which of the training rows' labels a file of held-out rows lacks: they are not measured."""
    notes: list[str] = []
    for name, records in zip(("validation", "test"), splits[1:], strict=True):
        labels = [{record.target for record in rows} for rows in (splits[0], records)]
        if records and shape_of(records[0]).has_classes and (absent := labels[0] - labels[1]):
            notes.append(f"{name} has no row labeled {_listed(absent)}")
    return notes


def _overlap_notes(*splits: Sequence[Record]) -> list[str]:
    """Warn of held-out rows whose input was trained on."""
    seen = {inputs_of(record) for record in splits[0]}
    notes: list[str] = []
    for name, records in zip(("validation", "test"), splits[1:], strict=True):
        if same := sum(inputs_of(record) in seen for record in records):
            notes.append(f"{same} of {len(records)} {name} rows ask what a training row asks already")
    return notes


def _listed(labels: Iterable[str | None]) -> str:
    """Labels for an error message, at most ten."""
    names = sorted(repr(label) for label in labels)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _count(rows: Sequence[Record]) -> str:
    return f"{len(rows)} row" + ("" if len(rows) == 1 else "s")
