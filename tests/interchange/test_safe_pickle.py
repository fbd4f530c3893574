"""Reading torch.save files without unpickling: everything harmless comes out equal, everything else is refused."""

from __future__ import annotations

import builtins
import collections
import contextlib
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, _utils, nn

from softprompt.errors import StoreError
from softprompt.interchange import safe_pickle
from softprompt.interchange.safe_pickle import PARAMETER_LIST, OpaqueObject, parameters

DTYPES = [*safe_pickle.STORAGE_DTYPES.values()]


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def read(data: bytes) -> Any:
    return safe_pickle.read_torch_file(io.BytesIO(data), "x.pt")


def refused(data: bytes) -> StoreError:
    with pytest.raises(StoreError) as caught:
        read(data)
    assert caught.value.where == "x.pt"
    return caught.value


def zipped(program: bytes, *, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A torch.save file of this pickle, with these storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('s')}", data)
    return file.getvalue()


def tensor_program(offset: object, size: object, stride: object, numel: int = 4) -> bytes:
    """A pickle of one float tensor, written by hand."""

    class Fake:
        def __reduce__(self) -> Any:
            return _utils._rebuild_tensor_v2, (Stored(), offset, size, stride, False, collections.OrderedDict())

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Stored) else None

    file = io.BytesIO()
    Pickler(file, 2).dump(Fake())
    return file.getvalue()


FOUR = torch.arange(4.0).numpy().tobytes()


def same(ours: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(ours, Tensor) and ours.dtype == wanted.dtype and torch.equal(ours, wanted.detach())
    if isinstance(wanted, dict):
        return isinstance(ours, dict) and [*ours] == [*wanted] and all(same(ours[k], wanted[k]) for k in wanted)
    if isinstance(wanted, (list, tuple)):
        pairs = zip(ours, wanted, strict=True)
        return type(ours) is type(wanted) and all(same(one, other) for one, other in pairs)
    return type(ours) is type(wanted) and ours == wanted


shared = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.randn(3, 2), "b": [1, -7, 2**40, 2.5, None, True, "x", ()], 3: {"c": (1, "y", (2, 3, 4, 5))}},
        [torch.zeros(2, 3, dtype=torch.bool).fill_(True)],
        torch.randn(2, 3).to(torch.bfloat16),
        shared.T,
        [shared[1:3, ::2], shared[2], shared],
        torch.empty(0, 5),
        torch.tensor(4.0),
        nn.Parameter(torch.randn(3)),
        nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).state_dict(),
        {},
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves_comes_out_equal(value: Any, protocol: int) -> None:
    assert same(read(saved(value, pickle_protocol=protocol)), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1, 3], [2, 0, 1]]).to(dtype)
    assert same(read(saved({"x": value})), {"x": value})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
            | st.tuples(inner, inner)
        ),
    )
)
def test_any_plain_data(value: Any) -> None:
    assert same(read(saved(value)), value)


def test_parameter_lists() -> None:
    tensors = [torch.randn(1, 2, 3, 4) for _ in range(12)]  # more than ten: "10" is not after "1"
    (made,) = read(saved([nn.ParameterList(tensors)]))
    assert isinstance(made, OpaqueObject) and made.kind == PARAMETER_LIST
    assert same(parameters(made, "x"), tensors)
    assert parameters(read(saved([nn.ParameterList()]))[0], "x") == []
    assert same(parameters(read(saved(tensors)), "x"), tensors)
    for wrong in ({"a": 1}, [1], None, torch.ones(2)):
        with pytest.raises(StoreError, match="not a list of tensors"):
            parameters(wrong, "x")


