"""Soft prompts as files: cards, curves, archives, deletion and inspections, each for those whose they are."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from softprompt.errors import StoreError
from softprompt.inspection.inspection import READINGS
from softprompt.jobs.inspection_records import InspectionResult
from softprompt.jobs.inspections import MAX_STORED, Inspections
from softprompt.prompts import store as prompt_store
from softprompt.server.api_keys import ApiKeys
from softprompt.server.catalogue import Catalogue
from softprompt.server.inspection_reply import InspectionRequest
from tests.support.fine_tuning import OTHER, ROWS, Tuned, succeed, tuned
from tests.support.live_server import ADMIN, BASE, TEMPLATES, USER, live, save_prompt
from tests.support.tiny import tiny_lm

INSPECTIONS = "/v1/inspections"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator's folder, which these tests change."""
    folder = tmp_path_factory.mktemp("public")
    for seed, name in enumerate(("talk", "review"), 1):
        save_prompt(folder / name, *TEMPLATES[name], seed)
    return folder


@pytest.fixture(scope="module")
def server(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    with tuned(tmp_path_factory.mktemp("files"), public) as running:
        yield running


def made(server: Tuned, suffix: str, key: str = USER) -> str:
    """The name of a soft prompt that a job has made."""
    with server.client(key) as client:
        file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
        return succeed(server, client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix=suffix).id)


def listed(server: Tuned, key: str, query: str = "") -> dict[str, dict[str, object]]:
    reply = server.live.ask("GET", f"/v1/cards?limit=100{query}", key=key)
    return {card["id"]: card for card in reply.json["data"]}


def test_cards_say_what_a_prompt_is_and_whose(server: Tuned) -> None:
    name = made(server, "carded")
    mine, others, admins = (listed(server, key) for key in (USER, OTHER, ADMIN))
    assert name in mine and name in admins and name not in others
    assert {"talk", "review"} <= mine.keys() & others.keys()
    assert "carded" not in mine, "a short name is no second soft prompt"
    for cards, readable in ((mine, False), (admins, True)):
        assert cards["talk"]["readable"] is cards["talk"]["deletable"] is readable
        assert cards[name]["readable"] is cards[name]["deletable"] is True
    assert mine["talk"]["form"] == "kv" and mine["talk"]["base"] == BASE
    card = server.live.ask("GET", f"/v1/cards/{name}").json
    assert card["job"] and card["card"]["sha256"] == card["sha256"]
    assert server.live.ask("GET", "/v1/cards/carded").json["sha256"] == card["sha256"]
    assert server.live.ask("GET", "/v1/cards/talk").json["card"] is None
    assert (server.live.ask("GET", f"/v1/cards/{name}", key=OTHER).code) == "model_not_found"
    assert server.live.ask("GET", f"/v1/cards/{BASE}").status == 400


def test_cards_are_searched_and_paged(server: Tuned) -> None:
    assert list(listed(server, ADMIN, "&search=REV")) == ["review"]
    first = server.live.ask("GET", "/v1/cards?limit=1").json
    assert first["has_more"] and len(first["data"]) == 1
    after = server.live.ask("GET", f"/v1/cards?limit=100&after={first['data'][0]['id']}").json
    assert first["data"][0]["id"] not in [card["id"] for card in after["data"]] and not after["has_more"]
    assert server.live.ask("GET", "/v1/cards?after=nobody").status == 400


