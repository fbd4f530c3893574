"""See inside a soft prompt: what it changes, which virtual tokens and layers carry it, and a page with pictures.

python examples/inspect_a_prompt/inspect_a_prompt.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from pathlib import Path

FEEDBACK = os.path.relpath(Path(__file__).parents[1] / "classify")


def run(command: str) -> None:
    """Print a command and run it."""
    print("$", command, flush=True)
    subprocess.run(shlex.split(command), check=True)  # noqa: S603 - the commands below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", default="40")
    arguments = parser.parse_args()

    # Eight virtual tokens that start as words, so that there is something to compare them with.
    run(
        f"softprompt train --model {arguments.model} --data {FEEDBACK} --name feedback-words --method prompt-tuning"
        f" --n-tokens 8 --init-text 'Is it a bug, idea, praise or question?' --steps {arguments.steps}"
        " --overwrite --quiet"
    )
    run(
        f"softprompt inspect feedback-words --data {FEEDBACK}/test.csv --only behavior,nearest,worth,layers --limit 12"
        " --html --overwrite"
    )


if __name__ == "__main__":
    main()
