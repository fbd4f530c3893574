"""Files: OpenAI's own client for all five paths, faults by line, caps, and what no name of a file can do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from softprompt.jobs.records import Quotas
from softprompt.server.routes.files import disposition
from softprompt.server.upload import label_of
from tests.support.fine_tuning import OTHER, ROWS, Tuned, tuned, wait_for
from tests.support.live_server import ADMIN, USER, Reply

BOUNDARY = "a-boundary-of-the-tests"


@pytest.fixture(scope="module")
def server(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    quotas = Quotas(file_bytes=50_000, file_rows=200)
    with tuned(tmp_path_factory.mktemp("files"), prompts, quotas=quotas) as running:
        yield running


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE = part("purpose", b"fine-tune")
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def send(server: Tuned, body: bytes, key: str = USER, **headers: str) -> Reply:
    return server.live.ask("POST", "/v1/files", body, key, {"content-type": FORM, **headers})


def uploads(server: Tuned) -> list[Path]:
    """Temporary files, of which none may be left."""
    return list(server.store.files.contents.folder.glob(".upload-*"))


def test_the_five_paths(server: Tuned) -> None:
    with server.client() as ai:
        before = len(ai.files.list().data)
        made = ai.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
        assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(ROWS), "rows.jsonl", "fine-tune")
        assert made.status == "processed" and made.id.startswith("file-")
        assert ai.files.retrieve(made.id) == made
        assert ai.files.content(made.id).read() == ROWS
        assert next(iter(ai.files.list(limit=1))).id == made.id
        assert len(list(ai.files.list(limit=1))) == before + 1, "the client follows the pages"
        assert not ai.files.list(purpose="fine-tune-results").data
        assert ai.files.list(order="asc").data[-1].id == made.id
        deleted = ai.files.delete(made.id)
        assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
        for gone in (ai.files.retrieve, ai.files.delete, ai.files.content):
            with pytest.raises(openai.NotFoundError) as caught:
                gone(made.id)
            assert caught.value.code == "file_not_found"


def test_the_five_paths_async(server: Tuned) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.live.url}/v1", api_key=USER, max_retries=0) as ai:
            made = await ai.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
            assert await ai.files.retrieve(made.id) == made
            assert (await ai.files.content(made.id)).read() == ROWS
            assert made.id in [file.id async for file in ai.files.list()]
            assert (await ai.files.delete(made.id)).deleted

    asyncio.run(use())


def test_the_same_content_is_stored_once(server: Tuned) -> None:
    content = ROWS.replace(b"Say", b"Tell")
    with server.client() as ai, server.client(OTHER) as other:
        one, two = (c.files.create(file=("x.jsonl", content), purpose="fine-tune") for c in (ai, other))
        folder = server.store.files.contents.folder
        assert one.id != two.id
        count = len(list(folder.iterdir()))
        ai.files.delete(one.id)
        assert len(list(folder.iterdir())) == count and other.files.content(two.id).read() == content
        other.files.delete(two.id)
        assert len(list(folder.iterdir())) == count - 1


def test_faults_are_told_by_line(server: Tuned) -> None:
    rows = [b'{"prompt": "A", "completion": "B"}', b"3", b'{"prompt": "A"}', b'{"prompt": "A", "completion": "B"']
    with server.client() as ai, pytest.raises(openai.BadRequestError) as caught:
        ai.files.create(file=("rows.jsonl", b"\n".join(rows)), purpose="fine-tune")
    error: Any = caught.value.body
    assert (error["code"], error["param"], error["type"]) == ("invalid_file_format", "file", "invalid_request_error")
    lines = error["message"].splitlines()
    assert [line.split(":")[0] for line in lines[1:4]] == ["line 2", "line 3", "line 4"]
    assert str(server.store.home) not in error["message"] and ".upload-" not in error["message"]
    assert not uploads(server)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b"\n\n", "no rows"),
        ("rows.jsonl", b'{"prompt": "\xff", "completion": "B"}', "UTF-8"),
        ("rows.jsonl", b"\x1f\x8b\x08\x00" * 9, "UTF-8"),
        ("rows.csv", b"prompt,completion\nA,B\n", "data convert"),
        ("text.txt", b"  \n", "no text"),
        ("text.md", b"fine\n\xff", "after line"),
        ("rows.jsonl", b'{"a": 1}\n' * 30, "The first ones"),
    ],
)
def test_a_file_that_is_no_use(name: str, content: bytes, said: str, server: Tuned) -> None:
    reply = send(server, part("file", content, name) + PURPOSE + END)
    assert (reply.status, reply.code) == (400, "invalid_file_format")
    assert said in reply.json["error"]["message"], reply.json
    assert str(server.store.home) not in reply.json["error"]["message"]


def test_a_text_to_distill(server: Tuned) -> None:
    reply = send(server, part("file", "Grüß Gott".encode(), "text.txt") + PURPOSE + END)
    assert reply.status == 200 and reply.json["filename"] == "text.txt"
    assert server.live.ask("GET", f"/v1/files/{reply.json['id']}/content").raw.decode() == "Grüß Gott"


FILE = part("file", ROWS, "rows.jsonl")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (FILE + PURPOSE, 400, "invalid_multipart"),  # cut off before its end
        ((FILE + PURPOSE + END)[:200], 400, "invalid_multipart"),
        (b"", 400, "invalid_multipart"),
        (b"no multipart at all", 400, "invalid_multipart"),
        (PURPOSE + END, 400, "missing_required_parameter"),
        (FILE + END, 400, "missing_required_parameter"),
        (FILE + FILE + PURPOSE + END, 400, "invalid_multipart"),
        (FILE + part("purpose", b"fine-tune-results") + END, 400, "invalid_value"),
        (FILE + part("purpose", b"assistants") + END, 400, "invalid_value"),
        (FILE + part("purpose", b"\xff") + END, 400, "invalid_multipart"),
        (FILE + PURPOSE + part("expires_after[seconds]", b"3600") + END, 400, "unsupported_parameter"),
        (FILE + PURPOSE + part("path", b"/etc/passwd") + END, 400, "unknown_parameter"),
        (FILE + part("purpose", b"x" * 2000) + END, 400, "invalid_multipart"),
        (b"".join(part(f"f{i}", b"") for i in range(9)) + FILE + END, 400, "invalid_multipart"),
        (f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nA\r\n".encode() + END, 400, "invalid_multipart"),
        (f"--{BOUNDARY}\r\n{'X: y' * 5000}\r\n\r\nA\r\n".encode() + END, 400, "invalid_multipart"),
    ],
)
def test_bodies_that_are_no_upload(body: bytes, status: int, code: str, server: Tuned) -> None:
    reply = send(server, body)
    assert (reply.status, reply.code) == (status, code), reply.raw
    assert not uploads(server)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "application/json"}, 415, "unsupported_media_type"),
        ({"content-type": "multipart/form-data"}, 415, "unsupported_media_type"),
        ({"content-type": f"multipart/form-data; boundary={'b' * 5000}"}, 400, "invalid_multipart"),
        ({"content-encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ({"origin": "null"}, 403, "origin_not_allowed"),
    ],
)
def test_headers_that_are_no_upload(headers: dict[str, str], status: int, code: str, server: Tuned) -> None:
    reply = send(server, FILE + PURPOSE + END, **headers)
    assert (reply.status, reply.code) == (status, code), reply.raw


def test_the_servers_own_page_may_upload(server: Tuned) -> None:
    assert send(server, FILE + PURPOSE + END, origin=server.live.url).status == 200


def test_caps(server: Tuned) -> None:
    big = part("file", b"x" * 50_001, "rows.jsonl") + PURPOSE + END
    huge = part("file", b"x" * 90_000, "rows.jsonl") + PURPOSE + END
    for body in (big, huge):
        reply = send(server, body)
        assert (reply.status, reply.code) == (413, "body_too_large")
    reply = send(server, part("file", ROWS * 26, "rows.jsonl") + PURPOSE + END)
    assert (reply.status, reply.code) == (413, "too_many_rows")
    assert not uploads(server)


def test_quotas_of_a_key(prompts: Path, tmp_path: Path) -> None:
    with tuned(tmp_path, prompts, quotas=Quotas(stored_files=2)) as server, server.client() as ai:
        made = [ai.files.create(file=("a.jsonl", ROWS), purpose="fine-tune") for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            ai.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
        assert caught.value.code == "quota_exceeded"
        assert caught.value.response.headers["x-should-retry"] == "false"
        with server.client(OTHER) as other:
            assert other.files.create(file=("a.jsonl", ROWS), purpose="fine-tune").id
        ai.files.delete(made[0].id)
        assert ai.files.create(file=("a.jsonl", ROWS), purpose="fine-tune").id


NAMES = [
    ("../../etc/passwd", "passwd"),
    ("C:\\\\rows.jsonl", "rows.jsonl"),
    ("<script>alert(1)<.jsonl", "<script>alert(1)<.jsonl"),
    ("a\u202eb\u0007.jsonl", "ab.jsonl"),
    ("..", "upload"),
    ("x" * 300 + ".jsonl", "x" * 122 + ".jsonl"),
]


@pytest.mark.parametrize(("name", "label"), NAMES)
def test_a_files_name_is_a_label(name: str, label: str, server: Tuned) -> None:
    assert label_of(name) == label
    reply = send(server, part("file", ROWS, name.replace('"', "%22")) + PURPOSE + END)
    assert reply.status == 200
    file = reply.json
    assert file["filename"] == label_of(name)
    loaded = server.live.ask("GET", f"/v1/files/{file['id']}/content")
    assert loaded.raw == ROWS
    assert loaded.headers["content-type"] == "application/octet-stream"
    assert loaded.headers["x-content-type-options"] == "nosniff"
    assert loaded.headers["content-disposition"].startswith("attachment; filename=")
    assert "<" not in loaded.headers["content-disposition"]


def test_the_header_of_a_download() -> None:
    assert disposition("rows.jsonl") == 'attachment; filename="rows.jsonl"'
    odd = disposition('a"; x=\r\nEvil: ü')
    assert "\r" not in odd and odd.count('"') == 2 and odd.isascii()


def test_others_files_do_not_exist(server: Tuned) -> None:
    with server.client() as ai, server.client(OTHER) as other, server.client(ADMIN) as admin:
        made = ai.files.create(file=("mine.jsonl", ROWS), purpose="fine-tune")
        replies = [
            [
                server.live.ask(method, f"/v1/files/{name}{rest}", key=OTHER)
                for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
            ]
            for name in (made.id, "file-nobodys")
        ]
        for mine, unknown in zip(*replies, strict=True):
            assert mine.status == unknown.status == 404
            assert mine.raw.replace(made.id.encode(), b"file-nobodys") == unknown.raw
        assert made.id not in [file.id for file in other.files.list()]
        with pytest.raises(openai.BadRequestError):
            other.files.list(after=made.id)
        assert made.id in [file.id for file in admin.files.list()]
        assert admin.files.content(made.id).read() == ROWS
        assert ai.files.retrieve(made.id) == made


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "limit=10001", "order=up", "after=file-none", "limt=3", "limit=1&limit=2", "metadata=null"],
)
def test_odd_queries(query: str, server: Tuned) -> None:
    reply = server.live.ask("GET", f"/v1/files?{query}")
    assert reply.status == 400 and reply.json["error"]["param"] in {"limit", "order", "after", "limt", "metadata"}


def test_a_client_that_leaves_in_the_middle(server: Tuned) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\n"
        f"content-type: {FORM}\r\ncontent-length: 40000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.live.port), timeout=60) as connection:
        connection.sendall(head.encode() + FILE)
        wait_for(lambda: bool(uploads(server)))
    wait_for(lambda: not uploads(server) and not server.live.service.rate_limit.requests)


def test_many_uploads_at_a_time(server: Tuned) -> None:
    results: list[str] = []

    def one(i: int) -> None:
        with server.client() as ai:
            rows = json.dumps({"prompt": str(i), "completion": "B"}).encode()
            results.append(ai.files.create(file=(f"{i}.jsonl", rows), purpose="fine-tune").id)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 6


def test_rows_in_one_form(server: Tuned) -> None:
    """Whatever shape they have: the turns before the answer, and every right answer; page by page."""
    shapes = {
        "labels": ([{"text": "a", "text2": "b", "label": "x"}, {"text": "c", "text2": "d", "label": 3}], "a\nb", ["x"]),
        "completions": ([{"prompt": "p", "completion": "c", "references": ["c", "d"]}], "p", ["c", "d"]),
        "squad": (
            [{"context": "In Rome.", "question": "Where?", "answers": {"text": ["Rome"]}}],
            "In Rome.\nWhere?",
            ["Rome"],
        ),
    }
    for rows, asked, right in shapes.values():
        page = row_page(server, rows)
        assert page["data"][0]["messages"] == [{"role": "user", "content": asked}]
        assert page["data"][0]["references"] == right
        assert [row["line"] for row in page["data"]] == list(range(1, len(rows) + 1))
    turns = [{"role": role, "content": role[:1]} for role in ("system", "user", "assistant", "user", "assistant")]
    (talk,) = row_page(server, [{"messages": turns}])["data"]
    assert (talk["messages"], talk["references"], talk["tools"]) == (turns[:-1], ["a"], False)
    (choice,) = row_page(server, [{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}])["data"]
    assert (choice["choices"], choice["references"], choice["scoring"]) == (["3", "4"], ["4"], "choices")
    many = [{"prompt": f"p{i}", "completion": "c"} for i in range(7)]
    pages = [row_page(server, many, f"?after={after}&limit=3") for after in (0, 3, 6)]
    assert [row["messages"][0]["content"] for page in pages for row in page["data"]] == [row["prompt"] for row in many]
    assert [page["has_more"] for page in pages] == [True, True, False]


def test_rows_of_what_has_none(server: Tuned) -> None:
    """A text has no rows, and another key's file is unknown."""
    with server.client() as client:
        text = client.files.create(file=("text.txt", b"A text."), purpose="fine-tune").id
        rows = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
    reply = server.live.ask("GET", f"/v1/files/{text}/rows")
    assert (reply.status, reply.code) == (400, "no_rows")
    assert server.live.ask("GET", f"/v1/files/{rows}/rows", key=OTHER).status == 404
    assert server.live.ask("GET", f"/v1/files/{rows}/rows?limit=0").status == 400


def row_page(server: Tuned, rows: list[dict[str, Any]], query: str = "") -> Any:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with server.client() as client:
        file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    reply = server.live.ask("GET", f"/v1/files/{file}/rows{query}")
    assert reply.status == 200 and str(server.store.home).encode() not in reply.raw
    return reply.json
