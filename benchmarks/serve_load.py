"""guidellm as shipped against a server of its own: streams that ask for exact lengths, and half of them for JSON.

    python -m benchmarks.serve_load [--half] [--streams 16] [--seconds 50] [--clients VENV] [--out FILE]

VENV is an environment with guidellm (`scripts/setup-clients`). What must hold: no request fails, and with --half every
output of the streams that ask for a schema is of it. Half of the streams are a second guidellm at the same time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.serve_soak import SERVER, USER, started
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.server.model_directory import served_name

# Each fits into 16 tokens: what is cut by its length is no JSON.
SCHEMA = {"enum": ["parcel", "refund", "complaint", "a word of thanks", 12, None]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "topic", "schema": SCHEMA}}


def guidellm(options: argparse.Namespace, target: str, name: str, streams: int, folder: Path, held: bool) -> list[str]:
    """The command line of a load generator."""
    backend: dict[str, Any] = {
        "kind": "openai_http",
        "target": target,
        "model": name,
        "api_key": USER,
    }
    backend |= {"extras": {"body": {"response_format": FORMAT}}} if held else {}
    given = {
        "backend": json.dumps(backend),
        "profile": f"kind=concurrent,streams={streams}",
        "constraint": f"kind=max_duration,seconds={options.seconds}",
        "tokenizer": f"kind=huggingface_auto,model={folder / 'tokenizer'}",
        "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "output": f"kind=json,path={folder / f'{held}.json'}",
    }
    command = [str(options.clients / "bin" / "guidellm"), "run", "--disable-console"]
    return command + [part for option, value in given.items() for part in (f"--{option}", value)]


def told(report: Path, held: bool) -> dict[str, Any]:
    """Counts of a report, and outputs that are not of the schema."""
    (load,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    done = load["requests"]["successful"]
    wrong = [one["output"] for one in done if held and not _fits(one["output"])]
    return {
        "constrained": held,
        "successful": len(done),
        "errored": len(load["requests"]["errored"]),
        "cut_by_the_clock": len(load["requests"]["incomplete"]),
        "invalid": len(wrong),
        "first_invalid": wrong[:3],
        "first_errors": [str(one)[:300] for one in load["requests"]["errored"][:3]],
    }


def _fits(text: object) -> bool:
    try:
        return isinstance(text, str) and json.loads(text) in SCHEMA["enum"]
    except ValueError:
        return False


def save_tokenizer(lm: FrozenLM, folder: Path) -> None:
    """Save it so that Transformers 4, which guidellm brings, reads it, too: it lacks the class that 5 names."""
    lm.tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(values), encoding="utf-8")


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Server and load; the numbers."""
    lm = load_model(options.model)
    save_tokenizer(lm, folder / "tokenizer")
    (folder / "prompts").mkdir()
    process, port = started(SERVER, options.model, folder / "prompts", 4)
    halves = (
        [(options.streams // 2, False), (options.streams // 2, True)] if options.half else [(options.streams, False)]
    )
    try:
        target, name = f"http://127.0.0.1:{port}", served_name(lm.name)
        del lm
        loads = [
            subprocess.Popen(  # noqa: S603
                guidellm(options, target, name, streams, folder, held), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for streams, held in halves
        ]
        outputs = [load.communicate()[0].decode(errors="replace") for load in loads]
    finally:
        process.terminate()
        process.wait(60)
    for load, output in zip(loads, outputs, strict=True):
        if load.returncode:
            raise SystemExit(output[-3000:])
    return {"loads": [told(folder / f"{held}.json", held) for _, held in halves], "exit_code": process.returncode}


def main(given: Sequence[str] | None = None) -> None:
    """Run it; exit with 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=Path, default=Path(".venv-clients/guidellm"))
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=50)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    text = json.dumps({"machine": facts(), "streams": options.streams, "seconds": options.seconds, **result}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    failed = any(load["errored"] or load["invalid"] or not load["successful"] for load in result["loads"])
    sys.exit(int(failed or result["exit_code"] != 0))


if __name__ == "__main__":
    main()
