"""Sort short messages into four classes, learned from a CSV file.

python examples/classify/classify.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import softprompt

DATA = Path(__file__).parent
MESSAGES = ("The clock in the corner is always wrong.", "You made my day, thank you!", "Where can I see my plan?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=1.0)
    arguments = parser.parse_args()

    lm = softprompt.load_model(arguments.model)
    config = softprompt.resolve(
        {"model": arguments.model, "data": str(DATA), "name": "feedback", "train.minutes": arguments.minutes}
    )
    result = softprompt.fit(softprompt.prepare(config, overwrite=True), lm, overwrite=True)
    print(f"{result.result.step} steps of training, saved in {result.folder}")

    # The class of a row is the label with the highest log-likelihood. The text prompt shows three training rows.
    test = softprompt.held_out_rows(str(DATA), shots=3)
    scores = softprompt.compare(lm, "feedback", test.rows, shots=test.shots)
    for name, evaluation in (("base", scores.base), ("text", scores.text_prompt), ("soft", scores.soft_prompt)):
        accuracy = evaluation.scores["accuracy"]
        print(f"{name}  accuracy {accuracy.value:.2f} (95 % interval {accuracy.low:.2f} to {accuracy.high:.2f})")

    prompts = softprompt.load_prompts(lm, ["feedback"])
    requests = [softprompt.Request(message, "feedback") for message in MESSAGES]
    answers = softprompt.generate(lm, prompts, requests, softprompt.Sampling())
    for message, answer in zip(MESSAGES, answers, strict=True):
        print(f"{answer.text.strip():<9} {message}")


if __name__ == "__main__":
    main()
