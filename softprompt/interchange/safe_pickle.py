"""Reads the tensors of a `torch.save` file without unpickling it.

Such a file is a zip of `data.pkl` (a pickle: a program for a stack machine) and the raw bytes of each storage.
Unpickling runs what the program names; this module reads the program (`pickletools.genops`) and carries out only the
few instructions that tensors, lists and dicts need. Names of classes and functions are compared with a list and
never looked up; nothing is imported or called. Anything else is refused by its name.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format-for-torch-save
Instructions: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import IO

import torch
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.interchange.base import SAFE_HINT, zip_archive

MAX_PICKLE_BYTES = 4 * 2**20
MAX_STORAGE_BYTES = 8 * 2**30

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
PARAMETER_LIST = "torch.nn.modules.container.ParameterList"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
DICT = "collections.OrderedDict"
SETS = ("__builtin__.set", "builtins.set")
NAMES = {*STORAGE_DTYPES, PARAMETER_LIST, TENSOR, PARAMETER, DICT, *SETS}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MALFORMED = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, UnicodeError)


@dataclass(frozen=True)
class PickleName:
    """The name of a class or function in the file, as plain text."""

    full: str


@dataclass(eq=False)
class OpaqueObject:
    """A placeholder for an object that is not constructed: the name of its class, and its state."""

    kind: str
    state: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """The raw numbers of one or more tensors, still in the zip."""

    dtype: torch.dtype
    key: str
    numel: int


def read_torch_file(file: IO[bytes], where: object) -> object:
    """The saved object, made of dict, list, tuple, str, numbers, Tensor and `OpaqueObject`. Tensors are on the CPU.

    Args:
        file: a seekable binary file.
        where: the name of the file in messages.

    Raises StoreError for a pickle that does more than describe tensors, and for a damaged file.
    """
    with zip_archive(file, where) as archive:
        return _Archive(archive, where).load()


def parameters(value: object, where: object) -> list[Tensor]:
    """The tensors of a saved `nn.ParameterList`, or of a list. StoreError for anything else."""
    if isinstance(value, OpaqueObject) and value.kind == PARAMETER_LIST:
        named = value.state.get("_parameters")
        value = [named[str(i)] for i in range(len(named)) if str(i) in named] if isinstance(named, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, Tensor) for item in value):
        raise StoreError("not a list of tensors", where=where, got=type(value).__name__)
    return value


class _Archive:
    """The zip with the pickle and the storages, each checked before it is read."""

    def __init__(self, archive: zipfile.ZipFile, where: object) -> None:
        self.archive = archive
        self.where = where
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise StoreError("not a torch.save file: it has no data.pkl", where=where)
        self.root = pickles[0].removesuffix("data.pkl")
        self.loaded: dict[Storage, Tensor] = {}
        self.left = MAX_STORAGE_BYTES

    def load(self) -> object:
        if f"{self.root}byteorder" in self.archive.namelist() and self._member("byteorder", 16) != b"little":
            raise StoreError("written on a big-endian machine", where=self.where, hint=SAFE_HINT)
        return _Machine(self).run(self._member("data.pkl", MAX_PICKLE_BYTES))

    def storage(self, wanted: Storage) -> Tensor:
        """All numbers of a storage, flat."""
        if wanted not in self.loaded:
            size = wanted.numel * wanted.dtype.itemsize
            data = self._member(f"data/{wanted.key}", min(size, self.left))
            if len(data) != size:
                raise StoreError("a storage is cut off", where=self.where, expected=f"{size} bytes", got=len(data))
            self.left -= size
            flat = torch.frombuffer(bytearray(data), dtype=wanted.dtype) if size else torch.empty(0, dtype=wanted.dtype)
            self.loaded[wanted] = flat
        return self.loaded[wanted]

    def _member(self, name: str, limit: int) -> bytes:
        """A file of the zip that is stored as it is, so that it cannot be larger than the zip itself."""
        try:
            info = self.archive.getinfo(self.root + name)
        except KeyError as error:
            raise StoreError(f"{name} is missing in the file", where=self.where) from error
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise StoreError(
                f"{name} is not what torch.save writes",
                where=self.where,
                expected=f"<= {limit:,} bytes, not compressed",
                got=f"{info.file_size:,} bytes",
            )
        return self.archive.read(info)


class _Machine:
    """The stack machine of the pickle, of which only the harmless instructions exist.

    Keys of dicts are texts and numbers alone: hashing a deep tuple would overflow the C stack.
    """

    def __init__(self, archive: _Archive) -> None:
        self.archive, self.where = archive, archive.where
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[object, object] = {}

    def run(self, program: bytes) -> object:
        try:
            for opcode, argument, _ in pickletools.genops(program):
                self._step(opcode.name, argument)
            (result,) = self.stack
        except _MALFORMED as error:
            raise StoreError("damaged pickle in a torch.save file", where=self.where, got=str(error)[:120]) from error
        return result

    def _step(self, name: str, argument: object) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            if len(self.stack) < size:
                raise IndexError("a tuple of what is not there")
            self.stack[-size:] = [tuple(self.stack[-size:])]
        elif name not in ("PROTO", "FRAME", "STOP"):
            if name not in _STEPS:
                raise self._refused(f"the pickle instruction {name}")
            _STEPS[name](self, argument)

    def _mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _tuple(self, _: object) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _append(self, _: object) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for what is no list")
        target.extend(items)

    def _set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_items(self, _: object) -> None:
        self._set(self._to_mark())

    def _set(self, flat: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("entries for what is no dict")
        for key, value in _pairs(flat):
            if not isinstance(key, (str, int)):
                raise self._refused(f"a dict key of type {type(key).__name__}")
            target[key] = value

    def _put(self, argument: object) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def _get(self, argument: object) -> None:
        self.stack.append(self.memo[argument])

    def _global(self, argument: object) -> None:
        self._name(str(argument).replace(" ", "."))

    def _stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(f"{module}.{name}" if isinstance(name, str) and isinstance(module, str) else "?")

    def _name(self, full: str) -> None:
        if full not in NAMES:
            raise self._refused(full[:120])
        self.stack.append(PickleName(full))

    def _reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, PickleName) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no name")
        self.stack.append(self._stand_in(function.full, arguments))

    def _stand_in(self, name: str, arguments: tuple[object, ...]) -> object:
        """The result that the named function would return."""
        if name == TENSOR:
            return self._tensor(*arguments[:4])
        if name == PARAMETER and isinstance(arguments[0], Tensor):
            return arguments[0]
        if name == DICT and not arguments:
            return {}
        if name in SETS:
            return OpaqueObject(name)
        raise self._refused(f"a call of {name} that torch.save does not write")

    def _new_object(self, _: object) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, PickleName) or kind.full != PARAMETER_LIST or arguments != ():
            raise self._refused("an object of a class that holds no tensors")
        self.stack.append(OpaqueObject(kind.full))

    def _build(self, _: object) -> None:
        """Gives an object its state: kept for an OpaqueObject, dropped for the `_metadata` of a state dict."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, OpaqueObject) and isinstance(state, dict):
            made.state = state
        elif not isinstance(made, dict):
            raise self._refused(f"a state for {type(made).__name__}")

    def _persistent(self, _: object) -> None:
        reference = self.stack.pop()  # ("storage", class, key, device it was saved from, numbers)
        if not isinstance(reference, tuple) or len(reference) != 5:
            raise ValueError("a reference that is no storage")
        kind, storage = reference[:2]
        key, numel = reference[2], reference[4]
        plain = isinstance(key, str) and key.isdecimal() and isinstance(numel, int) and numel >= 0
        if kind != "storage" or not isinstance(storage, PickleName) or not plain:
            raise ValueError("a reference that is no storage")
        self.stack.append(Storage(STORAGE_DTYPES[storage.full], key, numel))

    def _tensor(self, storage: object, offset: object, size: object, stride: object) -> Tensor:
        """A view of a storage, after checking that it stays inside and repeats nothing (which could be endless)."""
        lengths, steps = _natural(size), _natural(stride)
        (first,) = _natural((offset,))
        if not isinstance(storage, Storage) or len(lengths) != len(steps):
            raise ValueError("a tensor without storage or with unequal size and stride")
        if prod(lengths) == 0:
            return torch.empty(lengths, dtype=storage.dtype)
        last = first + sum((n - 1) * step for n, step in zip(lengths, steps, strict=True))
        if last >= storage.numel or prod(lengths) > storage.numel:
            raise ValueError("a tensor reaches beyond its storage")
        return torch.as_strided(self.archive.storage(storage), lengths, steps, first)

    def _refused(self, found: str) -> StoreError:
        return StoreError(
            "the file is a pickle that does more than hold tensors, so it is not read: loading it could run any code",
            where=self.where,
            got=found,
            hint=SAFE_HINT,
        )


def _natural(numbers: object) -> list[int]:
    """The natural numbers of a tuple. Raises ValueError for anything else."""
    if not isinstance(numbers, tuple | list) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor whose size, stride or offset is no natural number")
    return list(numbers)


def _pairs(flat: list[object]) -> Iterator[tuple[object, object]]:
    return zip(flat[::2], flat[1::2], strict=True)


_STEPS: dict[str, Callable[[_Machine, object], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new_object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
