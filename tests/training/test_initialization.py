"""Demonstrations: worked examples as virtual tokens, every label in turn, each row blind to itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.compaction.selection import SelectionInput
from softprompt.data.records import Record
from softprompt.data.splits import Splits
from softprompt.data.template import Template
from softprompt.editing.compose import select
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.text_prompt import APART, instruction_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import Budget
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.training import initialization
from softprompt.training.auto import SHORT_RUN, Choice
from softprompt.training.config import resolve
from softprompt.training.demonstrations import demonstrations, in_turn
from softprompt.training.prepare import PreparedTask, prepare
from softprompt.training.run import build_trial, fit
from tests.support.rows import records
from tests.support.saved import save_tiny, settings
from tests.support.tiny import tiny_lm

END = "<|im_end|>"  # also after a demonstration: it ends as a row does in training
PLAIN, CHAT = Template("text", "Row: {text}\nLabel:"), Template("chat", "{text}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", bos=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))


def rows(count: int = 9) -> list[Record]:
    return records(*({"text": f"row {i}", "label": "odd" if i % 3 else "even"} for i in range(count)))


def task(template: Template, found: list[Record]) -> PreparedTask:
    return PreparedTask("", Splits(found, found[:1], []), template, [], [], 0)


def made(template: Template, found: list[Record], room: int, opening: str | None = None) -> Any:
    return demonstrations(task(template, found), tiny_lm(), opening, room, 0)


def test_labels_take_turns() -> None:
    found = [record.target for record in in_turn(rows(), 3)]
    assert [set(found[i : i + 2]) for i in (0, 2, 4)] == [{"odd", "even"}] * 3
    assert found[6:] == ["odd"] * 3
    assert in_turn(rows(), 3) == in_turn(rows(), 3) != in_turn(rows(), 4)


def test_they_are_whole_rows_behind_the_instruction() -> None:
    lm, own = tiny_lm(), rows()
    found = made(PLAIN, own, 150)
    text = lm.tokenizer.decode(list(found.ids))
    assert isinstance(text, str)
    opening = instruction_for(("even", "odd")) + APART
    assert text.startswith(opening)
    shown = [part for part in text.removeprefix(opening).split(APART) if part]
    by_text = {f"Row: {r.fields['text']}\nLabel: {r.target}{END}": r for r in own}
    assert len(shown) >= 3 and all(part in by_text for part in shown)
    assert len(found.ids) <= 150
    for part in shown:
        first, last = found.spans[by_text[part].where]
        assert lm.tokenizer.decode(list(found.ids[first:last])) == part + APART


def test_in_chat_they_are_turns() -> None:
    lm = tiny_lm()
    found = made(CHAT, rows(), 200, "Odd?")
    text = lm.tokenizer.decode(list(found.ids))
    turn = "<|im_start|>user\nrow {}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    every = [turn.format(i, "odd" if i % 3 else "even") for i in range(9)]
    shown = str(text).removeprefix("Odd?" + APART)
    assert sum(shown.count(one) for one in every) == len(found.spans) >= 2
    assert sum(len(one) for one in every if one in shown) == len(shown)


def test_not_one_fits() -> None:
    with pytest.raises(ConfigError, match=r"(?s)not one demonstration fits.*n-tokens"):
        made(PLAIN, rows(), 20)


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_training_starts_from_in_context_learning(method: str, base: Path, tmp_path: Path) -> None:
    """Rows after the fresh prompt see the demonstrations as text; a demonstration's own row does not see itself."""
    lm = tiny_lm("llama", bos=True)
    config = settings(base, tmp_path, method__name=method, method__init="demonstrations", method__n_tokens=170)
    trial = build_trial(prepare(config), lm).trial
    (own,) = trial.tasks
    shown = [row for row in own.train if row.masked_span != (0, 0)]
    others = [row for row in own.train if row.masked_span == (0, 0)]
    assert len(shown) >= 2 and len(others) >= 2
    assert all(row.masked_span == (0, 0) for row in own.validation)
    prefixes, numbers = trial.prefixes([shown[0], others[0], shown[1], others[1]])
    assert [prefixes[n].masked_span for n in numbers] == [shown[0].masked_span, (0, 0), shown[1].masked_span, (0, 0)]
    assert len(prefixes) == 3, "rows that see all share one prefix"
    lead = int(method == "prefix-tuning")
    found = demonstrations(task_of(config), lm, None, 170 - lead, 0)
    ids = [*([3] if method == "prefix-tuning" else own.lead), *found.ids, *own.follow]
    check_text(lm, prefixes[numbers[1]], ids, list(others[0].ids))
    hidden_text = [
        t for i, t in enumerate(found.ids, int(method == "prefix-tuning")) if not in_span(i, shown[0].masked_span)
    ]
    assert len(hidden_text) == len(found.ids) - (shown[0].masked_span[1] - shown[0].masked_span[0])
    assert str(lm.tokenizer.decode(hidden_text)).count(text_of(lm, shown[0].ids)) == 0
    assert str(lm.tokenizer.decode(list(found.ids))).count(text_of(lm, shown[0].ids)) == 1


