"""Sixteen soft prompts on one server, asked at the same time by OpenAI's client.

python examples/serve_many/serve_many.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import time
from pathlib import Path

from openai import AsyncOpenAI

import softprompt

TASKS = Path(__file__).parent / "tasks.jsonl"
PROMPTS = Path("prompts/serve_many")
WORD = "horse"


def write_prompts(model: str) -> list[str]:
    """One soft prompt a task: keys and values of its examples, from which training would start."""
    lm = softprompt.load_model(model)
    tasks = [json.loads(line) for line in TASKS.read_text(encoding="utf-8").splitlines()]
    for task in tasks:
        text = "".join(f"{example}\n" for example in task["examples"])
        method = {"name": "prefix-tuning", "n_tokens": len(lm.encode(text)), "init_text": text}
        learner = softprompt.SoftPromptModel.from_method(lm, method, template="{text} >")
        learner.save_pretrained(PROMPTS / task["name"])
    return [task["name"] for task in tasks]


async def ask(client: AsyncOpenAI, name: str) -> str:
    """The answer of one soft prompt, which is the name of a model."""
    reply = await client.completions.create(model=name, prompt=WORD, max_tokens=12, stop="\n", temperature=0)
    return f"{name:<9} {reply.choices[0].text.strip()}"


async def ask_all(url: str, names: list[str]) -> None:
    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=30) as client:
        await client.models.list()  # its retries wait for the server
        begin = time.monotonic()
        answers = await asyncio.gather(*(ask(client, name) for name in names))
        together = time.monotonic() - begin
        begin = time.monotonic()
        alone = [await ask(client, name) for name in names]
    print(*answers, sep="\n")
    print(f"{len(names)} requests at once: {together:.1f} s; one after another: {time.monotonic() - begin:.1f} s")
    print(f"{sum(a == b for a, b in zip(answers, alone, strict=True))} of {len(names)} answers are the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--port", default="8000")
    arguments = parser.parse_args()
    names = write_prompts(arguments.model)
    command = ["softprompt", "serve", "--model", arguments.model, "--prompts-dir", str(PROMPTS), "--dtype", "float32"]
    with open("serve_many.log", "w") as log:
        server = subprocess.Popen([*command, "--port", arguments.port], stderr=log)  # noqa: S603 - the words above
    try:
        asyncio.run(ask_all(f"http://127.0.0.1:{arguments.port}/v1", names))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
