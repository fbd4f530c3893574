"""The jobs' store: owners apart, quotas, contents that stay as long as they are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from softprompt.errors import ConfigError, JobError, MissingExtraError, NotFoundError, QuotaError
from softprompt.jobs.records import (
    DistillRequest,
    FileRecord,
    Hyperparameters,
    JobBase,
    NewJob,
    Quotas,
    SoftPromptRequest,
    prompt_name,
)
from softprompt.jobs.store import JobStore

ROWS = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    made = JobStore.open(str(tmp_path / "jobs"))
    made.configure(JobBase("tiny", "tiny-model", str(tmp_path / "prompts")), Quotas())
    return made


def add(store: JobStore, owner: str = "a", data: bytes = ROWS, n_rows: int = 1) -> FileRecord:
    with store.files.upload() as upload:
        upload.write(data)
        return store.files.add(owner, "fine-tune", "../../etc/passwd", upload, n_rows)


def test_what_is_written_is_read_again_by_another_process(store: JobStore) -> None:
    file = add(store)
    new = NewJob(
        "a",
        "tiny",
        file.id,
        validation_file=file.id,
        suffix="My Bot!",
        seed=7,
        hyperparameters=Hyperparameters(n_epochs=3, learning_rate_multiplier=0.5),
        soft_prompt=SoftPromptRequest(n_tokens=4, distill=DistillRequest(file.id, "document")),
        metadata={"team": "x"},
    )
    job = store.create_job(new)
    other = JobStore.open(f"sqlite:///{store.home}/jobs.db")
    assert other.job(job.id, "a") == job == other.jobs("a").items[0]
    assert other.files.get(file.id, "a") == file
    assert (job.hyperparameters, job.soft_prompt, job.metadata) == (new.hyperparameters, new.soft_prompt, {"team": "x"})
    assert job.training_sha256 == job.validation_sha256 == job.text_sha256 == file.sha256
    assert job.model_name == f"ft:tiny:My Bot!:{job.id[6:18]}" and job.prompt == f"ft-my-bot-{job.id[6:18]}"
    assert other.base() == store.base() and other.home == store.home


def test_the_clients_names_are_no_paths(store: JobStore) -> None:
    file = add(store)
    assert file.filename == "../../etc/passwd"
    assert store.files.path(file) == store.home / "files" / "sha256" / file.sha256
    assert prompt_name("../../Über große Bots " * 4, "ftjob-0123456789abcdef").isascii()
    assert len(prompt_name("x" * 64, "ftjob-" + "f" * 24)) <= 64 and prompt_name("../", "ftjob-12") == "ft-12"


def test_owners_do_not_see_each_other(store: JobStore) -> None:
    mine, theirs = add(store, "a"), add(store, "b")
    job = store.create_job(NewJob("a", "tiny", mine.id, suffix="bot"))
    for look in (
        lambda: store.files.get(mine.id, "b"),
        lambda: store.files.delete(mine.id, "b"),
        lambda: store.files.list("b", after=mine.id),
        lambda: store.job(job.id, "b"),
        lambda: store.jobs("b", after=job.id),
        lambda: store.cancel_job(job.id, "b"),
        lambda: store.pause_job(job.id, "b"),
        lambda: store.events(job.id, "b"),
        lambda: store.checkpoints(job.id, "b"),
        lambda: store.create_job(NewJob("b", "tiny", mine.id)),
        lambda: store.create_job(NewJob("b", "tiny", theirs.id, validation_file=mine.id)),
    ):
        with pytest.raises(NotFoundError):
            look()
    assert store.files.list("b").items == (theirs,) and store.jobs("b").items == ()
    assert len(store.files.list(None).items) == 2 and store.job(job.id, None) == store.job(job.id, "a")


def test_a_content_stays_as_long_as_it_is_needed(store: JobStore) -> None:
    first, second = add(store), add(store)
    path = store.files.path(first)
    store.files.delete(first.id, "a")
    assert path.is_file()
    job = store.create_job(NewJob("a", "tiny", second.id))
    store.files.delete(second.id, "a")
    assert path.is_file(), "the job needs it"
    store.cancel_job(job.id, "a")
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_uploads_that_are_not_kept_leave_nothing(store: JobStore) -> None:
    store.configure(quotas=Quotas(file_bytes=10))
    with store.files.upload() as upload:
        upload.write(b"x" * 10)
        with pytest.raises(QuotaError, match="10 bytes"):
            upload.write(b"x")
    assert list(store.files.contents.folder.iterdir()) == []


def test_quotas(store: JobStore) -> None:
    store.configure(quotas=Quotas(stored_files=2, stored_bytes=3 * len(ROWS), file_rows=5, queued_jobs=1))
    file = add(store)
    with pytest.raises(QuotaError, match="rows"):
        add(store, n_rows=6)
    with pytest.raises(QuotaError, match="together"):
        add(store, data=ROWS * 3)
    add(store)
    with pytest.raises(QuotaError, match="files are stored"):
        add(store)
    add(store, "b")  # whose own quota it is
    store.create_job(NewJob("a", "tiny", file.id))
    with pytest.raises(QuotaError, match="jobs wait"):
        store.create_job(NewJob("a", "tiny", file.id))


def test_listings_come_in_pages(store: JobStore) -> None:
    file = add(store)
    jobs = [store.create_job(NewJob("a", "tiny", file.id, metadata={"n": str(i % 2)})) for i in range(5)]
    page = store.jobs("a", limit=2)
    assert page.items == (jobs[4], jobs[3]) and page.has_more
    page = store.jobs("a", after=jobs[3].id, limit=3)
    assert page.items == (jobs[2], jobs[1], jobs[0]) and not page.has_more
    assert store.jobs("a", metadata={"n": "1"}).items == (jobs[3], jobs[1])
    assert store.jobs("a", metadata={}).items == ()
    events = store.events(jobs[0].id, "a", newest_first=False).items
    assert [event.number for event in events] == [1, 2]
    assert store.events(jobs[0].id, "a", after=events[0].id, newest_first=False).items == events[1:]
    assert store.events(jobs[0].id, "a", after=events[1].id).items == events[:1]


def test_states(store: JobStore) -> None:
    file = add(store)
    job = store.create_job(NewJob("a", "tiny", file.id))
    with pytest.raises(JobError, match="not paused"):
        store.resume_job(job.id, "a")
    store.create_job(NewJob("b", "tiny", add(store, "b").id))
    assert store.open_jobs() == {"queued": 2, "running": 0}
    assert store.pause_job(job.id, "a").paused
    assert store.open_jobs() == {"queued": 1, "running": 0}, "no worker takes a paused job"
    with pytest.raises(JobError, match="already"):
        store.pause_job(job.id, "a")
    assert not store.resume_job(job.id, "a").paused
    ended = store.cancel_job(job.id, "a")
    assert ended.status == "cancelled" and ended.finished_at is not None
    for refused in (store.cancel_job, store.pause_job, store.resume_job):
        with pytest.raises(JobError, match="has ended"):
            refused(job.id, "a")


def test_settings_that_no_run_could_take_are_refused(store: JobStore) -> None:
    file = add(store).id
    store.configure(quotas=Quotas(job_minutes=10))
    for changes, where in (
        ({"hyperparameters": Hyperparameters(n_epochs=0)}, "train.epochs"),
        ({"hyperparameters": Hyperparameters(learning_rate_multiplier=0.0)}, "learning_rate_multiplier"),
        ({"soft_prompt": SoftPromptRequest(method="decomposed-tuning")}, "name"),
        ({"soft_prompt": SoftPromptRequest(method="multitask")}, "method"),
        ({"soft_prompt": SoftPromptRequest(n_tokens=0)}, "n_tokens"),
        ({"soft_prompt": SoftPromptRequest(distill=DistillRequest(file)), "init_prompt": "x"}, "distillation"),
    ):
        with pytest.raises(ConfigError, match=where):
            store.create_job(replace(NewJob("a", "tiny", file), **changes))
    with pytest.raises(QuotaError, match=r"soft_prompt\.minutes"):
        store.create_job(NewJob("a", "tiny", file, soft_prompt=SoftPromptRequest(minutes=11)))
    assert store.jobs("a").items == ()


def test_refusals_say_what_helps(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot train on this model"):
        store.create_job(NewJob("a", "other", add(store).id))
    with pytest.raises(ConfigError, match="not a database"):
        JobStore.open("mysql://x/y", tmp_path)
    with pytest.raises(ConfigError, match="--store-files"):
        JobStore.open("postgresql://x/y")
    with pytest.raises(MissingExtraError, match="pip install psycopg"):
        JobStore.open("postgresql://x/y", tmp_path)
