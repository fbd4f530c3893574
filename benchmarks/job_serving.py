"""Serving while a job trains beside it: failed requests, and the time to the first token with and without the job.

    python -m benchmarks.job_serving --seconds 60 --out benchmarks/results/job_serving.json

One client streams one answer after the other from the base model: without a job, then while a worker process of the
same server trains a soft prompt on the helpdesk rows, and behind that soft prompt once it is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from benchmarks.machine import facts
from benchmarks.output import put
from benchmarks.serve_soak import SERVER, USER, started

ROWS = Path(__file__).parents[1] / "examples" / "helpdesk"
QUESTION = "Where is my parcel? I ordered a lamp two weeks ago and I need it tomorrow."
PAUSE_S = 0.2  # between requests
TOKENS = 24  # of an answer


def one_answer(client: openai.OpenAI, model: str) -> tuple[float, float]:
    """Seconds to the first token, and in all."""
    begin, first = time.perf_counter(), 0.0
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    stream = client.chat.completions.create(
        model=model, messages=turns, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    for event in stream:
        if not first and event.choices and event.choices[0].delta.content:
            first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def load(client: openai.OpenAI, model: str, seconds: float) -> dict[str, Any]:
    """Answers one after the other for so many seconds."""
    firsts, wholes, failures = list[float](), list[float](), list[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            first, whole = one_answer(client, model)
            firsts.append(first)
            wholes.append(whole)
        except openai.APIError as error:
            failures.append(str(error)[:300])
        time.sleep(PAUSE_S)
    return {
        "answers": len(firsts),
        "failures": failures,
        "first_token_s": {"p50": quantile(firsts, 50), "p95": quantile(firsts, 95)},
        "whole_answer_s": {"p50": quantile(wholes, 50), "p95": quantile(wholes, 95)},
    }


def quantile(values: list[float], percent: int) -> float | None:
    """Of at least two values."""
    return round(statistics.quantiles(values, n=100)[percent - 1], 3) if len(values) > 1 else None


def waited_for(client: openai.OpenAI, job: str, message: str, longest_s: float = 600) -> None:
    """Until an event of the job begins so."""
    end = time.monotonic() + longest_s
    while not any(each.message.startswith(message) for each in client.fine_tuning.jobs.list_events(job).data):
        if time.monotonic() > end or client.fine_tuning.jobs.retrieve(job).status == "failed":
            raise SystemExit(f"no event of {job}: {message}")
        time.sleep(0.5)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Server, load and job; the numbers."""
    (folder / "prompts").mkdir()
    jobs = ("--jobs", "--store", str(folder / "jobs"))
    process, port = started(SERVER, options.model, folder / "prompts", 4, jobs)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=USER, max_retries=0, timeout=120)
    try:
        base = client.models.list().data[0].id
        load(client, base, options.seconds / 6)  # warm
        found = {"alone": load(client, base, options.seconds)}
        with (ROWS / "train.jsonl").open("rb") as rows:
            file = client.files.create(file=rows, purpose="fine-tune")
        own = {"soft_prompt": {"minutes": (options.seconds + 60) / 60}}
        job = client.fine_tuning.jobs.create(model=base, training_file=file.id, extra_body=own)
        waited_for(client, job.id, "Training on")
        found["beside a job"] = load(client, base, options.seconds)
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running", "the job ended before the load"
        waited_for(client, job.id, "The job has successfully completed")
        made = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        assert made is not None
        found["behind its soft prompt"] = load(client, made, options.seconds / 3)
    finally:
        process.terminate()
        process.wait(60)
    return found


def main() -> None:
    """Run it; exit with 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    put({"machine": facts(), "seconds": options.seconds, "loads": found}, options.out)
    print(json.dumps(found, indent=1))
    if any(each["failures"] for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