def test_curves(server: Tuned, public: Path) -> None:
    """Of a job from its events, of a run from its metrics."""
    assert server.live.ask("GET", f"/v1/curves/{made(server, 'curved')}").json["data"] == [
        {"step": 7, "train_loss": 0.5, "valid_loss": None, "valid_mean_token_accuracy": None}
    ]
    assert server.live.ask("GET", "/v1/curves/talk").json["data"] == []
    run = public / ".runs" / "talk"
    run.mkdir(parents=True)
    lines = [{"event": "step", "step": 1, "loss": 2.0}, {"event": "validation", "step": 1, "validation_loss": 3.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (point,) = server.live.ask("GET", "/v1/curves/talk").json["data"]
    assert (point["step"], point["train_loss"], point["valid_loss"]) == (1, 2.0, 3.0)


def test_an_archive_is_a_saved_soft_prompt(server: Tuned, tmp_path: Path) -> None:
    """Unpacked it loads, and nothing in it names a folder of the server."""
    name = made(server, "kept")
    reply = server.live.ask("GET", f"/v1/archives/{name}")
    assert reply.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(reply.raw)) as archive:
        (folder,) = {Path(entry).parts[0] for entry in archive.namelist()}
        assert {Path(entry).name for entry in archive.namelist()} == {"prompt.safetensors", "card.json", "README.md"}
        archive.extractall(tmp_path)
    prompt, card = prompt_store.load(tmp_path / folder, tiny_lm("llama", bos=True).geometry)
    assert card.sha256 == prompt_store.load_card(server.prompts / folder).sha256 and prompt.n_tokens
    assert str(server.prompts.parent) not in (tmp_path / folder / "card.json").read_text()
    assert reply.headers["content-disposition"] == f'attachment; filename="{folder}.zip"'
    assert server.live.ask("GET", f"/v1/archives/{name}").raw == reply.raw
    assert server.live.ask("GET", f"/v1/archives/{name}", key=OTHER).code == "model_not_found"
    assert (server.live.ask("GET", "/v1/archives/talk").status, server.live.ask("GET", "/v1/archives/talk").code) == (
        403,
        "not_the_owner",
    )
    assert server.live.ask("GET", "/v1/archives/talk", key=ADMIN).status == 200


def test_deleting_ones_own(server: Tuned) -> None:
    """As OpenAI's client does it: the files go, the name is unknown, and the short name is the older one's again."""
    older, newer = made(server, "twice"), made(server, "twice")
    say = {"model": "twice", "prompt": "A", "max_tokens": 1}
    assert server.live.ask("POST", "/v1/completions", say).json["model"]
    with server.client() as ai, server.client(OTHER) as other:
        with pytest.raises(openai.NotFoundError):
            other.models.delete(newer)
        folder = server.prompts / server.store.jobs(None).items[0].prompt
        assert folder.is_dir()
        deleted = ai.models.delete(newer)
        assert deleted.deleted and deleted.id == newer and not folder.exists()
        assert not [path for path in server.prompts.iterdir() if path.name.startswith(".")]
        with pytest.raises(openai.NotFoundError):
            ai.models.delete(newer)
        assert newer not in {model.id for model in ai.models.list()}
        assert ai.models.retrieve("twice").root == older  # type: ignore[attr-defined]
        assert ai.completions.create(model="twice", prompt="A", max_tokens=1).choices
        assert ai.fine_tuning.jobs.retrieve(server.store.jobs(None).items[0].id).fine_tuned_model == newer


def test_what_only_the_admin_deletes(server: Tuned, public: Path) -> None:
    save_prompt(public / "gone", *TEMPLATES["talk"], 5)
    say = {"model": "gone", "prompt": "A", "max_tokens": 1}
    assert server.live.ask("POST", "/v1/completions", say).status == 200
    for name in ("gone", BASE):
        assert server.live.ask("DELETE", f"/v1/models/{name}").status == 403
    assert server.live.ask("DELETE", f"/v1/models/{BASE}", key=ADMIN).code == "model_not_deletable"
    away = {"origin": "https://evil.example"}
    assert server.live.ask("DELETE", "/v1/models/gone", key=ADMIN, headers=away).code == "origin_not_allowed"
    assert server.live.ask("DELETE", "/v1/models/gone", key=ADMIN).status == 200
    assert not (public / "gone").exists() and server.live.ask("POST", "/v1/completions", say).status == 404
    save_prompt(public / "gone", *TEMPLATES["talk"], 6)
    assert server.live.ask("POST", "/v1/completions", say).status == 200, "a new one of that name is another one"


def test_files_that_are_not_the_servers(tmp_path: Path) -> None:
    save_prompt(tmp_path / "talk", *TEMPLATES["talk"], 1)
    catalogue = Catalogue(tiny_lm("llama", bos=True).geometry, None, {"talk": tmp_path / "talk"})
    with pytest.raises(StoreError, match="--prompt"):
        catalogue.remove("talk")
    (tmp_path / "link").symlink_to(tmp_path / "talk")
    folder = Catalogue(tiny_lm("llama", bos=True).geometry, tmp_path, {})
    assert not folder.remove("link") and not folder.remove("../talk") and (tmp_path / "talk").is_dir()


def test_without_keys_everyone_reads_and_nobody_deletes(public: Path) -> None:
    with live(public, keys=ApiKeys()) as server:
        card = server.ask("GET", "/v1/cards/talk", key="").json
        assert card["readable"] and not card["deletable"]
        assert server.ask("GET", "/v1/archives/talk", key="").status == 200
        assert server.ask("DELETE", "/v1/models/talk", key="").status == 403


def test_an_inspection_is_its_owners(server: Tuned) -> None:
    """From the queue to its result; what is another key's is as unknown as what never was."""
    name = made(server, "read")
    body = {"model": name, "sections": ["nearest", "worth"], "limit": 3}
    created = server.live.ask("POST", INSPECTIONS, body).json
    assert (created["status"], created["model"], created["sections"]) == ("queued", name, ["nearest", "worth"])
    path = f"{INSPECTIONS}/{created['id']}"
    assert server.live.ask("GET", f"{path}/report").code == "no_result"
    inspections = Inspections(server.store)
    record = inspections.claim(BASE, "a-worker", 60)
    assert record is not None and record.prompt == server.store.jobs(None).items[0].prompt
    inspections.progress(record, "worth")
    assert server.live.ask("GET", path).json["section"] == "worth"
    inspections.succeed(record, InspectionResult("<p>A report</p>", '{"name": "read"}'))
    report = server.live.ask("GET", f"{path}/report")
    assert report.raw == b"<p>A report</p>" and "sandbox" in report.headers["content-security-policy"]
    assert server.live.ask("GET", f"{path}/result").json == {"name": "read"}
    for method, rest in (("GET", ""), ("GET", "/result"), ("GET", "/report"), ("DELETE", "")):
        theirs, never = (server.live.ask(method, f"{one}{rest}", key=OTHER) for one in (path, f"{INSPECTIONS}/none"))
        assert theirs.code == "inspection_not_found"
        assert theirs.raw.replace(created["id"].encode(), b"none") == never.raw
    assert server.live.ask("GET", INSPECTIONS, key=OTHER).json["data"] == []
    assert [each["id"] for each in server.live.ask("GET", INSPECTIONS, key=ADMIN).json["data"]] == [created["id"]]
    assert server.live.ask("DELETE", path).json["deleted"] and server.live.ask("GET", path).status == 404


def test_inspections_that_are_refused(server: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    name = made(server, "refused")
    for body, key, status in (
        ({"model": "talk"}, USER, 403),
        ({"model": name}, OTHER, 404),
        ({"model": BASE}, USER, 400),
        ({"model": name, "sections": ["likeness"]}, USER, 400),
        ({"model": name, "file": "file-none"}, USER, 400),
        ({"model": name, "limit": 0}, USER, 400),
    ):
        assert server.live.ask("POST", INSPECTIONS, body, key=key).status == status, body
    monkeypatch.setattr("softprompt.jobs.inspections.MAX_STORED", 0)
    assert MAX_STORED and server.live.ask("POST", INSPECTIONS, {"model": name}).code == "quota_exceeded"
    with live(server.prompts) as plain:
        assert "softprompt serve --jobs" in plain.ask("POST", INSPECTIONS, {"model": name}).json["error"]["message"]


def test_the_readings_are_those_of_inspect() -> None:
    """But for the likeness to other prompts, which may be other people's."""
    schema = json.dumps(InspectionRequest.model_json_schema())
    named = [name for name in READINGS if f'"{name}"' in schema]
    assert named == [name for name in READINGS if name != "likeness"]
