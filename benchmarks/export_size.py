"""Size, time and memory of exporting an embedding prompt to a large model's adapters.

    python -m benchmarks.export_size [--vocab 128256] [--width 4096] [--tokens 32] [--json]

The base is a Llama of one layer with that table of embeddings in bfloat16: exports depend on the table alone. Memory is
what the process had at most beyond its state before the export.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import facts
from benchmarks.train_step import resident_bytes
from softprompt.data.template import Template
from softprompt.export.base import ExportSource
from softprompt.export.registry import find_target
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_tokenizer
from softprompt.prompts.card import Card
from softprompt.prompts.forms import EmbeddingPrompt


def source(vocab: int, width: int, n_tokens: int) -> ExportSource:
    """A random soft prompt of a random base."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    lm = FrozenLM(model, load_tokenizer("smollm2-135m"), "random/large")
    prompt, template = EmbeddingPrompt(torch.randn(n_tokens, width)), Template("text", "Question: {text}\nAnswer:")
    card = Card.draft(
        "tone",
        prompt,
        lm.geometry,
        layout=layout_for(lm, template, "embedding"),
        template=template.to_dict(),
        method={"name": "prompt-tuning"},
    )
    return ExportSource(prompt, card, lambda: lm)


def measure(target: str, made: ExportSource, folder: Path) -> dict[str, object]:
    """One export."""
    target_of = find_target(target)
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    out = target_of.write(folder / target, made).folder
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"target": target, "bytes": size, "seconds": seconds, "memory": resident_bytes("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--targets", default="peft,lora,transformers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    made = source(options.vocab, options.width, options.tokens)
    folder = Path(tempfile.mkdtemp())
    try:
        results = [measure(target, made, folder) for target in options.targets.split(",")]
    finally:
        shutil.rmtree(folder)
    for result in results:
        print(
            f"{result['target']:<14}{int(str(result['bytes'])) / 1e6:9.2f} MB {float(str(result['seconds'])):7.2f} s "
            f"{int(str(result['memory'])) / 1e6:8.1f} MB of memory"
        )
    if options.json:
        print(json.dumps({"benchmark": "export_size", "machine": facts(), "cases": results}))


if __name__ == "__main__":
    main()
