"""Before a run: every check is made before weights are loaded, and the prompt starts where the settings say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.compaction.attention_matching import collect_targets, fit_to_attention
from softprompt.compaction.selection import (
    RUN_LENGTHS,
    SelectionInput,
    lowest_loss,
    select_by_attention,
    select_ids_by_attention,
)
from softprompt.data.records import Record
from softprompt.data.spans import target_ids
from softprompt.data.splits import Splits
from softprompt.data.template import Template, bos_ids
from softprompt.errors import ConfigError, DataError, ModelError, StoreError
from softprompt.formatting.formatted_prompt import layout_for, layout_ids
from softprompt.formatting.text_prompt import instruction_for
from softprompt.models import loading
from softprompt.prompts.forms import EmbeddingPrompt
from softprompt.training import base_model, initialization, run
from softprompt.training import prepare as prepare_module
from softprompt.training.config import Config
from softprompt.training.initialization import TEXT_ROWS, start_text, training_start
from softprompt.training.prepare import PreparedTask
from softprompt.training.run import prepare
from tests.support.rows import records, write_jsonl
from tests.support.saved import REAL, save_tiny, settings
from tests.support.tiny import SPECIAL, tiny_lm, tiny_seq2seq, tiny_seq2seq_model, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer puts a BOS first."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", bos=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(loading, "_load_model", lambda *_, **__: pytest.fail("weights were loaded"))


@pytest.mark.usefixtures("no_weights")
def test_what_is_prepared(base: Path, tmp_path: Path, home: Path) -> None:
    config = settings(base, tmp_path)
    prepared = prepare(config)
    assert prepared.config == config
    assert (prepared.folder, prepared.run) == (home / "tone", home / ".runs" / "tone")
    assert prepared.tasks[0].template == REAL, "line breaks as meant"
    assert (len(prepared.tasks[0].train), len(prepared.tasks[0].validation), prepared.tasks[0].dropped) == (24, 8, 0)
    first, decode = prepared.tasks[0].train[0], tiny_lm().tokenizer.decode
    assert decode(list(first.ids)) == " row 0\nLabel: even<|im_end|>"
    assert decode([i for i, m in zip(first.ids, first.mask, strict=True) if m]) == " even<|im_end|>"
    assert first.where.endswith("train.jsonl:1")
    assert not home.exists(), "nothing is written yet"


@pytest.mark.usefixtures("no_weights")
def test_without_a_template_the_model_is_talked_to(base: Path, tmp_path: Path) -> None:
    assert prepare(settings(base, tmp_path, template=None)).tasks[0].template == Template("chat", "{text}")
    assert prepare(settings(base, tmp_path, template=None, chat=False)).tasks[0].template == Template("text", "{text}")
    assert prepare(settings(base, tmp_path, chat=True)).tasks[0].template == Template("chat", REAL.text)
    assert prepare(settings(base, tmp_path, template="A\\t{text}")).tasks[0].template.text == "A\t{text}"


@pytest.mark.usefixtures("no_weights")
def test_a_path_is_a_name_too(base: Path, tmp_path: Path) -> None:
    prepared = prepare(settings(base, tmp_path, name=str(tmp_path / "mine" / "Tone")))
    assert (prepared.folder, prepared.run) == (tmp_path / "mine" / "Tone", tmp_path / "mine" / ".runs" / "Tone")


def bad_row(base: Path, folder: Path) -> Config:
    config = settings(base, folder)
    with (folder / "data" / "train.jsonl").open("a") as file:
        file.write('{"text": "x"}\n')
    return config


WRONG: dict[str, tuple[Callable[[Path, Path], Config], type[Exception], str]] = {
    "no name": (lambda b, p: settings(b, p, name=None), ConfigError, "name is not given.*softprompt train"),
    "no data": (lambda b, p: settings(b, p, data=None), ConfigError, "data is not given.*softprompt train"),
    "odd name": (lambda b, p: settings(b, p, name="Tone!"), StoreError, "not a usable name"),
    "data not there": (lambda b, p: settings(b, p, data=str(p / "x.jsonl")), DataError, r"x\.jsonl"),
    "bad row": (bad_row, DataError, r"train\.jsonl:25"),
    "no such field": (lambda b, p: settings(b, p, template="{txt}"), DataError, r"did you mean \{text\}"),
    "no field": (lambda b, p: settings(b, p, template="Hi"), DataError, "the template has no field"),
    "long rows": (
        lambda b, p: settings(b, p, max_length=19),
        DataError,
        r"train\.jsonl:11: 7 of 24 rows are too long.*--drop-long",
    ),
    "all rows long": (lambda b, p: settings(b, p, max_length=5, drop_long=True), DataError, "no row is left"),
    "no such model": (lambda b, p: settings(b, p, model=str(p / "missing")), ModelError, "missing: no such file"),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("make", "error", "text"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_before_weights_are_loaded(
    make: Callable[[Path, Path], Config], error: type[Exception], text: str, base: Path, tmp_path: Path, home: Path
) -> None:
    with pytest.raises(error, match=f"(?s){text}"):
        prepare(make(base, tmp_path))
    assert not home.exists()


@pytest.mark.usefixtures("no_weights")
def test_a_tracker_that_is_not_installed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    with pytest.raises(ConfigError, match=r"(?s)wandb is not installed.*pip install"):
        prepare(settings(base, tmp_path, train__track="wandb"))


@pytest.mark.usefixtures("no_weights")
def test_long_rows_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    prepared = prepare(settings(base, tmp_path, max_length=19, drop_long=True, data=str(short_and_long(tmp_path))))
    assert [row.where.rpartition(":")[2] for row in prepared.tasks[0].train] == ["1", "2", "4"]
    assert (len(prepared.tasks[0].validation), prepared.tasks[0].dropped) == (1, 3)
    assert len(prepared.tasks[0].splits.train) == 5, "the digest is still that of the file"


def short_and_long(folder: Path) -> Path:
    """Three of five training rows and one of two validation rows have at most 19 tokens."""
    data = folder / "mixed"
    data.mkdir()
    rows = [{"text": text, "label": "odd"} for text in ("a", "bb", "c" * 40, "dd", "e" * 41)]
    write_jsonl(data / "train.jsonl", *rows)
    write_jsonl(data / "validation.jsonl", rows[0] | {"text": "z"}, rows[2] | {"text": "y" * 50})
    return data


@pytest.mark.usefixtures("no_weights")
def test_a_name_that_is_taken(base: Path, tmp_path: Path, home: Path) -> None:
    (home / "tone").mkdir(parents=True)
    (home / "tone" / "card.json").write_text("{}")
    config = settings(base, tmp_path)
    for resume in (False, True):
        with pytest.raises(StoreError, match=r"(?s)tone: a soft prompt of that name.*--name.*--overwrite"):
            prepare(config, resume=resume)
    assert prepare(config, overwrite=True).folder == home / "tone"
    assert prepare(settings(base, tmp_path, name="tone2")).folder == home / "tone2"


@pytest.mark.usefixtures("no_weights")
def test_an_unfinished_run(base: Path, tmp_path: Path, home: Path) -> None:
    (home / ".runs" / "tone" / "checkpoint-000003").mkdir(parents=True)
    config = settings(base, tmp_path)
    with pytest.raises(StoreError, match=r"(?s)\.runs/tone: an unfinished run.*--resume.*--overwrite"):
        prepare(config)
    assert prepare(config, resume=True) == prepare(config, overwrite=True)
    (home / ".runs" / "tone" / "checkpoint-000003").rmdir()
    assert prepare(config).run == home / ".runs" / "tone", "a finished run leaves its log, and that is no hindrance"


def test_remote_code_only_on_demand(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = prepare_module.load_tokenizer

    def listen(name: str, *, trust_remote_code: bool = False) -> Any:
        asked.append(trust_remote_code)
        return real(name)

    monkeypatch.setattr(prepare_module, "load_tokenizer", listen)
    prepare(settings(base, tmp_path))
    prepare(settings(base, tmp_path), trust_remote_code=True)
    assert asked == [False, True]


def test_classes_and_instruction() -> None:
    rows = records(
        *({"text": t, "label": label} for t, label in zip("abcd", ("no", "yes", "no", "may be"), strict=True))
    )
    task = of(rows, REAL)
    assert task.classes == ("may be", "no", "yes")
    assert start_text(task) == instruction_for(task.classes)
    assert all(label in instruction_for(task.classes) for label in ("may be", "no", "yes"))
    assert of(records({"prompt": "1 + 1", "completion": "2"}), REAL).classes == ()


def of(rows: list[Record], template: Template) -> PreparedTask:
    return PreparedTask("", Splits(rows, rows[:1], []), template, [], [], 0)


def test_the_start_text_of_other_tasks_is_their_first_rows() -> None:
    asked = records(*({"prompt": f"{i} + 1", "completion": str(i + 1)} for i in range(TEXT_ROWS + 3)))
    text = start_text(of(asked, Template("text", "Q: {prompt}\nA:")))
    assert text.split("\n\n") == [f"Q: {i} + 1\nA: {i + 1}" for i in range(TEXT_ROWS)]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    talk = records({"messages": turns}, {"messages": [*turns[:1], {"role": "assistant", "content": "Yes?"}]})
    assert start_text(of(talk, Template("chat"))) == "Hi\n\nHello!\n\nHi\n\nYes?"


@pytest.mark.parametrize("method", ["prefix-tuning", "prefix-tuning-mlp", "prompt-tuning"])
def test_where_virtual_tokens_start(method: str, base: Path, tmp_path: Path) -> None:
    """A KV prompt brings its BOS and may freeze it; an embedding prompt has neither."""
    lm = tiny_lm("llama", bos=True)
    changes = {"method__name": method, "train__seed": 5}
    start, _ = training_start(prepare(settings(base, tmp_path, **changes, method__init="labels")), lm)
    kv = method != "prompt-tuning"
    assert start.lead == ((SPECIAL.index("<s>"),) if kv else ())
    assert (start.n_tokens, start.init, start.seed) == (6, "labels", 5)
    assert start.text == tuple(lm.encode(instruction_for(["even", "odd"])))
    assert start.labels == (tuple(lm.encode(" even")), tuple(lm.encode(" odd")))
    assert start.labels[0] == tuple(target_ids("even", REAL, lm.tokenizer)), "as they follow a row"
    mine, _ = training_start(prepare(settings(base, tmp_path, **changes, method__init_text="Odd or even?")), lm)
    assert mine.text == tuple(lm.encode("Odd or even?"))


def test_init_selected_starts_from_what_rows_look_at(base: Path, tmp_path: Path) -> None:
    """Fewer virtual tokens than the text has, fitted to make up for the others."""
    text = "A text of some length, which says a lot."

    def opened(**changes: Any) -> Any:
        given = {"method__init": "selected", "method__init_text": text, "method__n_tokens": 8}
        config = settings(base, tmp_path, **(given | changes))
        return run.build_trial(prepare(config), lm).trial

    lm = loading.load_model(str(base))
    (prompt,) = opened().learner.freeze()
    (task,) = prepare(settings(base, tmp_path)).tasks
    _, follow = layout_ids(lm, layout_for(lm, task.template, "kv"))
    reading = SelectionInput(
        (*bos_ids(lm.tokenizer), *lm.encode(text)), follow, task.train[: initialization.SELECTION_ROWS]
    )
    wanted = fit_to_attention(lm, select_by_attention(lm, [reading], 8), collect_targets(lm, [reading]), follow=follow)
    assert_close(prompt.tensors(), wanted.tensors())
    with pytest.raises(ConfigError, match="fewer tokens"):
        opened(method__n_tokens=80)


def test_init_selected_of_an_embedding_prompt(base: Path, tmp_path: Path) -> None:
    """The best run of the text's own tokens, between what stands around an embedding prompt."""
    lm, text = loading.load_model(str(base)), "A text of some length, which says a lot."
    given = {"method__init": "selected", "method__init_text": text, "method__n_tokens": 8}
    config = settings(base, tmp_path, **given, method__name="prompt-tuning")
    (prompt,) = run.build_trial(prepare(config), lm).trial.learner.freeze()
    (task,) = prepare(config).tasks
    between = layout_ids(lm, layout_for(lm, task.template, "embedding"))
    assert between[0] == tuple(bos_ids(lm.tokenizer))
    _, follow = layout_ids(lm, layout_for(lm, task.template, "kv"))
    rows = task.train[: initialization.SELECTION_ROWS]
    reading = SelectionInput((*bos_ids(lm.tokenizer), *lm.encode(text)), follow, rows, 1)
    runs = [tuple(lm.encode(text)[:8]), *select_ids_by_attention(lm, [reading], 8, RUN_LENGTHS)]
    near = EmbeddingPrompt(lm.embed(torch.tensor(lowest_loss(lm, runs, between, reading.rows))).float())
    assert_close(prompt.tensors(), fit_to_attention(lm, near, collect_targets(lm, [reading]), *between).tensors())
    assert not torch.equal(prompt.tensors()["embeddings"], near.embeddings)


def test_init_selected_is_for_causal_models(tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    tiny_seq2seq_model().save_pretrained(folder)
    tiny_tokenizer(closing=True).save_pretrained(folder)
    prepared = prepare(settings(folder, tmp_path, method__init="selected"))
    with pytest.raises(ConfigError, match=r"(?s)causal models.*encoder-decoder.*--init text"):
        run.build_trial(prepared, tiny_seq2seq())
