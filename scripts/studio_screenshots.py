"""Pictures of every view of the studio, from a real server that trains on examples/helpdesk.

    scripts/studio-screenshots                              # docs/images/studio-*.png, smollm2-135m, minutes
    scripts/studio-screenshots --model tiny --look /tmp/x   # every view at three widths in both themes, a random model

Playwright of the group dev drives the Chromium of scripts/setup-browser.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROWS = ROOT / "examples" / "helpdesk"
POLICY = ROOT / "examples" / "distill_policy"
ASKED = "my parcel was due yesterday and the tracking has not moved, I need it for a birthday tomorrow"
INSTRUCTION = 'Sort the message. Answer with JSON alone: {"queue": ..., "urgency": ...}'
FOUND = "views.json"  # in the folder of --keep: the parameters of the views
MAX_BYTES = 150_000
COLORS = 128  # of the palette of a picture for the docs
LOOKS = ((375, 800), (1280, 900), (2560, 1400))
MOST_HEIGHT = 1500  # of a picture
LONGEST_S = 900  # of a view that works
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Server:
    """A running studio."""

    url: str

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call of its API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def wait(self, path: str) -> Any:
        """What a job or an inspection is when it has ended."""
        while (found := self.ask("GET", path))["status"] not in ENDED:
            time.sleep(1)
        if found["status"] != "succeeded":
            raise SystemExit(f"{path}: {found['error']}")
        return found


@contextlib.contextmanager
def studio(model: str, folder: Path) -> Iterator[Server]:
    """The verb `softprompt studio`, with everything it keeps in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    (folder / "prompts").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "softprompt", "studio", "--model", model, "--no-browser", "--port", str(port)]
    command += ["--store", str(folder / "jobs"), "--prompts-dir", str(folder / "prompts"), "--device", "cpu"]
    command += ["--worker-device", "cpu", "--served-name", "smollm2-135m" if model == "smollm2-135m" else "tiny"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log)
        server = Server(f"http://127.0.0.1:{port}")
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{server.url}/readyz", timeout=5)
                    break
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def fill(server: Server, model: str) -> dict[str, str]:
    """Jobs, soft prompts and a report, as somebody has after an hour; the parameters of the views."""
    quick = model == "tiny"
    rows = upload(server, "helpdesk.jsonl", (ROWS / "train.jsonl").read_text().splitlines()[: 24 if quick else None])
    held_out = (ROWS / "validation.jsonl").read_text().splitlines()[: 4 if quick else None]
    test = upload(server, "helpdesk-test.jsonl", held_out[:12])
    base = server.ask("GET", "/v1/models")["data"][0]["id"]
    common = {
        "model": base,
        "training_file": rows,
        "validation_file": upload(server, "helpdesk-held-out.jsonl", held_out),
    }
    length = {"n_tokens": 16} | ({"minutes": 0.1} if quick else {"minutes": 3})
    first = job(server, {**common, "suffix": "helpdesk", "soft_prompt": length})
    short = {"method": "prompt-tuning", "n_tokens": 4, "minutes": 0.1 if quick else 1}
    second = job(server, {**common, "suffix": "helpdesk-short", "soft_prompt": short})
    inspected = first["fine_tuned_model"]
    asked = {"model": inspected, "sections": ["nearest", "drift", "worth", "attention"], "limit": 8}
    inspection = server.ask("POST", "/v1/inspections", asked)
    server.wait(f"/v1/inspections/{inspection['id']}")
    found = {"first": inspected, "second": second["fine_tuned_model"], "job": first["id"], "test": test}
    return found | {"inspection": inspection["id"], "distilled": distilled(server, base, quick)}


def found_or_made(server: Server, folder: Path, model: str) -> dict[str, str]:
    """What `fill` has made in this folder, perhaps in an earlier run."""
    file = folder / FOUND
    if not file.exists():
        file.write_text(json.dumps(fill(server, model)))
    return json.loads(file.read_text())


