"""Score a soft prompt and its base model on a task of lm-evaluation-harness. Run it in the repository's root.

python examples/evaluate_with_lm_eval/evaluate_with_lm_eval.py
"""

from __future__ import annotations

import argparse
import shlex
import subprocess


def run(command: str) -> None:
    """Print a command and run it."""
    print("$", command, flush=True)
    subprocess.run(shlex.split(command), check=True)  # noqa: S603 - the commands below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", default="40")
    arguments = parser.parse_args()

    # The harness sends texts as they are, so the task must write the words of the template.
    run(
        f"softprompt train --model {arguments.model} --data examples/classify --name feedback-lm-eval"
        rf" --template 'Message: {{text}}\nClass:' --steps {arguments.steps} --overwrite --quiet"
    )
    run("softprompt eval feedback-lm-eval --tasks examples/evaluate_with_lm_eval/feedback.yaml")


if __name__ == "__main__":
    main()
