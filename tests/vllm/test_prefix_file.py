"""A compiled prefix is its prefix: the same answers after it, one name for one content, and no trust in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from softprompt.data.template import VIRTUAL, Template
from softprompt.errors import StoreError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import KVPrompt
from softprompt.vllm.prefix_file import (
    compile_prefix,
    prefix_digest,
    prefix_path,
    prefix_shape,
    read_prefix,
    write_prefix,
)
from tests.support.cases import mixed_prefixes, random_prompt, text_ids
from tests.support.engines import generated
from tests.support.tiny import tiny_lm, tiny_seq2seq


def as_kv(compiled_L2TKD: Tensor) -> Prefix:
    """What an engine makes of it: keys and values at positions 0, 1, …, and text after."""
    return Prefix(KVPrompt(tuple((keys.transpose(0, 1), values.transpose(0, 1)) for keys, values in compiled_L2TKD)))


def check_same_answers(lm: FrozenLM, prefix: Prefix) -> None:
    compiled, ids = compile_prefix(lm, prefix), text_ids(6, 3)
    assert compiled.shape[:3] == (len(lm.geometry.layers), 2, len(prefix.lead) + length(prefix) + len(prefix.follow))
    assert generated(lm, as_kv(compiled), ids, Sampling(20), ()) == generated(lm, prefix, ids, Sampling(20), ())


def length(prefix: Prefix) -> int:
    return prefix.prompt.n_tokens if prefix.prompt else 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("i", range(5))
def test_answers_behind_it(family: str, i: int) -> None:
    lm = tiny_lm(family)
    check_same_answers(lm, mixed_prefixes(lm)[i])


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_virtual_tokens_in_the_system_turn(form: str) -> None:
    """Lead and follow of such a prompt are part of it, as its card lays them out."""
    lm, template = tiny_lm("llama", bos=True), Template("chat", "{text}", VIRTUAL)
    formatted = FormattedPrompt(random_prompt(lm, form, 5, 1), template, layout_for(lm, template, form))
    prefix = formatted.prefix(lm)
    assert prefix.follow and bool(prefix.lead) == (form == "embedding")
    check_same_answers(lm, prefix)


def test_layers_that_do_not_look_alike_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="differ in shape"):
        compile_prefix(tiny_lm("llama"), Prefix())
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        compile_prefix(tiny_seq2seq(), mixed_prefixes(tiny_lm("llama"))[0])


def test_a_name_is_its_content(tmp_path: Path) -> None:
    one = torch.randn(2, 2, 5, 3, 4)
    name = write_prefix(tmp_path, one)
    before = prefix_path(tmp_path, name).stat()
    assert write_prefix(tmp_path, one.clone()) == name == prefix_digest(one)
    assert prefix_path(tmp_path, name).stat().st_mtime_ns == before.st_mtime_ns, "what is there stays"
    others = {write_prefix(tmp_path, other) for other in (one + 1e-6, one.double(), one.reshape(2, 2, 3, 5, 4))}
    assert len(others | {name}) == 4
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(others | {name}), "nothing else is left"


def test_a_server_of_another_user_may_read_it(tmp_path: Path) -> None:
    assert prefix_path(tmp_path, write_prefix(tmp_path, torch.randn(2, 2, 3, 2, 4))).stat().st_mode & 0o777 == 0o644


def test_read_back_in_parts(tmp_path: Path) -> None:
    one = torch.randn(3, 2, 5, 4, 2)
    name = write_prefix(tmp_path, one)
    assert prefix_shape(tmp_path, name) == (3, 5, 4, 2)
    assert torch.equal(read_prefix(tmp_path, name, [0, 1, 2], slice(0, 4)), one)
    assert torch.equal(read_prefix(tmp_path, name, [2, 0], slice(1, 3)), one[[2, 0], :, :, 1:3])
    with pytest.raises(StoreError, match="cannot be read"):
        read_prefix(tmp_path, name, [3], slice(0, 4))


@pytest.mark.parametrize("name", ["../" + "0" * 29, "0" * 32, "x" * 32, "", None, 7, ["0" * 32], "0" * 32 + "\n"])
def test_what_is_no_compiled_prefix(name: object, tmp_path: Path) -> None:
    assert prefix_shape(tmp_path, name) is None


def test_a_damaged_file(tmp_path: Path) -> None:
    name = write_prefix(tmp_path, torch.randn(2, 2, 5, 3, 4))
    prefix_path(tmp_path, name).write_bytes(b"torn")
    assert prefix_shape(tmp_path, name) is None
    with pytest.raises(StoreError, match="cannot be read"):
        read_prefix(tmp_path, name, [0], slice(0, 1))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write_prefix(tmp_path / "none", torch.randn(2, 2, 5, 3, 4))
