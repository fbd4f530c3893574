"""Training passes recorded once and replayed: on a GPU a pass of a small model is thousands of kernels of microseconds,
and starting them one by one takes ten times as long as running them.

    passes = Replays(lm)
    losses = passes.token_losses(prefixes, rows, owners)       # as objective.token_losses of a bank of the prefixes

A CUDA graph holds a forward pass and its backward pass for one shape. Rows are packed into bins whose number and length
are rounded up, so that few shapes occur; what is added is looked at by nobody and learned by none. The first pass of a
shape is an ordinary one, the second is recorded, further ones are replayed. All graphs share their memory, which is
sound as long as the backward pass of one is done before the next one starts; `Replays` is for a training loop.

CUDA graphs and autograd: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

Shapes: N learned tokens, G bins, L tokens per bin.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from softprompt.data.tokenize import Example
from softprompt.errors import is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import SoftLabelBatch
from softprompt.objectives.next_token import Batch, batch_losses, batch_of
from softprompt.prefix.kv import Prefix, PrefixLayout, lay_out_prefixes, run_prefixes
from softprompt.prefix.verify import verify

MOST = 32  # graphs, about 10 MB each besides the memory that they share
MET = 4096  # shapes that are remembered to have occurred once
STEPS = 4  # sizes from one power of two to the next

GraphWork = Callable[[], None]
Recorder = Callable[[GraphWork], GraphWork]  # does or records some work, and returns what does it again


class GraphCache:
    """The recorded passes of one model.

    Args:
        recorder: how work is recorded: as a CUDA graph.
    """

    def __init__(self, lm: FrozenLM, recorder: Recorder | None = None) -> None:
        verify(lm)
        self.lm = lm
        self._recorder = recorder or cuda_recorder()
        self._met: set[Hashable] = set()
        self._recorded: dict[Hashable, _Recorded] = {}  # the last used last
        self._fronts: dict[Hashable, PrefixLayout] = {}
        self.failed = ""  # why nothing is recorded any more

    def token_losses(self, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: Sequence[int]) -> Tensor:
        """-log p of every learned token [N], as `objective.token_losses`, with gradient into the prompts."""
        outline = tuple(_outline(prefix) for prefix in prefixes)
        layout = self._fronts.get(outline) or lay_out_prefixes(self.lm, prefixes)
        batch = batch_of(self.lm, layout, rows, prefix_ids)
        wanted, count = padded(batch), len(batch.targets)
        key = (outline, *(tuple(part.shape) for part in input_parts(wanted)), wanted.taught and wanted.taught.is_hard)
        leaves = [tensor for prefix in prefixes for tensor in _tensors(prefix)]
        found = self._recorded.pop(key, None)
        if found is None and key in self._met and not self.failed:
            if len(self._fronts) >= MOST:  # recorded passes keep their own
                self._fronts.clear()
            self._fronts[outline] = layout
            found = self._record(prefixes, layout, wanted)
        if found is None:
            if len(self._met) < MET:
                self._met.add(key)
            return batch_losses(self.lm, run_prefixes(self.lm, prefixes, layout), wanted.to(self.lm.device))[:count]
        self._recorded[key] = found
        losses: Any = _Replayed.apply(found, wanted, *leaves)
        return losses[:count]

    def _record(self, prefixes: Sequence[Prefix], layout: PrefixLayout, batch: Batch) -> _Recorded | None:
        """None where the model cannot be recorded: it waits for the device in its forward pass, say."""
        while len(self._recorded) >= MOST:
            self._recorded.pop(next(iter(self._recorded)))
        try:
            return _Recorded(self.lm, prefixes, layout, batch, self._recorder)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.failed = str(error)
            return None


class _Recorded:
    """One pass with tensors of its own, which new numbers are copied into."""

    def __init__(
        self, lm: FrozenLM, prefixes: Sequence[Prefix], layout: PrefixLayout, batch: Batch, recorder: Recorder
    ) -> None:
        self.leaves = [t.detach().clone().requires_grad_(t.requires_grad) for p in prefixes for t in _tensors(p)]
        self.batch = batch.to(lm.device)
        self.learned = [leaf for leaf in self.leaves if leaf.requires_grad]
        self.losses = self.weights = torch.zeros(len(batch.targets), device=lm.device)
        self.grads: tuple[Tensor | None, ...] = ()
        own = list(_with(lm, prefixes, self.leaves))

        def forward() -> None:
            self.losses = batch_losses(lm, run_prefixes(lm, own, layout), self.batch)

        def backward() -> None:
            self.grads = torch.autograd.grad(self.losses, self.learned, self.weights, allow_unused=True)

        with torch.enable_grad():
            self.forward = recorder(forward)
            self.backward = recorder(backward)

    def load(self, batch: Batch, leaves: Sequence[Tensor]) -> None:
        """Take over the numbers of a pass of the same shape."""
        for mine, given in zip(input_parts(self.batch), input_parts(batch), strict=True):
            mine.copy_(given)
        with torch.no_grad():
            for mine, given in zip(self.leaves, leaves, strict=True):
                mine.copy_(given)


class _Replayed(torch.autograd.Function):
    """The losses of a recorded pass, whose gradient is its backward pass."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, batch: Batch, *leaves: Tensor) -> Tensor:
        recorded.load(batch, leaves)
        with torch.enable_grad():
            recorded.forward()
        ctx.recorded = recorded
        return recorded.losses.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        recorded: _Recorded = ctx.recorded
        recorded.weights.copy_(grad_outputs[0])
        recorded.backward()
        found = iter(recorded.grads)
        grads = [next(found) if leaf.requires_grad else None for leaf in recorded.leaves]
        return None, None, *(None if grad is None else grad.clone() for grad in grads)


