"""Google, KoboldAI, NeMo and Cartridges files as their tools write them, and damaged, hostile and oversized ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softprompt.errors import StoreError
from softprompt.interchange import nemo
from softprompt.interchange import npy as npy_module
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.registry import detect_format, formats, read_foreign
from softprompt.models.geometry import LayerShape
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, check_fits
from tests.support.artifacts import geometry

BASE = geometry(hidden=6, layers=(LayerShape(2, 4, 4),) * 3, windows=(None,) * 3)
TABLE = torch.arange(18.0).reshape(3, 6) / 7


def refused(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        read_foreign(path, BASE)
    return caught.value


def the_one(path: Path) -> ImportedPrompt:
    (found,) = read_foreign(path, BASE)
    check_fits(found.prompt, BASE)
    return found


def table(found: ImportedPrompt) -> Tensor:
    assert isinstance(found.prompt, EmbeddingPrompt)
    return found.prompt.embeddings


def npy(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


class TestGoogle:
    @pytest.mark.parametrize(
        ("dtype", "wanted"),
        [("<f4", torch.float32), ("<f2", torch.float16), ("<f8", torch.float32), (">f4", torch.float32)],
    )
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_arrays(self, dtype: str, wanted: torch.dtype, order: Any, tmp_path: Path) -> None:
        path = npy(tmp_path / "any.name", np.asarray(TABLE.numpy().astype(dtype), order=order))
        path = path.with_name("any.name.npy")
        assert detect_format(path) == "google-prompt-tuning"
        found = the_one(path)
        assert torch.equal(table(found), TABLE.to(wanted))
        assert table(found).dtype == wanted
        assert found.method == {"name": "prompt_tuning", "imported_from": "google-prompt-tuning"}

    @pytest.mark.parametrize(
        "array",
        [
            np.array([{"a": 1}], dtype=object),
            np.zeros((2, 6), dtype=np.int32),
            np.zeros(6, dtype=np.float32),
            np.zeros((1, 2, 6), dtype=np.float32),
            np.zeros((2, 6), dtype=[("x", "<f4")]),
            np.zeros((2, 6), dtype="V4"),
            np.zeros((2, 6), dtype=[("x", "V2")]),
        ],
        ids=str,
    )
    def test_other_arrays(self, array: Any, tmp_path: Path) -> None:
        refused(npy(tmp_path / "x.npy", array))

    def test_a_header_that_lies(self, tmp_path: Path) -> None:
        path = npy(tmp_path / "x.npy", TABLE.numpy())
        whole = path.read_bytes()
        for old, new in ((b"(3, 6)", b"(4, 6)"), (b"(3, 6)", b"(2, 6)"), (b"(3, 6)", b"(3,-6)")):
            path.write_bytes(whole.replace(old, new))
            refused(path)
        path.write_bytes(whole.replace(b"(3, 6), }           ", b"(99999999999, 6), } "))
        assert "too large" in refused(path).what
        for end in range(6, len(whole), 13):
            path.write_bytes(whole[:end])
            refused(path)
        path.write_bytes(whole[:6] + b"\x03" + whole[7:])
        assert "not a readable .npy" in refused(path).what


class TestKobold:
    @staticmethod
    def file(path: Path, array: Any, method: int = zipfile.ZIP_LZMA) -> Path:
        data = io.BytesIO()
        np.save(data, array, allow_pickle=True)
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("tensor.npy", data.getvalue())
            archive.writestr("meta.json", json.dumps({"name": "a", "supported": ["gpt"]}))
        return path

    @pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_tensors(self, dtype: torch.dtype, method: int, tmp_path: Path) -> None:
        wanted = TABLE.to(dtype)
        array = wanted.view(torch.int16).numpy().view("V2") if dtype == torch.bfloat16 else wanted.numpy()
        path = self.file(tmp_path / "x.zip", array, method)
        assert detect_format(path) == "koboldai"
        found = the_one(path)
        assert table(found).dtype == dtype
        assert torch.equal(table(found), wanted)
        assert found.method == {"name": "prompt_tuning", "imported_from": "koboldai"}

    def test_a_bomb(self, tmp_path: Path) -> None:
        path = self.file(tmp_path / "x.zip", np.zeros((2, 6), dtype=np.float32))
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 6)})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("tensor.npy", data.getvalue() + bytes(50_000_000))
        assert path.stat().st_size < 100_000
        assert "too large" in refused(path).what

    def test_more_data_than_declared(self, tmp_path: Path) -> None:
        data = io.BytesIO()
        np.save(data, TABLE.numpy())
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("tensor.npy", data.getvalue() + bytes(50_000_000))
        assert "not as long" in refused(tmp_path / "x.zip").what

    def test_objects_and_damage(self, tmp_path: Path) -> None:
        refused(self.file(tmp_path / "x.zip", np.array([{"a": 1}], dtype=object)))
        whole = self.file(tmp_path / "x.zip", TABLE.numpy()).read_bytes()
        for at in range(0, len(whole), 3):
            (tmp_path / "y.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            with contextlib.suppress(StoreError):
                read_foreign(tmp_path / "y.zip", BASE)
        (tmp_path / "y.zip").write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / "y.zip")


def torch_file(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def nested(*tasks: str) -> dict[str, Any]:
    """As NeMo's PromptTable is saved."""
    state = {}
    for i, task in enumerate(tasks):
        state[f"prompt_table.{task}.indices"] = torch.arange(3)
        state[f"prompt_table.{task}.prompt_embeddings.weight"] = TABLE + i
    return {"prompt_table": state}


