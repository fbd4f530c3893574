"""Train an adapter with PEFT, import it, and see that both compute the same.

python examples/import_from_peft/import_from_peft.py
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import subprocess
from pathlib import Path

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model

import softprompt

DATA = Path(os.path.relpath(Path(__file__).parent)) / "reviews.csv"
ADAPTER = "peft_adapter"
TEMPLATE = "Review: {text}\nSentiment:"


def train_adapter(lm: softprompt.FrozenLM, steps: int) -> None:
    """A loop as one writes it with PEFT: eight virtual tokens, Adam, one row a step."""
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8, prompt_tuning_init="SAMPLE_VOCAB")
    model = get_peft_model(copy.deepcopy(lm.hf_model), config)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    rows = softprompt.load_rows(str(DATA))
    for step in range(steps):
        row = random.Random(step).choice(rows)  # noqa: S311 - data of an example
        text = lm.encode(TEMPLATE.format(**row.fields))
        answer = lm.encode(f" {row.target}")
        loss = model(
            input_ids=torch.tensor([[*text, *answer]]), labels=torch.tensor([[-100] * len(text) + answer])
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(ADAPTER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    lm = softprompt.load_model(arguments.model, dtype="float32")
    train_adapter(lm, arguments.steps)

    command = ["softprompt", "import", ADAPTER, "--model", arguments.model, "--name", "sentiment"]
    subprocess.run([*command, "--template", TEMPLATE, "--overwrite"], check=True)  # noqa: S603

    ids = torch.tensor([lm.encode(TEMPLATE.format(text="A film to forget."))])
    theirs = PeftModel.from_pretrained(copy.deepcopy(lm.hf_model), ADAPTER)(input_ids=ids).logits[:, -1]
    ours = softprompt.SoftPromptModel.from_pretrained(lm, "sentiment")(input_ids=ids).logits[:, -1]
    print(f"largest difference of a logit: {(theirs - ours).abs().max():.1e}")

    prompts = softprompt.load_prompts(lm, ["sentiment"])
    rows = softprompt.load_rows(str(DATA))
    base = softprompt.evaluate(lm, softprompt.no_prompt(lm, prompts["sentiment"].template), rows)
    soft = softprompt.evaluate(lm, prompts["sentiment"], rows)
    print(f"accuracy on its own rows: base {base.scores['accuracy'].value:.2f}, ", end="")
    print(f"with the adapter {soft.scores['accuracy'].value:.2f}")


if __name__ == "__main__":
    main()
