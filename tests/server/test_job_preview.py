"""Previews of jobs: what is shown is what a job then does, faults are told by their lines, and nothing of others'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.splits import load_rows
from softprompt.data.tokenize import encode_rows
from softprompt.jobs import preview
from softprompt.jobs.plan import job_settings, prepare_job
from softprompt.jobs.records import NewJob
from softprompt.models.loading import load_tokenizer
from tests.support.fine_tuning import OTHER, Tuned, tuned
from tests.support.live_server import ADMIN, BASE, USER, Reply
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny

PAIRS = [{"prompt": f"Color {i}?", "chosen": "red", "rejected": "I would say that it is red."} for i in range(40)]
DPO = {"type": "dpo"}
COLORS = [{"prompt": f"Color {i}?", "completion": ("red", "blue")[i % 2]} for i in range(40)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    folder = tmp_path_factory.mktemp("preview")
    with tuned(folder, folder / "public", model=str(save_tiny(folder / "base"))) as running:
        yield running


def upload(server: Tuned, rows: list[Any] | str, name: str = "rows.jsonl", key: str = USER) -> str:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    with server.client(key) as client:
        return client.files.create(file=(name, text.encode()), purpose="fine-tune").id


def ask(server: Tuned, file: str, key: str = USER, **body: Any) -> Reply:
    return server.live.ask("POST", f"/v1/files/{file}/preview", body, key)


def why(found: Any) -> dict[str, Any]:
    return {choice["setting"]: choice["value"] for choice in found["settings"]}


def test_rows_are_shown_as_they_are_learned(server: Tuned, tmp_path: Path) -> None:
    """The pieces are the tokens and the mask of training, and an answer's end is learned with it."""
    found = ask(server, upload(server, COLORS), rows=2).json
    assert [row["line"] for row in found["rows"]] == ["1", "2"]
    base = server.store.base()
    assert base is not None
    tokenizer = load_tokenizer(base.model)
    write_jsonl(tmp_path / "train.jsonl", *COLORS)
    settings = job_settings(NewJob("a", BASE, "f"), base, tmp_path, str(tmp_path / "x"), "cpu", None)
    prepared = prepare_job(NewJob("a", BASE, "f"), settings, resume=False)
    (task,) = prepared.tasks  # type: ignore[union-attr]
    for row, record in zip(found["rows"], load_rows(tmp_path / "train.jsonl")[:2], strict=True):
        (example,) = encode_rows([record], task.template, tokenizer)
        assert "".join(piece["text"] for piece in row["pieces"]) == tokenizer.decode(list(example.ids))
        assert (row["tokens"], row["learned_tokens"]) == (len(example.ids), sum(example.mask))
    question, answer = found["rows"][0]["pieces"]
    assert "Color 0?" in question["text"] and not question["learned"]
    assert answer["text"].startswith("red") and "<|im_end|>" in answer["text"] and answer["learned"]
    assert (found["train_rows"], found["validation_rows"], found["read_rows"]) == (36, 4, None)
    assert found["learned_tokens"] == sum(sum(row.mask) for row in task.train)
    assert any("4 rows of 40 training rows were split off" in note for note in found["notes"])


@pytest.mark.parametrize("own", [{}, {"n_tokens": 7}, {"method": "prompt-tuning"}, {"minutes": 1}])
@pytest.mark.parametrize("hyper", [{}, {"n_epochs": 2, "learning_rate_multiplier": 0.5}])
def test_the_settings_are_those_of_the_job(server: Tuned, own: dict[str, Any], hyper: dict[str, Any]) -> None:
    """Every shown value is the prepared job's, and every choice of the recipe is shown with its reason."""
    file = upload(server, COLORS)
    found = ask(server, file, soft_prompt=own, hyperparameters=hyper).json
    with server.client() as ai:
        extra = {"soft_prompt": own}
        job = server.store.job(
            ai.fine_tuning.jobs.create(
                model=BASE,
                training_file=file,
                seed=0,
                hyperparameters=hyper,  # type: ignore[arg-type]
                extra_body=extra,
            ).id,
            None,
        )
        ai.fine_tuning.jobs.cancel(job.id)
    base = server.store.base()
    assert base is not None
    data = server.store.home / f"data-{job.id}"
    data.mkdir()
    write_jsonl(data / "train.jsonl", *COLORS)
    prepared: Any = prepare_job(job, job_settings(job, base, data, str(data / "x"), "cpu", None), resume=False)
    shown = why(found)
    for setting, value in shown.items():
        section, _, name = setting.partition(".")
        if name not in ("epochs", "steps"):
            assert getattr(getattr(prepared.config, section), name) == value, setting
    assert shown.get("train.steps") == prepared.config.train.total_steps(len(prepared.tasks[0].train))
    reasons = {choice["setting"]: choice["why"] for choice in found["settings"]}
    for choice in prepared.choices:
        if choice.value is not None:
            assert reasons[choice.setting].startswith(choice.why)
    assert all(
        "as given" in reasons[f"method.{name}".replace("method.method", "method.name")]
        for name in own
        if name != "minutes"
    )


