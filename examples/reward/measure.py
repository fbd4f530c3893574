"""The mean reward of the likeliest answers to the test rows: python -m examples.reward.measure [SOFT_PROMPT ...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import softprompt
from examples.reward.rule import one_sentence

ROWS = [json.loads(line) for line in (Path(__file__).parent / "test.jsonl").read_text(encoding="utf-8").splitlines()]


def main(names: list[str]) -> None:
    lm = softprompt.load_model("smollm2-135m", dtype="float32")
    prompts = softprompt.load_prompts(lm, names)
    template = next(iter(prompts.values())).template
    for name, formatted in {"base model": softprompt.no_prompt(lm, template), **prompts}.items():
        requests = [softprompt.Request(row["prompt"], name) for row in ROWS]
        answers = softprompt.generate(lm, {name: formatted}, requests, softprompt.Sampling(max_new_tokens=40))
        texts = [answer.text for answer in answers]
        rewards = one_sentence([row["prompt"] for row in ROWS], list(texts), list(ROWS))
        words = sum(len(text.split()) for text in texts) / len(texts)
        best = sum(reward == 1 for reward in rewards)
        print(
            f"{name}: mean reward {sum(rewards) / len(rewards):.3f}, {best} of {len(rewards)} right, {words:.1f} words"
        )
        for row, text in list(zip(ROWS, texts, strict=True))[:3]:
            print(f"  {row['prompt']} -> {text!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
