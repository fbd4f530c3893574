"""Read a document in pieces and keep 64 virtual tokens of it. The model writes the questions itself.

python examples/distill_document/distill_document.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from pathlib import Path

DATA = Path(os.path.relpath(Path(__file__).parent))


def run(command: str) -> None:
    """Print a command and run it."""
    print("$", command, flush=True)
    subprocess.run(shlex.split(command), check=True)  # noqa: S603 - the commands below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--document", default=str(DATA / "handbook.md"))
    parser.add_argument("--steps", default="12")
    arguments = parser.parse_args()

    # Small numbers, so that it ends soon: 24 questions instead of 320, and pieces of 160 tokens instead of 512.
    run(
        f"softprompt distill --model {arguments.model} --document {arguments.document} --name handbook --n-tokens 64"
        f" --queries 24 --study.held_out 6 --study.chunk_tokens 160 --study.answer_tokens 16"
        f" --steps {arguments.steps} --overwrite"
    )
    run('softprompt generate handbook "Who repairs the oars?" --max-new-tokens 24')


if __name__ == "__main__":
    main()
