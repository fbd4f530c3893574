"""A worker: jobs in, soft prompts with histories out; mistakes in words for the job's owner."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from softprompt.data.records import Record
from softprompt.jobs import comparison
from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import DistillRequest, Hyperparameters, JobRecord, Quotas, SoftPromptRequest
from softprompt.jobs.store import JobStore
from softprompt.prompts import store as prompts
from softprompt.training import speed
from softprompt.training.pace import Pace
from tests.jobs.conftest import conversation_rows, new_job, put


def words(store: JobStore, job: JobRecord) -> str:
    return "\n".join(event.message for event in store.events(job.id, "a", newest_first=False, limit=500).items)


def test_a_job_becomes_a_soft_prompt_with_a_history(store: JobStore, work: Callable[[], int]) -> None:
    asked = Hyperparameters(n_epochs=4, batch_size=4, learning_rate_multiplier=0.5)
    own = SoftPromptRequest(method="prompt-tuning", n_tokens=3)
    job = store.create_job(new_job(store, hyperparameters=asked, soft_prompt=own, seed=3))
    assert work() == 1
    done = store.job(job.id, "a")
    assert done.status == "succeeded", (done.error, words(store, job))
    assert done.fine_tuned_model == f"ft:tiny:bot:{job.id[6:18]}" and done.trained_tokens and done.finished_at
    assert done.resolved == Hyperparameters(4, 4, 0.5)
    card = prompts.load_card(store.home.parent / "prompts" / done.prompt)
    assert (
        card.n_tokens == 3 and card.metrics["steps"] == 16 and card.recipe["lr"] == 2.5e-3 and card.recipe["seed"] == 3
    )
    assert str(store.home.parent) not in card.model_dump_json(), "a card tells no path of the server"
    history = store.events(job.id, "a", newest_first=False, limit=500).items
    assert [event.number for event in history] == list(range(1, len(history) + 1))
    assert {"message", "metrics"} == {event.type for event in history}
    (compared,) = [event for event in history if event.data and "comparison" in event.data]
    assert "base model" in compared.message and "soft prompt" in compared.message
    checkpoints = store.checkpoints(job.id, "a").items
    assert checkpoints[0].step_number == 16 and {"train_loss", "valid_loss"} <= set(checkpoints[0].metrics)
    assert 0 <= checkpoints[0].metrics["valid_mean_token_accuracy"] <= 1
    for checkpoint in checkpoints:
        assert prompts.load_card(store.home.parent / "prompts" / checkpoint.prompt).n_tokens == 3
    result = store.files.get(done.result_files[0], "a")
    lines = list(csv.DictReader(store.files.path(result).read_text().splitlines()))
    assert [int(line["step"]) for line in lines] == list(range(1, 17))
    measured = {int(line["step"]): line["train_accuracy"] for line in lines if line["train_accuracy"]}
    assert measured == {each.step_number: str(each.metrics["train_mean_token_accuracy"]) for each in checkpoints}
    by_step = {int(line["step"]): line["valid_loss"] for line in lines if line["valid_loss"]}
    assert by_step == {each.step_number: str(each.metrics["valid_loss"]) for each in checkpoints}
    assert not (store.runs / job.id).exists()


def test_a_job_goes_on_from_another_ones_prompt(store: JobStore, work: Callable[[], int]) -> None:
    short = Hyperparameters(n_epochs=1)
    first = store.create_job(new_job(store, hyperparameters=short, soft_prompt=SoftPromptRequest(n_tokens=3)))
    work()
    second = store.create_job(new_job(store, hyperparameters=short, init_prompt=first.prompt))
    work()
    assert store.job(second.id, "a").status == "succeeded", words(store, second)
    card = prompts.load_card(store.home.parent / "prompts" / second.prompt)
    assert (card.method["init"], card.method["init_from"], card.n_tokens) == ("prompt", first.prompt, 3)


def test_a_job_learns_preferences(store: JobStore, work: Callable[[], int]) -> None:
    def asked(i: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"color {i}?"}]

    rows = [
        {
            "input": {"messages": asked(i)},
            "preferred_output": [{"role": "assistant", "content": "red"}],
            "non_preferred_output": [{"role": "assistant", "content": f"no {i}"}],
        }
        for i in range(12)
    ]
    file = put(store, "".join(json.dumps(row) + "\n" for row in rows).encode())
    beside = {"training_file": file, "validation_file": None, "soft_prompt": SoftPromptRequest(n_tokens=3)}
    short = Hyperparameters(n_epochs=1, batch_size=4, beta=0.3)
    job = store.create_job(new_job(store, method="dpo", hyperparameters=short, **beside))
    work()
    done = store.job(job.id, "a")
    assert done.status == "succeeded", (done.error, words(store, job))
    assert done.method == "dpo" and done.resolved == Hyperparameters(1, 4, 1.0, 0.3)
    card = prompts.load_card(store.home.parent / "prompts" / done.prompt)
    chosen = {"name": "dpo", "beta": 0.3, "reference": "start", "label_smoothing": 0.0, "sft_weight": 1.0}
    assert card.recipe["objective"] == chosen
    assert "validation_accuracy" in card.metrics
    wrong = store.create_job(new_job(store, method="dpo", hyperparameters=short))
    work()
    failed = store.job(wrong.id, "a").error
    assert failed is not None and "no rejected answer" in failed.message


def test_a_text_is_distilled(store: JobStore, work: Callable[[], int]) -> None:
    text = put(store, b"Answer with a color.")
    own = SoftPromptRequest(n_tokens=4, distill=DistillRequest(text))
    queries = put(store, conversation_rows(60))
    changes = {"validation_file": None, "hyperparameters": Hyperparameters(n_epochs=1), "soft_prompt": own}
    job = store.create_job(new_job(store, training_file=queries, **changes))
    work()
    assert store.job(job.id, "a").status == "succeeded", words(store, job)
    assert "of the text's effect" in words(store, job) and "Answering queries: 100%" in words(store, job)


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (b'{"messages": []}\n', "invalid_file", "training_file:1"),
        (b"not JSON\n", "invalid_file", "training_file:1"),
        (conversation_rows(1).replace(b"color", b"color" * 400), "invalid_file", "tokens"),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_api(
    store: JobStore, work: Callable[[], int], content: bytes, code: str, told: str
) -> None:
    job = store.create_job(new_job(store, training_file=put(store, content)))
    work()
    failed = store.job(job.id, "a")
    assert failed.status == "failed" and failed.error is not None and failed.error.code == code
    assert told in failed.error.message and failed.error.param == "training_file"
    assert str(store.home) not in words(store, job) and "/" not in failed.error.message.replace("n/a", "")


def test_a_job_that_takes_too_long_fails_and_keeps_its_checkpoints(
    store: JobStore, work: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0.0, 1.0)  # every look at the training loop's clock takes a second
    monkeypatch.setattr("softprompt.training.loop.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    store.configure(quotas=Quotas(job_minutes=1))
    own = SoftPromptRequest(method="prompt-tuning", n_tokens=3)
    hyperparameters = Hyperparameters(n_epochs=1000, batch_size=4)
    job = store.create_job(new_job(store, hyperparameters=hyperparameters, soft_prompt=own))
    work()
    failed = store.job(job.id, "a")
    assert failed.error is not None and (failed.status, failed.error.code) == ("failed", "time_limit")
    assert not (store.home.parent / "prompts" / job.prompt).exists() and store.model(job.model_name, "a") is None


def test_a_job_that_leaves_its_length_open_is_fitted_into_minutes(
    store: JobStore, work: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where a step takes seconds: few steps, and the end is known before the first one."""
    monkeypatch.setattr(speed, "measured_pace", lambda *given: Pace(2.0, 0.01))
    job = store.create_job(new_job(store, soft_prompt=SoftPromptRequest(method="prefix-tuning", n_tokens=3)))
    assert store.job(job.id, "a").soft_prompt.most_minutes == Quotas().auto_minutes == 3
    finishes, began = list[tuple[str, int | None]](), store.time()
    real = JobQueue.event

    def event(self: JobQueue, job: JobRecord, message: str, **given: object) -> None:
        finishes.append((message, store.job(job.id, None).estimated_finish))
        real(self, job, message, **given)  # pyright: ignore

    monkeypatch.setattr(JobQueue, "event", event)
    work()
    done = store.job(job.id, "a")
    assert done.status == "succeeded", (done.error, words(store, job))
    assert all(finish is not None and began < finish <= began + 60 * 3 + 120 for _, finish in finishes)
    messages = [message for message, _ in finishes]
    first_step = next(i for i, message in enumerate(messages) if message.startswith("Step 1"))
    assert {"Checking the rows and measuring the speed of this machine", "The start is ready; validating it"} <= set(
        messages[:first_step]
    )
    assert "steps of" in words(store, job) and "on this machine" in words(store, job)
    card = prompts.load_card(store.home.parent / "prompts" / done.prompt)
    assert card.recipe["minutes"] == 3 and card.metrics["stopped"] == "steps", "a fast machine is done sooner"
    assert card.metrics["steps"] == 100


