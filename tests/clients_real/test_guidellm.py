"""guidellm: a load generator, which asks for exact lengths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.clients_real.conftest import URL


def test_streaming(model: str, tmp_path: Path) -> None:
    """Two streams for ten seconds: no request fails."""
    report, tokenizer = tmp_path / "report.json", os.environ["SOFTPROMPT_CLIENT_TOKENIZER"]
    options = {
        "backend": f"kind=openai_http,target={URL},model={model}",
        "profile": "kind=concurrent,streams=2",
        "constraint": "kind=max_duration,seconds=10",
        "tokenizer": f"kind=huggingface_auto,model={tokenizer}",
        "data": "kind=synthetic_text,prompt_tokens=16,output_tokens=4",
        "output": f"kind=json,path={report}",
    }
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr[-1500:]
    (load,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    requests = load["requests"]
    assert requests["successful"] and not requests["errored"]
