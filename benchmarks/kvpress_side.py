"""KV eviction by PyPI's kvpress, in an environment of its own: hidden states after a text whose cache was cut.

    python -m venv kvpress-env && kvpress-env/bin/pip install kvpress==0.5.5
    kvpress-env/bin/python benchmarks/kvpress_side.py request.json reply.safetensors

kvpress needs an older Transformers than ours. So token ids come in, and the final hidden states of every row go out,
which `benchmarks/documents.py` compares as it compares all others. A request: {"model": folder, "dtype": name,
"text": ids, "opening": ids before the text's own, "follow": ids, "rows": [ids], "presses": [name], "sizes": [tokens]}.
The press "none" keeps everything: its states must be those of the full text.

As the pipeline of kvpress does it: the text is read once without knowing the questions, its cache is cut, and each
question follows at the position it had after the whole text. SnapKV observes the last half of the tokens that it may
keep, at most its 64; the others have the defaults. KVzip shares the tokens out unevenly over layers and heads, or over
the heads of each layer alone (`KVzip-layerwise`): the size is their mean.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

NEVER = ("none",)


def press_of(name: str, text_tokens: int, size: int, opening: int) -> Any:
    """The press of kvpress that keeps so many tokens."""
    if name in NEVER:
        return contextlib.nullcontext
    import kvpress  # type: ignore[import-not-found]

    ratio = 1 - (size + 0.5) / text_tokens  # half a token, since kvpress rounds down
    if name == "SnapKV":
        return kvpress.SnapKVPress(ratio, window_size=min(64, size // 2))
    if name == "ExpectedAttention":
        return kvpress.ExpectedAttentionPress(ratio)
    if name not in ("KVzip", "KVzip-layerwise"):
        sys.exit(f"kvpress_side: unknown press {name!r}; known: SnapKV, ExpectedAttention, KVzip, KVzip-layerwise")

    class OwnFrame(kvpress.KVzipPress):  # type: ignore[misc]
        """The text stands in a system turn here: not all that precedes a user's turn is outside of it."""

        def _perform_kvzip_compression(self, model: Any, tokenizer: Any) -> None:
            self.prefix_length = opening
            super()._perform_kvzip_compression(model, tokenizer)

    return OwnFrame(ratio, layerwise=name == "KVzip-layerwise")


@torch.no_grad()
def states_after(model: Any, request: dict[str, Any], name: str, size: int) -> tuple[Tensor, float]:
    """Final hidden states of all tokens of all rows, row after row, and the seconds that the cut cache took."""
    text = torch.tensor([request["text"]])
    press = press_of(name, text.shape[1], size, request["opening"])
    cache = transformers.DynamicCache()
    begin = time.perf_counter()
    with press(model) if name not in NEVER else press():
        model.model(input_ids=text, past_key_values=cache)
    seconds = time.perf_counter() - begin
    kept = cache.get_seq_length()
    states = []
    for row in request["rows"]:
        ids = torch.tensor([[*request["follow"], *row]])
        positions = torch.arange(ids.shape[1])[None] + text.shape[1]
        output = model.model(input_ids=ids, past_key_values=cache, position_ids=positions)
        states.append(output.last_hidden_state[0, len(request["follow"]) :].float())
        layers: Any = cache.layers
        for layer in layers:  # `crop` means other things in other versions
            layer.keys, layer.values = layer.keys[:, :, :kept], layer.values[:, :, :kept]
    return torch.cat(states), seconds


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    dtype = getattr(torch, request["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype).eval()
    tensors: dict[str, Tensor] = {}
    for name in request["presses"]:
        for size in request["sizes"] if name not in NEVER else [0]:
            states, seconds = states_after(model, request, name, size)
            system = f"{name} {size}" if size else name
            tensors[system] = states
            tensors[f"{system} seconds"] = torch.tensor(seconds)
    save_file(tensors, sys.argv[2])


if __name__ == "__main__":
    main()