def task_of(config: Any) -> PreparedTask:
    return prepare(config, overwrite=True).tasks[0]


def in_span(i: int, span: tuple[int, int]) -> bool:
    return span[0] <= i < span[1]


def text_of(lm: FrozenLM, ids: tuple[int, ...]) -> str:
    return str(lm.tokenizer.decode(list(ids))).strip() + APART


@torch.no_grad()
def check_text(lm: FrozenLM, prefix: Prefix, before: list[int], row: list[int]) -> None:
    """The prefix acts like the text `before`."""
    wanted = lm.hf_model(input_ids=torch.tensor([before + row], device=lm.device), use_cache=False).logits[
        0, len(before) :
    ]
    assert_close(
        lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, [prefix]), [Row(row)])), wanted, rtol=1e-3, atol=1e-3
    )


def test_best_takes_the_start_with_the_lowest_validation_loss(base: Path, tmp_path: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    config = settings(base, tmp_path, method__init="best", method__n_tokens=170)
    built = build_trial(prepare(config), lm)
    assert set(built.init_losses) == {"text", "labels", "vocab", "demonstrations"}, (
        "selected: fewer tokens are there than wanted"
    )
    best = min(built.init_losses, key=built.init_losses.__getitem__)
    assert built.prepared.config.method.init == best, "what the card will say"
    alone = build_trial(prepare(settings(base, tmp_path, method__init=best, method__n_tokens=170)), lm)
    assert alone.init_losses == {}
    for name, tensor in alone.trial.learner.state_dict().items():
        assert torch.equal(tensor, built.trial.learner.state_dict()[name])
    few = build_trial(prepare(settings(base, tmp_path, method__init="best", method__n_tokens=6)), lm)
    assert set(few.init_losses) == {"text", "selected", "labels", "vocab"}, "there was no room for a demonstration"
    assert few.trial.learner.freeze()[0].n_tokens == 6


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "residual"])
def test_rewinding_starts_from_some_tokens_of_the_start(method: str, base: Path, tmp_path: Path) -> None:
    """As they were before training, the keys moved together."""
    lm = tiny_lm("llama", bos=True)
    form = "prefix-tuning" if method == "prefix-tuning" else "prompt-tuning"
    whole = build_trial(prepare(settings(base, tmp_path, method__name=form)), lm).trial
    config = settings(base, tmp_path, method__name=method, method__kept="4,0,2")
    trial = build_trial(prepare(config), lm).trial
    (kept,), (every,) = trial.learner.freeze(), whole.learner.freeze()
    wanted = select(every, [0, 2, 4], lm)
    assert kept.n_tokens == 3
    assert_close(kept.tensors(), wanted.tensors())
    with pytest.raises(ConfigError, match="no such virtual tokens"):
        build_trial(prepare(settings(base, tmp_path, method__name=method, method__kept="0,6")), lm)


@pytest.mark.parametrize("recipe", ["auto", "fixed"])
def test_a_prompt_to_start_from_says_how_long(recipe: str, base: Path, tmp_path: Path) -> None:
    """Without a number of tokens; an embedding prompt that becomes keys and values stands after BOS there."""
    lm = tiny_lm("llama", bos=True)
    fit(prepare(settings(base, tmp_path, name="old", method__name="prompt-tuning", method__n_tokens=5)), lm)
    old = store.load("old", lm.geometry)[0]
    flags = {"model": str(base), "data": str(tmp_path / "data"), "name": "new", "recipe": recipe}
    flags |= {"method.init": "prompt", "method.init_from": "old"}
    for method, length in (("prompt-tuning", 5), ("prefix-tuning", 6)):
        built = build_trial(prepare(resolve(flags | {"method.name": method})), lm)
        prepared = built.prepared
        (start,) = built.trial.learner.freeze()
        assert start.n_tokens == prepared.config.method.n_tokens == length
        assert "method.n_tokens" not in [choice.setting for choice in prepared.choices]
        if method == "prompt-tuning":
            assert_close(start.tensors(), old.tensors())
    with pytest.raises(ConfigError, match="another number of virtual tokens"):
        build_trial(prepare(resolve(flags | {"method.name": "prompt-tuning", "method.n_tokens": 7})), lm)


