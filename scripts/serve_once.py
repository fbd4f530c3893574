"""Serve a model and the soft prompts beside it, send one request, and end: python scripts/serve_once.py MODEL.

Knows the standard library alone, since it runs in the environments of scripts/test-extras.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

SECONDS = 900  # to load the model; a new environment compiles torch first


def fetch(address: str, body: dict[str, object] | None = None) -> bytes:
    """The answer to a GET, or to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return answer.read()


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Return when the server answers; raise if it ends or takes too long."""
    for _ in range(SECONDS):
        try:
            fetch(f"{url}/readyz")
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit(f"the server ended with {server.returncode}") from None
            time.sleep(1)
        else:
            return
    raise SystemExit("the server is not ready")


def main(model: str) -> None:
    """Start, ask a soft prompt and the studio, stop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["softprompt", "serve", "--model", model, "--port", str(port), "--device", "cpu", "--studio"]
    with subprocess.Popen(command) as server:  # noqa: S603
        try:
            wait_until_ready(server, url)
            models = json.loads(fetch(f"{url}/v1/models"))["data"]
            name = next(each["id"] for each in models if each["id"] == "helpdesk")
            answer = json.loads(fetch(f"{url}/v1/completions", {"model": name, "prompt": "a card", "max_tokens": 4}))
            assert answer["usage"]["completion_tokens"] <= 4
            assert b"<html" in fetch(f"{url}/studio/")
        finally:
            server.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
