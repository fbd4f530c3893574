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
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROWS = ROOT / "examples" / "helpdesk"
MAX_BYTES = 150_000
COLORS = 128  # of the palette of a picture for the docs
LOOKS = ((375, 800), (1280, 900), (2560, 1400))
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
    (folder / "prompts").mkdir()
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
    from openai import OpenAI

    quick = model == "tiny"
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    lines = (ROWS / "train.jsonl").read_text().splitlines()[: 24 if quick else None]
    rows = client.files.create(file=("helpdesk.jsonl", "\n".join(lines).encode()), purpose="fine-tune").id
    held_out = (ROWS / "validation.jsonl").read_text().splitlines()[: 4 if quick else 24]
    test = client.files.create(file=("helpdesk-test.jsonl", "\n".join(held_out).encode()), purpose="fine-tune").id
    base = server.ask("GET", "/v1/models")["data"][0]["id"]
    made = []
    for suffix, tokens, epochs in (("helpdesk", 16, 3), ("helpdesk-short", 4, 1)):
        settings: Any = {"n_epochs": epochs, "batch_size": 8}
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=rows,
            validation_file=test,
            suffix=suffix,
            method={"type": "supervised", "supervised": {"hyperparameters": settings}},
            extra_body={"soft_prompt": {"method": "prompt-tuning", "n_tokens": tokens}},
        )
        made.append(server.wait(f"/v1/fine_tuning/jobs/{job.id}"))
    first = made[0]["fine_tuned_model"]
    asked = {"model": first, "sections": ["nearest", "drift", "worth", "attention"], "limit": 8}
    inspection = server.ask("POST", "/v1/inspections", asked)
    server.wait(f"/v1/inspections/{inspection['id']}")
    names = {"base": base, "first": first, "second": made[1]["fine_tuned_model"], "job": made[0]["id"]}
    return names | {"test": test, "inspection": inspection["id"]}


def addresses(found: dict[str, str]) -> dict[str, dict[str, str]]:
    """Parameters of each view that show something."""
    columns = f"base,{found['first']},{found['second']}"
    return {
        "prompts": {"name": found["first"]},
        "compare": {"columns": columns, "prompt": "Where is my parcel?"},
        "evaluate": {"columns": columns, "file": found["test"]},
        "train": {"job": found["job"]},
        "distill": {},
        "inspect": {"id": found["inspection"]},
    }


def act(page: Page, view: str) -> None:
    """Do what the view is for, where nothing is shown before."""
    name = {"compare": "Compare", "evaluate": "Evaluate"}.get(view)
    if name is not None:
        button = page.get_by_role("main").get_by_role("button", name=name)
        if button.count():
            button.first.click()
            page.wait_for_timeout(20_000 if view == "evaluate" else 8_000)


def shot(page: Page, server: Server, view: str, parameters: dict[str, str]) -> bytes:
    """The view as it looks when everything is there."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    page.goto("about:blank")
    page.goto(f"{server.url}/studio/#/{view}{query}")
    page.wait_for_load_state("networkidle")
    act(page, view)
    page.wait_for_timeout(700)
    return page.screenshot()


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
        folder = Path(name)
        is_tiny = options.model == "tiny"
        model = str(save_tiny(folder / "tiny", "llama")) if is_tiny else options.model
        with studio(model, folder) as server, sync_playwright() as started:
            views = addresses(fill(server, "tiny" if is_tiny else options.model))
            wanted = {view: views[view] for view in options.only.split(",") if view} or views
            browser = started.chromium.launch(executable_path=program)
            pictures(browser, server, wanted, options.look)
            browser.close()


if __name__ == "__main__":
    main()
