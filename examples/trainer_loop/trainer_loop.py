"""Train a soft prompt with Transformers' Trainer, or with TRL's SFTTrainer, in place of `softprompt train`.

python examples/trainer_loop/trainer_loop.py
python examples/trainer_loop/trainer_loop.py --loop trl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import softprompt

ROWS = Path(__file__).parents[1] / "jobs_with_openai_client" / "train.jsonl"


def train_with_trainer(model: softprompt.SoftPromptModel, conversations: list[dict[str, list]], options: dict) -> None:
    """Rows are token ids, and labels in which -100 is not learned: here all that stands before the answer."""
    rows = []
    tokenizer: Any = model.tokenizer
    for conversation in conversations:
        turns = conversation["messages"]
        asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        rows.append({"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]})
    collator = DataCollatorForSeq2Seq(tokenizer)
    Trainer(model, TrainingArguments(**options), train_dataset=Dataset.from_list(rows), data_collator=collator).train()


def train_with_trl(model: softprompt.SoftPromptModel, conversations: list[dict[str, list]], options: dict) -> None:
    """TRL reads the conversations itself. Its loss is over all tokens unless told otherwise."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    rows = Dataset.from_list([{"prompt": c["messages"][:-1], "completion": c["messages"][-1:]} for c in conversations])
    SFTTrainer(model, SFTConfig(**options), train_dataset=rows, processing_class=model.tokenizer).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--loop", choices=("trainer", "trl"), default="trainer")
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    method = {"name": "prefix-tuning", "n_tokens": 16, "init_text": "Answer like a pirate."}
    model = softprompt.SoftPromptModel.from_method(arguments.model, method)
    conversations = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    options = {"output_dir": "trainer_run", "max_steps": arguments.steps, "learning_rate": 0.02, "report_to": []}
    options |= {
        "per_device_train_batch_size": 4,
        "logging_steps": 6,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    train = train_with_trainer if arguments.loop == "trainer" else train_with_trl
    train(model, conversations, options)
    model.save_pretrained("prompts/pirate")

    # From here on it is a soft prompt as any other.
    prompts = softprompt.load_prompts(model.lm, ["pirate"])
    requests = [softprompt.Request("What color is the sea?")]
    print(softprompt.generate(model.lm, prompts, requests, softprompt.Sampling(max_new_tokens=24))[0].text)


if __name__ == "__main__":
    main()
