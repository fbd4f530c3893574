"""The recipe: what is given stays, what is not is chosen, and the choice can be written down."""

from __future__ import annotations

import pytest

from softprompt.data.tokenize import Example
from softprompt.settings import to_yaml
from softprompt.training.auto import TaskStats, choose
from softprompt.training.config import Config, resolve
from softprompt.training.pace import Pace

FACTS = {
    "few rows, two classes": TaskStats(1, 32, 2, 30.0, 2048),
    "many rows, two classes": TaskStats(1, 7000, 2, 30.0, 2048),
    "many classes": TaskStats(1, 8000, 77, 20.0),
    "long rows": TaskStats(1, 1800, 2, 180.0),
    "generation": TaskStats(1, 8000, 0, 70.0),
    "tasks": TaskStats(3, 9000, 4, 50.0),
}


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS.keys())
def test_every_choice_says_why_and_is_made(facts: TaskStats) -> None:
    config, choices = choose(resolve({"train.minutes": 5}), facts)
    assert choices, "it chooses something"
    for choice in choices:
        section, name = choice.setting.split(".")
        assert getattr(getattr(config, section), name) == choice.value
        assert len(choice.why) > 10
    assert len({choice.setting for choice in choices}) == len(choices)


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS.keys())
def test_it_is_the_run_that_a_user_could_write_down(facts: TaskStats, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The settings of the run, read again, choose nothing and are the same."""
    config, _ = choose(resolve({"name": "a", "train.minutes": 5}), facts)
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = resolve({}, path)
    assert again == config
    assert choose(again, facts) == (config, ())


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS.keys())
def test_what_the_user_says_stays(facts: TaskStats) -> None:
    for choice in choose(resolve({}), facts)[1]:
        value = getattr(getattr(Config(), choice.setting.split(".")[0]), choice.setting.split(".")[1])
        config, rest = choose(resolve({choice.setting: value}), facts)
        assert getattr(getattr(config, choice.setting.split(".")[0]), choice.setting.split(".")[1]) == value
        assert choice.setting not in [other.setting for other in rest]


def test_a_model_with_states_gets_embeddings() -> None:
    """Keys and values are not all that such a model carries from a prefix."""
    facts = TaskStats(1, 7000, 2, 30.0, 2048, takes_kv=False)
    config, choices = choose(resolve({"method.n_tokens": 7}), facts)
    assert (config.method.name, config.method.n_tokens) == ("prompt-tuning", 7)
    assert "method.name" in {choice.setting for choice in choices}
    config, choices = choose(resolve({"method.name": "prefix-tuning"}), facts)
    assert config.method.name == "prefix-tuning", "the user's own choice is refused later, with the reason"
    assert "method.name" not in {choice.setting for choice in choices}


def test_fixed_chooses_nothing() -> None:
    config = resolve({"recipe": "fixed"})
    assert choose(config, FACTS["generation"]) == (config, ())


def test_the_facts() -> None:
    one = [Example((1, 2, 3), (False, True, True), "a"), Example((1,) * 7, (False,) * 6 + (True,), "b")]
    two = [Example((1, 2), (False, True), "c")]
    assert TaskStats.of([one], [("x", "y")]) == TaskStats(1, 2, 2, 5.0)
    assert TaskStats.of([one, two], [(), ("x", "y", "z")]) == TaskStats(2, 3, 3, 4.0)


FEW = FACTS["few rows, two classes"]
MANY_ROWS = TaskStats(1, 7000, 2, 30.0, 2048)


@pytest.mark.parametrize(
    ("given", "facts", "init", "n_tokens", "lr"),
    [
        ({}, FEW, "demonstrations", 256, 2e-3),
        ({}, TaskStats(1, 32, 2, 150.0, 2048), "demonstrations", 525, 2e-3),
        ({"method.name": "prompt-tuning"}, FEW, "demonstrations", 256, 2e-3),
        ({"method.init_text": "Be kind."}, FEW, "text", 32, 5e-3),
        ({"method.init": "vocab"}, FEW, "vocab", 32, 5e-3),
        ({"method.n_tokens": 8}, FEW, "text", 8, 5e-3),
        ({}, TaskStats(1, 32, 2, 30.0, room=255), "text", 32, 5e-3),
        ({"method.name": "p-tuning"}, FEW, "text", 32, 1e-3),
        ({}, FACTS["many classes"], "text", 128, 5e-2),
        ({}, TaskStats(1, 8000, 77, 20.0, 2048), "selected", 128, 2e-2),
        ({"method.name": "prompt-tuning"}, FACTS["many classes"], "text", 32, 2e-2),
        ({"method.name": "prompt-tuning"}, MANY_ROWS, "text", 32, 2e-2),
        ({}, FACTS["generation"], "text", 32, 2e-2),
        ({}, MANY_ROWS, "selected", 32, 5e-3),
        ({"method.n_tokens": 16}, MANY_ROWS, "selected", 16, 5e-3),
        ({}, TaskStats(1, 7000, 0, 60.0, 2048), "selected", 32, 2e-2),
        ({}, TaskStats(1, 7000, 4, 60.0, 2048), "selected", 32, 2e-2),
        ({}, TaskStats(1, 64, 4, 60.0, 2048), "selected", 32, 2e-2),
        ({"method.n_tokens": 300}, MANY_ROWS, "text", 300, 1e-2),
        ({"method.init_text": "Be kind."}, MANY_ROWS, "text", 32, 1e-2),
        ({}, TaskStats(2, 7000, 2, 30.0, 2048), "text", 32, 1e-2),
    ],
)
def test_what_is_chosen(given: dict[str, object], facts: TaskStats, init: str, n_tokens: int, lr: float) -> None:
    config, _ = choose(resolve(given), facts)
    assert (config.method.init, config.method.n_tokens, config.train.lr) == (init, n_tokens, lr)


def test_a_time_budget_is_used_up() -> None:
    assert choose(resolve({"train.minutes": 3}), FEW)[0].train.patience is None
    assert choose(resolve({}), FEW)[0].train.patience == 4


@pytest.mark.parametrize(("tokens", "size"), [(20.0, 8), (32.0, 8), (60.0, 4), (85.0, 3), (900.0, 2)])
def test_long_rows_make_small_batches_where_minutes_are_given(tokens: float, size: int) -> None:
    facts = TaskStats(1, 2000, 2, tokens)
    assert choose(resolve({"train.minutes": 3}), facts)[0].train.batch_size == size
    assert choose(resolve({}), facts)[0].train.batch_size == 8


@pytest.mark.parametrize(
    ("facts", "minutes", "size", "shown"),
    [
        (TaskStats(1, 7000, 4, 60.0, 2048), 1.9, 2, 512),
        (TaskStats(1, 7000, 4, 60.0, 2048), 2.0, 4, 1024),
        (TaskStats(1, 7000, 4, 60.0, 300), 1.0, 2, 300),
        (TaskStats(1, 7000, 4, 200.0, 2048), 1.0, 2, 1024),
        (TaskStats(1, 8000, 77, 20.0, 2048), 1.0, 6, 1024),
        (TaskStats(1, 7000, 4, 60.0, 2048, gpu=True), 1.0, 32, 512),
        (TaskStats(1, 7000, 2, 60.0, 2048), 1.0, 4, 512),
        (TaskStats(1, 32, 4, 60.0, 2048), 1.0, 4, 1024),
    ],
)
def test_a_hurried_run_takes_smaller_steps_and_reads_less(
    facts: TaskStats, minutes: float, size: int, shown: int
) -> None:
    config, _ = choose(resolve({"train.minutes": minutes}), facts)
    assert (config.train.batch_size, config.method.text_tokens) == (size, shown)


@pytest.mark.parametrize(
    ("given", "facts", "init", "n_tokens"),
    [
        ({}, TaskStats(1, 7000, 0, 60.0, 2048), "demonstrations", 256),
        ({}, TaskStats(1, 7000, 0, 150.0, 2048), "demonstrations", 525),
        ({}, TaskStats(1, 7000, 0, 60.0, 255), "text", 32),
        ({"train.minutes": 10}, TaskStats(1, 7000, 0, 60.0, 2048), "selected", 32),
        ({"train.minutes": 10}, TaskStats(1, 7000, 0, 60.0, 2048, pace=Pace(1.0, 0.1)), "demonstrations", 256),
        ({"method.n_tokens": 64}, TaskStats(1, 7000, 0, 60.0, 2048), "selected", 64),
        ({"method.init_text": "Be kind."}, TaskStats(1, 7000, 0, 60.0, 2048), "text", 32),
        ({"method.name": "prompt-tuning"}, TaskStats(1, 7000, 0, 60.0, 2048), "text", 32),
        ({}, TaskStats(1, 7000, 4, 60.0, 2048), "selected", 32),
    ],
)
def test_a_hurried_run_on_free_text_starts_from_whole_examples(
    given: dict[str, object], facts: TaskStats, init: str, n_tokens: int
) -> None:
    config, _ = choose(resolve({"train.minutes": 1} | given), facts)
    assert (config.method.init, config.method.n_tokens) == (init, n_tokens)


def test_a_gpu_takes_more_rows_a_step() -> None:
    config = resolve({"train.minutes": 3})
    sizes = {}
    for tokens in (20.0, 256.0, 5000.0):
        sizes[tokens] = choose(config, TaskStats(1, 7000, 2, tokens, gpu=True))[0].train.batch_size
    assert sizes == {20.0: 32, 256.0: 8, 5000.0: 2}


def test_demonstrations_take_no_more_than_their_room() -> None:
    assert choose(resolve({}), MANY_ROWS)[0].method.text_tokens == 1024
    assert choose(resolve({}), TaskStats(1, 7000, 2, 30.0, 512))[0].method.text_tokens == 512
    assert choose(resolve({}), TaskStats(1, 8000, 77, 20.0, 2048))[0].method.text_tokens == 2048