class TestNemo:
    @staticmethod
    def tar(path: Path, *members: tuple[str, bytes], mode: Any = "w") -> Path:
        with tarfile.open(path, mode) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    @staticmethod
    def weights(value: object) -> bytes:
        data = io.BytesIO()
        torch.save(value, data)
        return data.getvalue()

    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    @pytest.mark.parametrize("dot", ["./", ""])
    def test_archives(self, dot: str, mode: str, tmp_path: Path) -> None:
        config, data = b"virtual_prompt_style: prompt-tuning\n", self.weights(nested("intent", "slot-filling"))
        members = [(f"{dot}model_config.yaml", config), (f"{dot}model_weights.ckpt", data)]
        path = self.tar(tmp_path / "x.nemo", *members, mode=mode)
        assert detect_format(path) == "nemo"
        found = read_foreign(path, BASE)
        assert [one.task for one in found] == ["intent", "slot-filling"]
        for i, one in enumerate(found):
            assert torch.equal(table(one), TABLE + i)
            assert one.method == {"name": "prompt_tuning", "imported_from": "nemo", "task": one.task}

    def test_bare_checkpoints_new_and_old(self, tmp_path: Path) -> None:
        flat = {f"prompt_table.{key}": value for key, value in nested("intent")["prompt_table"].items()}
        flat["frozen_model.weight"] = torch.ones(2)
        for value in (nested("intent"), flat):
            path = torch_file(tmp_path / "x.ckpt", value)
            assert detect_format(path) == "nemo"
            found = the_one(path)
            assert found.task == "intent"
            assert torch.equal(table(found), TABLE)

    def test_an_encoder_alone(self, tmp_path: Path) -> None:
        for value in ({"prompt_table": {}, "prompt_encoder": {"w": torch.ones(2)}}, {"prompt_encoder": {}}):
            assert "finish P-tuning" in str(refused(torch_file(tmp_path / "x.ckpt", value)).hint)

    @pytest.mark.parametrize("value", [torch.ones(3), torch.ones(3, 6, dtype=torch.int64), [1], None])
    def test_other_tables(self, value: object, tmp_path: Path) -> None:
        broken = {"prompt_table": {"prompt_table.intent.prompt_embeddings.weight": value}}
        assert "no table" in refused(torch_file(tmp_path / "x.ckpt", broken)).what

    def test_links_and_paths_are_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside.ckpt"
        outside.write_bytes(self.weights(nested("stolen")))
        with tarfile.open(tmp_path / "x.nemo", "w") as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo("model_weights.ckpt")
                info.type, info.linkname = kind, str(outside)
                archive.addfile(info)
        assert "no model_weights.ckpt" in refused(tmp_path / "x.nemo").what
        self.tar(tmp_path / "y.nemo", ("../model_weights.ckpt", b"x"), ("/model_weights.ckpt", b"x"))
        before = sorted(tmp_path.rglob("*"))
        assert "no model_weights.ckpt" in refused(tmp_path / "y.nemo").what
        assert sorted(tmp_path.rglob("*")) == before

    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nemo, "MAX_TAR_BYTES", 1_000_000)
        path = self.tar(tmp_path / "x.nemo", ("zeros", bytes(2_000_000)), mode="w:gz")
        assert path.stat().st_size < 10_000
        assert "larger than a prompt table" in str(refused(path).got)
        monkeypatch.setattr(nemo, "MAX_WEIGHTS_BYTES", 100)
        assert "too large" in refused(self.tar(tmp_path / "y.nemo", ("model_weights.ckpt", bytes(101)))).what

    def test_damage(self, tmp_path: Path) -> None:
        data = self.weights(nested("intent"))
        whole = self.tar(tmp_path / "x.nemo", ("model_weights.ckpt", data)).read_bytes()
        for broken in (whole[: len(data) // 2], gzip.compress(whole)[:300], gzip.compress(b"no tar")):
            (tmp_path / "y.nemo").write_bytes(broken)
            refused(tmp_path / "y.nemo")
        assert "could run any code" in refused(self.tar(tmp_path / "z.nemo", ("model_weights.ckpt", evil()))).what


def evil() -> bytes:
    data = io.BytesIO()
    torch.save({"prompt_table": {"prompt_table.x.prompt_embeddings.weight": TABLE, "hook": print}}, data)
    return data.getvalue()


def cartridge(
    frozen: str | None, n_frozen: int = 2, layers: int = 3, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """As TrainableCache.save writes it: [1, K, tokens, D] per layer, keys with the sign +, values with -."""
    whole = [torch.randn(1, 2, 5, 4).to(dtype) for _ in range(2 * layers)]

    def part(name: str, cut: slice) -> dict[str, Any]:
        lists = {"keys": whole[:layers], "values": whole[layers:]}
        return {f"{name}_{k}": nn.ParameterList([nn.Parameter(t[:, :, cut]) for t in v]) for k, v in lists.items()}

    made = part("trainable", slice(n_frozen if frozen else 0, None))
    made |= part(frozen, slice(0, n_frozen)) if frozen else {}
    return made | {"whole": whole}


class TestCartridges:
    @pytest.mark.parametrize("frozen", ["frozen", "fixed", None])
    def test_files(self, frozen: str | None, tmp_path: Path) -> None:
        saved = cartridge(frozen)
        whole = saved.pop("whole")
        path = torch_file(tmp_path / "cache-step10.pt", saved)
        assert detect_format(path) == "cartridges"
        found = the_one(path)
        assert found.method == {
            "name": "cartridge",
            "imported_from": "cartridges",
            "frozen_tokens": 2 if frozen else 0,
        }
        assert isinstance(found.prompt, KVPrompt)
        for i, kv in enumerate(found.prompt.layers):
            assert kv is not None
            assert torch.equal(kv[0], whole[i][0])
            assert torch.equal(kv[1], whole[3 + i][0])
            assert kv[0].dtype == torch.bfloat16

    @pytest.mark.parametrize("empty", [nn.ParameterList(), None, []])
    @pytest.mark.parametrize("name", ["frozen", "fixed"])
    def test_no_frozen_tokens(self, name: str, empty: Any, tmp_path: Path) -> None:
        """Where the first of their own readers loses every layer."""
        saved = cartridge(None)
        whole = saved.pop("whole")
        found = the_one(torch_file(tmp_path / "x.pt", saved | {f"{name}_keys": empty, f"{name}_values": empty}))
        assert found.method["frozen_tokens"] == 0
        assert isinstance(found.prompt, KVPrompt)
        assert found.prompt.n_tokens == 5
        assert torch.equal(found.prompt.tensors()["layers.2.v"], whole[5][0])

    @pytest.mark.parametrize(
        ("ranges", "fine"), [([], True), ([(0, 2)], True), ([(1, 3)], False), ([(0, 1), (3, 4)], False)]
    )
    def test_frozen_tokens_amid_trained_ones(self, ranges: Any, fine: bool, tmp_path: Path) -> None:
        saved = cartridge("frozen")
        path = torch_file(tmp_path / "x.pt", saved | {"freeze_ranges": ranges, "whole": None})
        if fine:
            the_one(path)
        else:
            assert "amid trained ones" in refused(path).what

    def test_other_contents(self, tmp_path: Path) -> None:
        good = cartridge("frozen")
        good.pop("whole")
        short = cartridge("frozen", layers=2)
        two = nn.ParameterList([nn.Parameter(torch.ones(1, 2, 3)) for _ in range(3)])
        heads = nn.ParameterList([nn.Parameter(torch.ones(1, 3, 2, 4)) for _ in range(3)])
        empty = nn.ParameterList()
        for change in (
            {"frozen_keys": short["frozen_keys"]},
            {"trainable_values": short["trainable_values"], "frozen_values": short["frozen_values"]},
            {"trainable_keys": two},
            {"frozen_keys": heads},
            {"trainable_keys": None},
            {"trainable_keys": empty, "trainable_values": empty, "frozen_keys": empty, "frozen_values": empty},
        ):
            refused(torch_file(tmp_path / "x.pt", good | change))


class TestDetection:
    def test_by_content_not_by_name(self, tmp_path: Path) -> None:
        saved = cartridge(None)
        assert detect_format(torch_file(tmp_path / "prompt.npy", saved)) == "cartridges"
        assert set(formats()) == {
            "virtual-tokens",
            "peft",
            "google-prompt-tuning",
            "nemo",
            "cartridges",
            "koboldai",
            "tensors",
        }

    def test_what_is_none_of_them(self, tmp_path: Path) -> None:
        assert "no such file" in refused(tmp_path / "none").what
        assert "adapter_config.json" in refused(tmp_path).what
        (tmp_path / "x.txt").write_text("hello")
        assert "google-prompt-tuning" in str(refused(tmp_path / "x.txt").expected)
        (tmp_path / "empty").touch()
        assert refused(tmp_path / "empty").what == "unknown format"
        torch.save(TABLE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
        assert "bare pickle" in refused(tmp_path / "old.bin").what
        assert "no soft prompt of a known format" in refused(torch_file(tmp_path / "x.pt", {"a": [TABLE]})).what
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("readme.txt", "x")
        assert "no data.pkl" in refused(tmp_path / "x.zip").what

    def test_hints(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
        assert "the folder that holds it" in str(refused(tmp_path / "adapter_model.safetensors").hint)
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "card.json").write_text("{}")
        assert "softprompt artifact already" in refused(tmp_path / "own").what


def test_the_limit_of_arrays() -> None:
    assert npy_module.MAX_BYTES <= 2**30
