"""Two soft prompts for the client tests, trained in a minute, and the base model's tokenizer.

python -m scripts.client_prompts PROMPTS TOKENIZER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from softprompt.models.loading import load_tokenizer

BASE = "smollm2-135m"
QUESTIONS = {"Where is my parcel?": "It is in Rome.", "When will it come?": "It comes on Monday.", "Hello!": "Hello!"}


def main() -> None:
    prompts, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    load_tokenizer(BASE).save_pretrained(tokenizer)
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in QUESTIONS.items()]
    train(prompts, "talk", [{"messages": row} for row in rows])
    train(prompts, "plain", [{"prompt": q, "completion": a} for q, a in QUESTIONS.items()], "--no-chat")


def train(folder: Path, name: str, rows: list[dict[str, object]], *options: str) -> None:
    """Train a soft prompt on these rows, unless it is there."""
    if (folder / name).is_dir():
        return
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
        command = [sys.executable, "-m", "softprompt", "train", "--model", BASE, "--data", str(data), "--name", name]
        command += ["--recipe", "fixed", "--steps", "4", "--n-tokens", "8", "--batch-size", "4", *options]
        home = {"SOFTPROMPT_HOME": str(folder.resolve())}
        subprocess.run(command, check=True, env=os.environ | home)  # noqa: S603


if __name__ == "__main__":
    main()