def test_both_answers_of_pairs_are_shown(server: Tuned) -> None:
    """If a job would compare them; each answer is learned with its end, and the question is not."""
    file = upload(server, PAIRS)
    found = ask(server, file, rows=2, method=DPO).json
    assert found["method_types"] == ["supervised", "dpo"] and [row["line"] for row in found["rows"]] == ["1", "2"]
    for row, pair in zip(found["rows"], PAIRS, strict=False):
        for shown, answer in ((row, "chosen"), (row["rejected"], "rejected")):
            question, learned = shown["pieces"]
            assert pair["prompt"] in question["text"] and not question["learned"]
            assert learned["text"].startswith(pair[answer]) and "<|im_end|>" in learned["text"] and learned["learned"]
            assert (shown["tokens"], shown["learned_tokens"]) == (
                question["tokens"] + learned["tokens"],
                learned["tokens"],
            )
    alone = ask(server, file, rows=2).json
    assert [row["rejected"] for row in alone["rows"]] == [None, None] and alone["method_types"] == ["supervised", "dpo"]
    assert [row["pieces"] for row in alone["rows"]] == [row["pieces"] for row in found["rows"]]
    chosen, rejected = found["rows"][0]["learned_tokens"], found["rows"][0]["rejected"]["learned_tokens"]
    assert (alone["learned_tokens"], found["learned_tokens"]) == (36 * chosen, 36 * (chosen + rejected))
    assert found["tokens"] > 2 * alone["tokens"]


def test_what_rows_are_for(server: Tuned) -> None:
    """Only pairs can be compared, and a text has none."""
    assert ask(server, upload(server, COLORS)).json["method_types"] == ["supervised"]
    assert ask(server, upload(server, "Answer with a color.", "text.txt")).json["method_types"] == ["supervised"]
    refused = ask(server, upload(server, COLORS), method=DPO)
    error = refused.json["error"]
    assert refused.status == 400 and "training_file:" in error["message"] and "rejected answer" in error["message"]
    refused = ask(server, upload(server, "Answer with a color.", "text.txt"), method=DPO)
    assert (refused.status, refused.json["error"]["param"]) == (400, "method.type")


@pytest.mark.parametrize(
    "asked",
    [
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 5}}}},
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 5}}}},
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "learning_rate_multiplier": 2}}}},
    ],
)
def test_hyperparameters_of_the_method_are_those_of_the_job(server: Tuned, asked: dict[str, Any]) -> None:
    """Every shown value is the prepared job's."""
    file = upload(server, PAIRS)
    shown = why(ask(server, file, **asked).json)
    made = server.live.ask("POST", "/v1/fine_tuning/jobs", {"model": BASE, "training_file": file, "seed": 0} | asked)
    job = server.store.job(made.json["id"], None)
    server.store.cancel_job(job.id, None)
    base = server.store.base()
    assert base is not None
    data = server.store.home / f"data-{job.id}"
    data.mkdir()
    write_jsonl(data / "train.jsonl", *PAIRS)
    prepared: Any = prepare_job(job, job_settings(job, base, data, str(data / "x"), "cpu", None), resume=False)
    assert shown.get("objective.beta") == (prepared.config.objective.strength if job.method == "dpo" else None)
    for setting in ("train.lr", "train.batch_size", "method.name", "method.n_tokens"):
        section, _, name = setting.partition(".")
        assert shown[setting] == getattr(getattr(prepared.config, section), name), setting