def upload(server: Server, name: str, lines: list[str]) -> str:
    """The id of a new file."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    return client.files.create(file=(name, "\n".join(lines).encode()), purpose="fine-tune").id


def job(server: Server, body: dict[str, Any]) -> Any:
    """A job that has ended."""
    made = server.ask("POST", "/v1/fine_tuning/jobs", body)
    return server.wait(f"/v1/fine_tuning/jobs/{made['id']}")


def distilled(server: Server, base: str, quick: bool) -> str:
    """The id of a job that has distilled the policy of examples/distill_policy."""
    text = upload(server, "policy.md", (POLICY / "policy.md").read_text().splitlines()[: 1 if quick else None])
    own = {"n_tokens": 16, "distill": {"file": text, "mode": "text"}}
    return job(server, {"model": base, "suffix": "policy", "soft_prompt": own})["id"]


def addresses(found: dict[str, str]) -> dict[str, dict[str, str]]:
    """Parameters of each view that show something."""
    columns = {"columns": f"base,text,{found['first']}", "text": INSTRUCTION, "place": "system"}
    return {
        "prompts": {"name": found["first"]},
        "compare": {**columns, "prompt": ASKED, "max_tokens": "32"},
        "evaluate": {**columns, "file": found["test"], "max_tokens": "20", "limit": "8"},
        "train": {"job": found["job"]},
        "distill": {"job": found["distilled"]},
        "inspect": {"id": found["inspection"]},
    }


def act(page: Page, view: str) -> None:
    """Do what the view is for, where nothing is shown before, until it is done."""
    if view not in ("compare", "evaluate"):
        return
    go, stop = (("Send", "Run"), "Stop all") if view == "compare" else (("Start", "Start anew"), "Stop")
    buttons = page.get_by_role("main").get_by_role("button")
    names = buttons.all_inner_texts()
    page.get_by_role("main").get_by_role("button", name=next(n for n in go if n in names), exact=True).click()
    page.wait_for_timeout(1_000)
    halt = page.get_by_role("main").get_by_role("button", name=stop, exact=True)
    for _ in range(LONGEST_S):
        if not halt.is_enabled():
            break
        page.wait_for_timeout(1_000)


def shot(page: Page, server: Server, view: str, parameters: dict[str, str]) -> bytes:
    """The view as it looks when everything is there."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    page.goto("about:blank")
    page.goto(f"{server.url}/studio/#/{view}{query}")
    page.wait_for_load_state("networkidle")
    act(page, view)
    page.wait_for_timeout(700)
    height, size = page.evaluate("document.documentElement.scrollHeight"), page.viewport_size
    assert size is not None
    clip: FloatRect = {"x": 0, "y": 0, "width": size["width"], "height": min(height, MOST_HEIGHT)}
    return page.screenshot(full_page=True, clip=clip)


def small(png: bytes) -> bytes:
    """The picture with a palette."""
    from PIL import Image

    target = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS).save(target, "PNG", optimize=True)
    return target.getvalue()


def pictures(browser: Browser, server: Server, views: dict[str, dict[str, str]], look: Path | None) -> None:
    """The pictures of the docs, or with `look` those to judge by."""
    sizes = ((1280, 900),) if look is None else LOOKS
    for width, height in sizes:
        for dark in (False,) if look is None else (False, True):
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            for view, parameters in views.items():
                png = shot(page, server, view, parameters)
                if look is not None:
                    (look / f"{view}-{width}-{'dark' if dark else 'light'}.png").write_bytes(png)
                    continue
                target = ROOT / "docs" / "images" / f"studio-{view}.png"
                target.write_bytes(small(png))
                print(target.relative_to(ROOT), target.stat().st_size)
                if target.stat().st_size > MAX_BYTES:
                    raise SystemExit(f"{target} is larger than {MAX_BYTES} bytes")
            page.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="or tiny, a random one of two layers")
    parser.add_argument("--look", type=Path, help="write every view at three widths in both themes to this folder")
    parser.add_argument("--keep", type=Path, help="folder of jobs and soft prompts; what is there is not made again")
    parser.add_argument("--only", default="", help="these views, separated by commas")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.support.chromium import MISSING, find_chromium
    from tests.support.saved import save_tiny

    program = find_chromium()
    if program is None:
        raise SystemExit(MISSING)
    (options.look or ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        is_tiny = options.model == "tiny"
        model = str(save_tiny(folder / "tiny", "llama")) if is_tiny else options.model
        with studio(model, folder) as server, sync_playwright() as started:
            views = addresses(found_or_made(server, folder, "tiny" if is_tiny else options.model))
            wanted = {view: views[view] for view in options.only.split(",") if view} or views
            browser = started.chromium.launch(executable_path=program)
            pictures(browser, server, wanted, options.look)
            browser.close()


if __name__ == "__main__":
    main()