def cuda_recorder() -> Recorder:
    """Records work as CUDA graphs that share their memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: GraphWork) -> GraphWork:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record


def capturable(lm: FrozenLM, work: GraphWork) -> GraphWork:
    """Work on tensors that stay where they are, ready to be done many times: recorded on a GPU, after it was done once;
    as it is elsewhere, and for a model that cannot be recorded."""
    if lm.device.type != "cuda":
        return work
    work()
    try:
        return cuda_recorder()(work)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return work


def padded(batch: Batch) -> Batch:
    """The batch with all its sizes rounded up."""
    bins, count = batch.bins, rounded(len(batch.targets))
    length = rounded(bins.ids.shape[1])
    more, longer = (0, count - len(batch.targets)), bins.padded(rounded(len(bins.ids)), length)
    where = batch.where // bins.ids.shape[1] * length + batch.where % bins.ids.shape[1]
    taught = batch.taught
    if taught is not None:
        ids, logprobs, temperature, hard = taught.parts()
        rest = count - len(ids)
        taught = SoftLabelBatch(
            torch.cat([ids, ids[-1:].expand(rest, -1)]),
            torch.cat([logprobs, logprobs[-1:].expand(rest, -1)]),
            torch.cat([temperature, temperature[-1:].expand(rest)]),
            torch.cat([hard, hard[-1:].expand(rest)]),
            taught.is_hard,
        )
    return Batch(replace(longer, flat=longer.flat[:0]), pad(where, more), pad(batch.targets, more), taught)


def rounded(size: int) -> int:
    """The next of four sizes from one power of two to the next."""
    step = max(1, 2 ** (max(size - 1, 1).bit_length() - 1) // STEPS)
    return -(-size // step) * step


def input_parts(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch."""
    yield from (*batch.bins.parts(), batch.where, batch.targets)
    if batch.taught is not None:
        yield from batch.taught.parts()


def _outline(prefix: Prefix) -> Hashable:
    """All of a prefix but the numbers of its prompt."""
    prompt = prefix.prompt
    shapes = () if prompt is None else tuple((n, tuple(t.shape), t.requires_grad) for n, t in prompt.tensors().items())
    return prefix.lead, prefix.follow, prefix.masked_span, prompt and prompt.form, shapes


def _tensors(prefix: Prefix) -> list[Tensor]:
    return [] if prefix.prompt is None else list(prefix.prompt.tensors().values())


def _with(lm: FrozenLM, prefixes: Sequence[Prefix], leaves: Sequence[Tensor]) -> Iterator[Prefix]:
    """The prefixes with these tensors in their prompts."""
    rest = iter(leaves)
    for prefix in prefixes:
        if prefix.prompt is not None:
            tensors = {name: next(rest) for name in prefix.prompt.tensors()}
            prefix = replace(prefix, prompt=prefix.prompt.replace_tensors(tensors))
        yield prefix
