"""`softprompt import`, and what `softprompt export` writes, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from softprompt.errors import ConfigError, DataError, GeometryError, ModelError, StoreError, WrongBaseError
from softprompt.prompts import store
from softprompt.prompts.forms import prompt_digest
from tests.support.adapters import saved_adapter
from tests.support.shell import done, parsed, refused
from tests.support.tiny import tiny_lm


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return saved_adapter("PREFIX_TUNING", tiny_lm(), tmp_path / "adapter")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return saved_adapter("MULTITASK_PROMPT_TUNING", tiny_lm(), tmp_path / "tasks")


def test_import_and_use(adapter: Path, base: Path) -> None:
    result = done(
        "import", adapter, "--model", base, "--name", "tone", "--dtype", "float32", "--template", r"Q: {text}\nA:"
    )
    assert "tone: kv prompt, 5 virtual tokens, from peft (prefix_tuning)" in result.stdout
    assert 'then "Q: {text}\\nA:"\n' in result.stdout
    assert f"softprompt generate tone --model {base}" in result.stdout
    _, card = store.load("tone")
    assert (card.layout.follow, card.template["text"]) == ("Q:", "Q: {text}\nA:")
    assert card.method == {"name": "prefix_tuning", "imported_from": "peft"}
    assert "prefix_tuning" in done("list").stdout
    assert done("generate", "tone", "hello", "--dtype", "float32", "--max-new-tokens", 3).exit_code == 0
    assert (store.home() / "tone" / "README.md").read_text().startswith("---")


def test_several_tasks(tasks: Path, base: Path) -> None:
    given = ("import", tasks, "--model", base, "--dtype", "float32")
    lines = done(*given, "--name", "mpt", "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["mpt.0", "mpt.1", "mpt.2"]
    fact = parsed(*given, "--name", "one", "--task", 1, "--json")
    assert (fact["name"], fact["format"], fact["method"]["task"]) == ("one", "peft", "1")
    assert prompt_digest(store.load("one")[0]) == prompt_digest(store.load("mpt.1")[0])
    error = refused(*given, "--name", "two", "--task", 7)
    assert isinstance(error, ConfigError)
    assert error.expected == "0, 1, 2"


def test_nothing_is_written_if_one_task_has_no_place(tasks: Path, base: Path) -> None:
    given = ("import", tasks, "--model", base, "--dtype", "float32", "--name", "mpt")
    done(*given, "--task", 2)
    (store.home() / "mpt").rename(store.home() / "mpt.2")
    error = refused(*given)
    assert isinstance(error, StoreError) and "is there" in error.what
    assert not (store.home() / "mpt.0").exists()
    done(*given, "--overwrite")
    assert (store.home() / "mpt.0").exists()


def test_other_formats(base: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.ones((4, 32), dtype=np.float32))
    fact = parsed("import", tmp_path / "p.npy", "-m", base, "-n", "g", "--dtype", "float32", "--json")
    assert (fact["format"], fact["form"], fact["n_tokens"]) == ("google-prompt-tuning", "embedding", 4)
    wide = np.ones((4, 33), dtype=np.float32)
    np.save(tmp_path / "w.npy", wide)
    error = refused("import", tmp_path / "w.npy", "-m", base, "-n", "w", "--dtype", "float32")
    assert isinstance(error, GeometryError)
    assert not (store.home() / "w").exists()


def test_chat_and_bos(adapter: Path, base: Path, tmp_path: Path) -> None:
    from tests.support.saved import save_tiny

    given = ("import", adapter, "--dtype", "float32", "--json")
    assert (
        "{text}\" in the model's chat template"
        in done(*given[:-1], "--model", base, "--name", "words", "--chat").stdout
    )
    fact = parsed(*given, "--model", base, "--name", "a", "--chat")
    assert fact["layout"]["follow"].startswith("<|im_start|>user")
    with_bos = save_tiny(tmp_path / "bos", bos=True)
    assert parsed(*given, "--model", with_bos, "--name", "b")["layout"]["follow_bos"] is True
    assert parsed(*given, "--model", with_bos, "--name", "c", "--no-bos")["layout"]["follow_bos"] is False


def test_mistakes_come_before_the_model_is_loaded(adapter: Path, base: Path, tmp_path: Path, no_model: None) -> None:
    assert isinstance(refused("import", tmp_path / "none", "-m", base, "-n", "x"), StoreError)
    assert isinstance(refused("import", adapter, "-m", base, "-n", "NOT A NAME"), StoreError)
    error = refused("import", adapter, "-n", "x")
    assert isinstance(error, ConfigError) and "--model" in str(error.hint)
    (tmp_path / "prompts" / "x").mkdir(parents=True)
    assert isinstance(refused("import", adapter, "-m", base, "-n", "x"), StoreError)
    torch.save({"trainable_keys": print}, tmp_path / "evil.pt")
    assert "could run any code" in refused("import", tmp_path / "evil.pt", "-m", base, "-n", "y").what


def test_other_mistakes(adapter: Path, base: Path, strangers: dict[str, Path]) -> None:
    assert isinstance(refused("import", adapter, "-m", "no/such-model", "-n", "x"), ModelError)
    error = refused("import", adapter, "-m", base, "-n", "x", "--template", "no field")
    assert isinstance(error, DataError)
    assert not store.home().exists()


def test_export_and_back(trained: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = done("export", "ok", "--to", "peft", "--out", tmp_path / "out")
    assert "README.md says how" in result.stdout
    prompt, card = store.load("ok")
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    done("import", tmp_path / "out", "--model", base, "--name", "again", "--dtype", "float32")
    again, other = store.load("again")
    assert prompt_digest(again) == prompt_digest(prompt)
    assert (other.template, other.layout.follow) == (card.template, card.layout.follow)


def test_exporting_bos_loads_the_model(base: Path, tmp_path: Path) -> None:
    from softprompt.prompts.card import Card, Layout
    from tests.support.cases import random_prompt
    from tests.support.saved import save_tiny

    lm = tiny_lm()
    folder = save_tiny(tmp_path / "bos", bos=True)
    facts: dict[str, Any] = {"name": "e", "form": "embedding", "n_tokens": 3, "sha256": "0" * 64}
    geometry = lm.geometry.to_dict() | {"base": str(folder)}
    card = Card(**facts, base=geometry, layout=Layout(bos=True), template={"kind": "text", "text": "{text}"})
    store.save("e", random_prompt(lm, "embedding", 3, 0), card)
    done("export", "e", "--out", tmp_path / "out", "--dtype", "float32")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["num_virtual_tokens"], config["base_model_name_or_path"]) == (4, "bos")


def test_another_base_needs_force(adapter: Path, base: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/else"}))
    given = ("import", adapter, "--model", base, "--name", "tone", "--dtype", "float32")
    error = refused(*given)
    assert isinstance(error, WrongBaseError) and "--force" in str(error.hint)
    assert not store.home().exists()
    assert "made for    someone/else" in done(*given, "--force").stdout


@pytest.mark.parametrize("name", ["prompt.pt", "prompt.safetensors"])
def test_a_tensor_alone(name: str, base: Path, tmp_path: Path) -> None:
    table = torch.randn(4, 32)
    torch.save(table, tmp_path / name) if name.endswith("pt") else save_file({"p": table}, tmp_path / name)
    done("import", tmp_path / name, "-m", base, "-n", "tone", "--dtype", "float32")
    prompt, card = store.load("tone")
    assert torch.equal(prompt.tensors()["embeddings"], table)
    assert card.method == {"name": "prompt_tuning", "imported_from": "tensors"}


def test_export_mistakes(trained: Path, tmp_path: Path) -> None:
    assert isinstance(refused("export", "none", "--out", tmp_path / "a"), StoreError)
    (tmp_path / "there").mkdir()
    assert "already" in refused("export", "ok", "--out", tmp_path / "there").what
    error = refused("export", "ok", "--to", "gguf", "--out", tmp_path / "a")
    assert isinstance(error, ConfigError) and "lora, mlx" in str(error.expected)


@pytest.mark.parametrize("verb", ["import", "export"])
def test_help_has_examples(verb: str) -> None:
    assert f"softprompt {verb} " in done(verb, "--help").stdout