def test_a_long_file_is_read_in_part(server: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of the whole are estimates, and said to be."""
    monkeypatch.setattr(preview, "MOST_ROWS", 20)
    found = ask(server, upload(server, COLORS), validation_file=upload(server, labelled(4))).json
    assert found["read_rows"] == 20 and found["train_rows"] == 36
    assert why(found)["train.steps"] == 100


def test_a_text_says_what_it_costs(server: Tuned) -> None:
    short = ask(server, upload(server, "Answer with a color.", "text.txt"), soft_prompt={"n_tokens": 4}).json
    assert short["tokens"] == len("Answer with a color.") and not short["rows"]
    assert (why(short)["distill.mode"], why(short)["method.n_tokens"]) == ("text", 4)
    long = upload(server, "Answer with a color. " * 40, "text.md")
    found = ask(server, long).json
    assert why(found)["distill.mode"] == "document" and "chunks" in found["notes"][0]
    refused = ask(server, long, soft_prompt={"distill": {"mode": "text"}})
    assert refused.status == 400 and "too long for the model's context" in refused.json["error"]["message"]


def test_faults_that_only_tokens_show(server: Tuned) -> None:
    long = [*COLORS, {"prompt": "Color " * 400, "completion": "red"}]
    refused = ask(server, upload(server, long))
    message = refused.json["error"]["message"]
    assert (refused.status, refused.code) == (400, "invalid_value")
    assert "training_file:41" in message and "too long" in message and "--" not in message
    assert str(server.store.home) not in message and "/tmp" not in message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 21}, "rows"),
        ({"steps": 3}, "steps"),
        ({"soft_prompt": {"method": "no-such-method"}}, "soft_prompt.method"),
        ({"soft_prompt": {"distill": {"text": "A"}}}, "soft_prompt.distill"),
        ({"soft_prompt": {"distill": {"mode": "text"}}}, "soft_prompt.distill"),
        ({"validation_file": "file-nobodys"}, "validation_file"),
        ({"model": "nobody"}, "model"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": DPO, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
    ],
)
def test_what_cannot_be_previewed(server: Tuned, body: dict[str, Any], param: str) -> None:
    refused = ask(server, upload(server, COLORS), **body)
    assert refused.status in (400, 404) and refused.json["error"]["param"] == param, refused.raw


def test_nothing_of_others(server: Tuned) -> None:
    """A file of another key's is as one that never was, also as validation file; the admin sees all."""
    file, own = upload(server, COLORS), upload(server, COLORS, key=OTHER)
    theirs, never = ask(server, file, OTHER), ask(server, "file-nobodys", OTHER)
    assert (theirs.status, theirs.code) == (404, "file_not_found")
    assert theirs.raw.replace(file.encode(), b"file-nobodys") == never.raw
    theirs, never = (ask(server, own, OTHER, validation_file=name) for name in (file, "file-nobodys"))
    assert theirs.status == 400 and theirs.raw.replace(file.encode(), b"file-nobodys") == never.raw
    assert ask(server, file, ADMIN).status == 200


def test_a_file_of_the_wrong_kind_is_not_told_to_others(server: Tuned) -> None:
    """What a job says about a file, its purpose and whether it has rows, is for its owner alone."""
    rows, text = upload(server, COLORS), upload(server, "A text.", "a.txt")
    own = upload(server, COLORS, key=OTHER)
    with server.store.files.upload() as content:
        content.write(b"step\n1\n")
        owner = server.store.files.get(rows, None).owner
        result = server.store.files.add(owner, "fine-tune-results", "r.csv", content).id
    for file in (text, result):
        for field in ("training_file", "validation_file"):
            _as_never(server, file, {"training_file": own} | {field: file})
    for file in (rows, result):
        _as_never(server, file, {"soft_prompt": {"distill": {"file": file}}})


def _as_never(server: Tuned, file: str, fields: dict[str, Any]) -> None:
    body = {"model": BASE} | fields
    never = json.loads(json.dumps(body).replace(file, "file-nobodys"))
    theirs, unknown = (server.live.ask("POST", "/v1/fine_tuning/jobs", each, OTHER) for each in (body, never))
    assert theirs.status == 400 and theirs.code == "invalid_file"
    assert theirs.raw.replace(file.encode(), b"file-nobodys") == unknown.raw


def test_options(server: Tuned) -> None:
    found = server.live.ask("GET", "/v1/fine_tuning/options").json
    assert found["model"] == BASE and {"prefix-tuning", "prompt-tuning"} <= set(found["methods"])
    assert found["quotas"]["file_bytes"] == server.store.quotas().file_bytes
    for method in found["methods"]:
        fields = {"model": BASE, "training_file": upload(server, COLORS), "soft_prompt": {"method": method}}
        made = server.live.ask("POST", "/v1/fine_tuning/jobs", fields)
        assert made.status == 200, made.raw
        server.store.cancel_job(made.json["id"], None)


def test_a_row_too_long_for_a_preview_is_not_read_to_its_end(server: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MOST_BYTES", 2000)
    row = {"prompt": "Color?", "completion": "red " * 1000}
    reply = ask(server, upload(server, [row, *COLORS]))
    error = reply.json["error"]
    assert reply.status == 400 and "the first row is too long for a preview" in error["message"], error
    assert "2,000 bytes" in error["message"] and "tmp" not in error["message"]
