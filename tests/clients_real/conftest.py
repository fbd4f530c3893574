"""Where the server is, and what each client can do, written to $SOFTPROMPT_CLIENT_RESULTS for docs/guides/clients.md.

A file is a client, and a test `test_FEATURE` one of its features, with the base model or behind a soft prompt. The real
135M model answers, so answers are short and their words are not looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

URL, BASE = os.environ.get("SOFTPROMPT_CLIENT_URL", ""), "smollm2-135m"
SOFT = "talk"  # a soft prompt for conversations
PLAIN = "plain"  # one whose template leaves a text as it is
NODE = Path(__file__).with_name("node")
PACKAGES = {  # of the clients; their own names else
    "openai_python": "openai",
    "langchain": "langchain-openai",
    "llama_index": "llama-index-llms-openai-like",
    "pydantic_ai": "pydantic-ai-slim",
    "llm_cli": "llm",
}
NODE_PACKAGES = {"openai_node": "openai", "ai_sdk": "ai"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", [BASE, SOFT], ids=["base", "soft prompt"])


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client finds the server and a key, and sends nothing elsewhere."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{URL}/v1")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        client = item.path.stem.removeprefix("test_")
        feature, _, model = item.name.removeprefix("test_").partition("[")
        reason = "" if report.passed else _reason(report)
        fact = {"client": client, "version": _version(client), "feature": feature, "model": model.rstrip("]")}
        fact |= {"result": report.outcome, "reason": reason}
        folder = Path(os.environ.get("SOFTPROMPT_CLIENT_RESULTS", ".client-results"))
        folder.mkdir(exist_ok=True)
        name = f"{client}-{feature}-{fact['model']}.json".replace(" ", "-")
        (folder / name).write_text(json.dumps(fact, indent=1), encoding="utf-8")
    return report


def _version(client: str) -> str:
    if client not in NODE_PACKAGES:
        return version(PACKAGES.get(client, client))
    file = Path(os.environ["SOFTPROMPT_CLIENT_NODE"]) / "node_modules" / NODE_PACKAGES[client] / "package.json"
    return json.loads(file.read_text(encoding="utf-8"))["version"]


def _reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):  # skipped
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message.splitlines()[0][:200] if crash is not None else str(report.longrepr)[-200:]


def node(script: str, feature: str, model: str) -> Any:
    """What a feature of a Node script prints as JSON, with the packages of $SOFTPROMPT_CLIENT_NODE."""
    packages = Path(os.environ["SOFTPROMPT_CLIENT_NODE"])
    copy = packages / script  # imports are looked up from where a script lies
    copy.write_text((NODE / script).read_text(encoding="utf-8"), encoding="utf-8")
    run = subprocess.run(
        ["node", str(copy), feature, f"{URL}/v1", model], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-1500:]
    return json.loads(run.stdout.splitlines()[-1])
