"""OpenAI's fine-tuning flow, call by call as its guide documents it: upload, create, watch, chat.

    python -m examples.fine_tuning.fine_tune smollm2-135m rows.jsonl held_out.jsonl "where is my parcel?"

Nothing in it knows softprompt. $OPENAI_BASE_URL and $OPENAI_API_KEY say which server it runs against.
"""

from __future__ import annotations

import sys
import time

from openai import OpenAI


def main(model: str, training: str, validation: str, question: str) -> None:
    client = OpenAI()
    began = time.monotonic()

    with open(training, "rb") as rows, open(validation, "rb") as held_out:
        training_file = client.files.create(file=rows, purpose="fine-tune")
        validation_file = client.files.create(file=held_out, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file.id,
        validation_file=validation_file.id,
        suffix="my-assistant",
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
            },
        },
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
    results = client.files.content(job.result_files[0]).text
    print(results.splitlines()[0])

    completion = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": question}], max_tokens=60, temperature=0
    )
    print(job.fine_tuned_model)
    print(completion.choices[0].message.content)
    print(f"{time.monotonic() - began:.0f} s from the upload to the answer")


if __name__ == "__main__":
    main(*sys.argv[1:5])