def test_the_bytes_of_a_storage_are_read_once() -> None:
    one, other = read(saved([shared[0], shared[1]]))
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class Evil:
    """An object whose pickle calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


HARMFUL = {
    "posix.system": (os.system, "touch {}"),
    "eval": (eval, "open('{}', 'w')"),
    "exec": (exec, "open('{}', 'w')"),
    "subprocess": (subprocess.check_call, ["touch", "{}"]),
    "getattr": (getattr, "", "join"),
    "import": (builtins.__import__, "antigravity"),
    "open": (open, "{}", "w"),
    "torch.load": (torch.load, "{}"),
    "jit": (torch.jit.load, "{}"),
    "numpy": (torch.ones(1).numpy().__reduce__()[0], ()),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", HARMFUL)
def test_code_is_refused_and_not_run(name: str, nested: bool, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def aimed(value: Any) -> Any:
        return [aimed(v) for v in value] if isinstance(value, list) else str(value).format(marker)

    function, *arguments = HARMFUL[name]
    evil: Any = Evil(function, *map(aimed, arguments))
    value = {"weights": torch.ones(2), "nest": [({"deep": evil},)]} if nested else evil
    error = refused(saved(value, pickle_protocol=protocol))
    assert "could run any code" in error.what
    assert "save its tensors alone" in str(error.hint)
    assert str(error.got) not in safe_pickle.NAMES
    assert not marker.exists()


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"(S'ls'\nios\nsystem\n.", "STRING"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "holds no tensors"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "collections.OrderedDict"),
        (b"\x80\x02]}b.", "a state for list"),
        (b"\x80\x02})K\x01s.", "a dict key of type tuple"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04K\x01K\x02\x93.", "?"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02Kx2.", "DUP"),
        (b"\x80\x02Px\n.", "PERSID"),
    ],
)
def test_single_instructions(program: bytes, found: str) -> None:
    error = refused(zipped(program))
    assert found in str(error.got)
    assert "could run any code" in error.what


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02NN.",
        b"\x80\x02\x85.",
        b"\x80\x02t.",
        b"\x80\x02h\x07.",
        b"\x80\x02Na.",
        b"\x80\x02NNNs.",
        b"\x80\x02NNR.",
        b"\x80\x02Q.",
        b"\x80\x02NQ.",
        b"\xff\xff\xff",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02}(Nu.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    ],
)
def test_broken_pickles(program: bytes) -> None:
    assert "damaged pickle" in refused(zipped(program)).what


def test_a_list_that_holds_itself() -> None:
    value = read(zipped(b"\x80\x02]q\x00h\x00a."))
    assert value[0] is value


def test_deep_nesting_does_not_overflow() -> None:
    read(zipped(b"\x80\x02N" + b"\x85" * 1_000_000 + b"."))
    assert "dict key" in str(refused(zipped(b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.")).got)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (1,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (2,), (2**62,)),
        (0, (2**62,), (0,)),
        (0, (8,), (0,)),
        (0, (2**40, 2**40), (1, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2,), ()),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, ("a",), (1,)),
        (0, 3, 1),
        (0, (0, -1), (1, 1)),
    ],
)
def test_tensors_that_leave_their_storage(offset: Any, size: Any, stride: Any) -> None:
    assert "damaged pickle" in refused(zipped(tensor_program(offset, size, stride), s0=FOUR)).what


def test_a_tensor_that_just_fits() -> None:
    assert read(zipped(tensor_program(1, (3,), (1,)), s0=FOUR)).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "data",
    [
        zipped(tensor_program(0, (4,), (1,)), s0=FOUR[:-1]),
        zipped(tensor_program(0, (4,), (1,)), s0=FOUR + b"x"),
        zipped(tensor_program(0, (4,), (1,))),
        zipped(tensor_program(0, (2,), (1,), numel=2**50), s0=FOUR),
        zipped(tensor_program(0, (4,), (1,)), compression=zipfile.ZIP_DEFLATED, s0=FOUR),
        zipped(b"\x80\x02N." + b" " * (safe_pickle.MAX_PICKLE_BYTES)),
        saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False),
        b"",
        b"PK\x03\x04",
        zipped(b"").replace(b"data.pkl", b"data.pkm"),
    ],
    ids=map(str, range(10)),  # torch's files may hold addresses: every process must find the same names
)
def test_damaged_files(data: bytes) -> None:
    refused(data)


def test_a_file_cut_off_or_altered_anywhere() -> None:
    whole = saved({"a": torch.arange(6.0), "b": nn.ParameterList([torch.ones(2)])})
    for end in range(0, len(whole), 37):
        refused(whole[:end])
    for at in range(0, len(whole), 11):
        broken = bytearray(whole)
        broken[at] ^= 0x55
        with contextlib.suppress(StoreError):
            read(bytes(broken))


def test_big_endian_files_are_refused() -> None:
    data = saved(torch.ones(2))
    assert b"little" in data
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    assert "big-endian" in refused(file.getvalue()).what


def test_the_module_has_no_way_to_run_a_pickle() -> None:
    source = Path(safe_pickle.__file__).read_text(encoding="utf-8")
    for name in ("import pickle\n", "import_module", "__import__", "getattr(", "eval(", "exec(", "torch.load("):
        assert name not in source
