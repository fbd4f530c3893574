"""Turn a system prompt into 64 virtual tokens, on forty messages, and see how much of its effect is left.

python examples/distill_policy/distill_policy.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from pathlib import Path

import softprompt

DATA = Path(os.path.relpath(Path(__file__).parent))
QUESTIONS = ("Do you repair electric scooters?", "Do you sell new bicycles?", "When are you open?")


def run(command: str) -> None:
    """Print a command and run it."""
    print("$", command, flush=True)
    subprocess.run(shlex.split(command), check=True)  # noqa: S603 - the commands below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--policy", default=str(DATA / "policy.md"))
    parser.add_argument("--steps", default="20")
    arguments = parser.parse_args()

    # The model with the policy in its context answers each message, and so teaches the model with the virtual tokens.
    # Of the 40 messages 8 are held out for the report.
    run(
        f"softprompt distill --model {arguments.model} --text {arguments.policy} --data {DATA}/messages.jsonl"
        f" --name policy --n-tokens 64 --queries 40 --study.held_out 8 --steps {arguments.steps} --overwrite"
    )

    lm = softprompt.load_model(arguments.model)
    soft = softprompt.load_prompts(lm, ["policy"])["policy"]
    policy = Path(arguments.policy).read_text(encoding="utf-8")
    prompts = {
        "no text": softprompt.no_prompt(lm, soft.template),
        "soft prompt": soft,
        "full text": softprompt.text_prompt(lm, soft.template, policy, ()),
    }
    requests = [softprompt.Request(question, name) for question in QUESTIONS for name in prompts]
    answers = softprompt.generate(lm, prompts, requests, softprompt.Sampling(max_new_tokens=20))
    for request, answer in zip(requests, answers, strict=True):
        print(f"{request.text}  [{request.name}] {' '.join(answer.text.split())}")


if __name__ == "__main__":
    main()
