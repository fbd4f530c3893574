"""What a case works with: the device, random models of given shapes, and the profiler."""

from __future__ import annotations

import copy
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.shapes import SHAPES
from softprompt.models.device import wait_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from tests.support.tiny import tiny_tokenizer

TOP = 10  # rows of a profile
TINY = LlamaConfig(  # for a dry run
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)


@dataclass
class Bench:
    """One run of the benchmark.

    Attributes:
        device: "cuda" or "cpu".
        tiny: models of two layers and inputs of a few tokens, so that every case runs anywhere in seconds.
        out: folder of the report.
        partial: what the running case has found so far; it is in the report if the case does not come to its end.
        on_note: called when that changes.
    """

    device: str
    tiny: bool
    out: Path
    partial: dict[str, Any] = field(default_factory=dict)
    on_note: Callable[[], None] = field(default=lambda: None, repr=False)
    _model: tuple[tuple[str, str, str], FrozenLM] | None = field(default=None, repr=False)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def model(self, shape: str, dtype: str, load_in: str = "") -> FrozenLM:
        """A random model of this shape, kept until another one is wanted; quantized as a user's is, from the disk."""
        key = (shape, dtype, load_in)
        if self._model is None or self._model[0] != key:
            self.forget()
            model = random_model(shape, dtype, self.device, tiny=self.tiny)
            lm = quantized(model, dtype, self.device, load_in) if load_in else wrapped(model, shape)
            self._model = (key, lm)
        return self._model[1]

    def note(self, found: dict[str, Any]) -> None:
        """Keep what a case has found so far, in case it does not come to its end."""
        self.partial = dict(found)
        self.on_note()

    def forget(self) -> None:
        """Free the memory of the last model."""
        self._model = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def random_model(shape: str, dtype: str, device: str, *, tiny: bool = False) -> PreTrainedModel:
    """Weights drawn on the device, of a size at which every part of the model matters: outputs as large as inputs.

    Transformers' own start has nearly uniform attention, on which a wrong mask or position would hardly show.
    """
    torch.manual_seed(0)
    config = copy.deepcopy(TINY if tiny else SHAPES[shape])
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model


def wrapped(model: PreTrainedModel, name: str) -> FrozenLM:
    """With a tokenizer of bytes, which only fills its place."""
    return FrozenLM(model, tiny_tokenizer(), name)


def quantized(model: PreTrainedModel, dtype: str, device: str, load_in: str) -> FrozenLM:
    """The same weights, saved and loaded with `--load-in`."""
    folder = Path(tempfile.mkdtemp(prefix="softprompt-gpu-"))
    try:
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return load_model(str(folder), dtype=dtype, device=device, load_in=load_in)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall time of each run, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        wait_for(device)
        begin = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return times


def top_of(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """What one run spends its time on: the ten kernels (on a CPU: operators) with most of it, and their sum."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    wait_for(device)
    begin = time.perf_counter()
    with profile(activities=activities) as found:
        work()
        wait_for(device)
    wall = time.perf_counter() - begin
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: getattr(event, column), reverse=True)
    busy = sum(getattr(event, column) for event in events)
    launches = sum(event.count for event in events if event.key in ("cudaLaunchKernel", "cudaLaunchKernelExC"))
    return {
        "wall_ms": wall * 1e3,  # slower than without the profiler
        "busy_ms": busy / 1e3,
        "kernel_launches": launches,
        "graph_launches": sum(event.count for event in events if event.key == "cudaGraphLaunch"),
        "copies": sum(event.count for event in events if event.key.startswith("cudaMemcpy")),
        "top": [
            {
                "name": event.key[:120],
                "calls": event.count,
                "ms": getattr(event, column) / 1e3,
                "share": getattr(event, column) / busy if busy else 0.0,
            }
            for event in events[:TOP]
            if getattr(event, column)
        ],
    }