def test_selected_reads_demonstrations_with_rows_that_are_not_shown(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, asked = tiny_lm("llama", bos=True), list[SelectionInput]()
    real = initialization.selected_prompt

    def spy(lm: FrozenLM, form: str, readings: list[SelectionInput], *rest: Any) -> SoftPrompt:
        asked.extend(readings)
        return real(lm, form, readings, *rest)

    monkeypatch.setattr(initialization, "selected_prompt", spy)
    config = settings(base, tmp_path, method__init="selected", method__text_tokens=110, method__n_tokens=9)
    trial = build_trial(prepare(config), lm).trial
    (prompt,) = trial.learner.freeze()
    assert prompt.n_tokens == 9
    found = demonstrations(task_of(config), lm, None, 110, 0)
    assert len(found.spans) >= 1
    (reading,) = asked
    assert reading.ids == (3, *found.ids)
    assert reading.rows and not {row.where for row in reading.rows} & found.spans.keys()
    assert all(row.masked_span == (0, 0) for row in trial.tasks[0].train)


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_a_model_that_cannot_be_listened_to_starts_unfitted(
    method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(*args: object) -> None:
        raise UnsupportedModelError("its attention cannot be listened to")

    lm, chosen = tiny_lm("llama", bos=True), list[SoftPrompt]()
    real = initialization.selected_prompt

    def spy(*given: Any) -> SoftPrompt:
        chosen.append(real(*given))
        return chosen[-1]

    monkeypatch.setattr(initialization, "selected_prompt", spy)
    config = settings(base, tmp_path, method__init="selected", method__text_tokens=110, method__name=method)
    prepared = prepare(config)
    (fitted,) = build_trial(prepared, lm).trial.learner.freeze()
    monkeypatch.setattr(initialization, "collect_targets", deaf)
    (unfitted,) = build_trial(prepared, lm).trial.learner.freeze()
    assert_close(unfitted.tensors(), chosen[1].tensors())
    assert any(not torch.equal(own, unfitted.tensors()[name]) for name, own in fitted.tensors().items())


def test_what_is_not_fitted(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = list[int]()

    def spy(lm: FrozenLM, prompt: SoftPrompt, *rest: object) -> SoftPrompt:
        fitted.append(1)
        return prompt

    def begin(**changes: object) -> int:
        config = settings(base, tmp_path, method__init="selected", method__text_tokens=110, **changes)
        fitted.clear()
        build_trial(prepare(config), tiny_lm("llama", bos=True))
        return len(fitted)

    monkeypatch.setattr(initialization, "fit_to_attention", spy)
    assert begin() == 1
    assert begin(train__minutes=SHORT_RUN, train__steps=None) == 1
    assert begin(train__minutes=1.0, train__steps=None) == 0, "no time for it"
    monkeypatch.setattr(initialization, "SELECTION_ROWS", 1)
    assert begin() == 0, "more classes than rows that are asked"


def test_the_start_keeps_to_its_share_of_the_minutes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Budget]()

    def spy(lm: FrozenLM, prompt: SoftPrompt, rows: object, lead: object, follow: object, *rest: Budget) -> SoftPrompt:
        asked.append(rest[0])
        return prompt

    monkeypatch.setattr(initialization, "fit_to_attention", spy)
    for minutes, seconds in ((None, None), (2.0, 12.0)):
        changes = {"train__minutes": minutes, "train__steps": None if minutes else 3}
        config = settings(base, tmp_path, method__init="selected", method__text_tokens=110, **changes)
        build_trial(prepare(config), tiny_lm("llama", bos=True))
        assert asked[-1] == Budget(initialization.FIT_STEPS, seconds)


@pytest.mark.parametrize("missing", ["keys", "room"])
def test_where_the_start_that_auto_chose_cannot_be_had_it_is_the_text(
    missing: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, as in the result of `best`; a start that the user asked for is refused instead."""
    lm, room = tiny_lm("llama", bos=True), 110 if missing == "keys" else 2

    def unmovable(*args: object) -> None:
        raise UnsupportedModelError("its keys cannot be moved")

    if missing == "keys":
        monkeypatch.setattr(initialization, "selected_prompt", unmovable)
    config = settings(base, tmp_path, method__init="selected", method__text_tokens=room)
    prepared = prepare(config)
    with pytest.raises(UnsupportedModelError if missing == "keys" else ConfigError):
        build_trial(prepared, lm)
    chosen = replace(prepared, choices=(Choice("method.init", "selected", "the best start"),))
    built = build_trial(chosen, lm)
    assert built.prepared.config.method.init == "text"
    assert list(built.init_losses) == ["text"] and built.init_losses["text"] > 0
    plain = build_trial(prepare(settings(base, tmp_path)), lm).trial
    assert_close(built.trial.learner.state_dict(), plain.learner.state_dict(), rtol=0, atol=0)
    best = prepare(settings(base, tmp_path, method__init="best", method__text_tokens=room))
    assert "selected" not in build_trial(best, lm).init_losses