def test_what_is_not_fitted_into_minutes(store: JobStore) -> None:
    def minutes(**changes: object) -> float | None:
        return store.create_job(new_job(store, **changes)).soft_prompt.most_minutes

    assert minutes(hyperparameters=Hyperparameters(n_epochs=2)) is None
    assert minutes(soft_prompt=SoftPromptRequest(minutes=7)) is None
    assert minutes(soft_prompt=SoftPromptRequest(distill=DistillRequest(put(store, b"Be kind.")))) is None
    store.configure(quotas=Quotas(auto_minutes=0))
    assert minutes() is None
    store.configure(quotas=Quotas(auto_minutes=9, job_minutes=5))
    assert minutes() == 5


def test_too_little_time_is_told_before_it_begins(
    store: JobStore, work: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measured_pace", lambda *given: Pace(30.0, 0.01))
    store.configure(quotas=Quotas(auto_minutes=1))
    job = store.create_job(new_job(store, soft_prompt=SoftPromptRequest(method="prefix-tuning", n_tokens=3)))
    work()
    history = store.events(job.id, "a", newest_first=False, limit=500).items
    (warned,) = [event.number for event in history if event.level == "warn"]
    assert warned < next(event.number for event in history if event.type == "metrics")
    assert "too few to learn much: 200 steps take about" in history[warned - 1].message


@pytest.mark.parametrize(("row_s", "n_rows"), [(0.1, 32), (1.0, 26), (10.0, 4)])
def test_the_comparison_has_as_many_rows_as_there_is_time_for(
    row_s: float, n_rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, asked = [0.0], list[int]()

    def slow(lm: object, name: str, rows: Sequence[Record], **options: object) -> SimpleNamespace:
        assert len({row.where for row in rows}) == len(rows)
        now[0] += row_s * len(rows)
        asked.append(len(rows))
        score = SimpleNamespace(scores={"exact_match": SimpleNamespace(value=0.5)})
        each = {"base": score, "text_prompt": score, "soft_prompt": score}
        return SimpleNamespace(**each, notes=(), to_dict=dict)

    monkeypatch.setattr(comparison, "compare", slow)
    monkeypatch.setattr(comparison, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rows = [Record({"prompt": f"{i}"}, "red", "completion", where=f"rows:{i}") for i in range(72)]
    task = SimpleNamespace(splits=SimpleNamespace(validation=rows, train=rows))
    prepared = SimpleNamespace(tasks=[task], config=SimpleNamespace(train=SimpleNamespace(seed=0)))
    told, _ = comparison.compared(prepared, SimpleNamespace(encode=list), tmp_path, 30.0)  # pyright: ignore
    assert told.startswith(f"exact_match on {n_rows} validation rows") and asked[-1] == n_rows
    assert now[0] <= 30 + 4 * row_s
