"""OpenAI's fine-tuning flow, call by call as its guide documents it: upload, create, watch, chat.

    python examples/jobs_with_openai_client/jobs_with_openai_client.py

Nothing in it knows softprompt. $OPENAI_BASE_URL and $OPENAI_API_KEY say which server it runs against.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from openai import OpenAI

DATA = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--question", default="What color is the sea?")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    client = OpenAI()
    began = time.monotonic()

    with open(DATA / "train.jsonl", "rb") as rows, open(DATA / "validation.jsonl", "rb") as held_out:
        training_file = client.files.create(file=rows, purpose="fine-tune")
        validation_file = client.files.create(file=held_out, purpose="fine-tune")
    hyperparameters = {"n_epochs": arguments.epochs, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    job = client.fine_tuning.jobs.create(
        model=arguments.model,
        training_file=training_file.id,
        validation_file=validation_file.id,
        suffix="pirate",
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # pyright: ignore
    )
    print(job.id, job.status, flush=True)

    shown = set[str]()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=20).data):
            if event.id not in shown:
                shown.add(event.id)
                print(event.message, flush=True)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"{job.status}: {job.error.message if job.error else ''}")

    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id).data:
        print(checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.valid_loss)
    print(client.files.content(job.result_files[0]).text.splitlines()[0])

    for model in (arguments.model, job.fine_tuned_model):
        completion = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": arguments.question}], max_tokens=30, temperature=0
        )
        print(f"{model}: {completion.choices[0].message.content}")
    print(f"{time.monotonic() - began:.0f} s from the upload to the answer")


if __name__ == "__main__":
    main()
