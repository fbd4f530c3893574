"""CUDA graphs of training passes: each shape is captured once and then replayed.

    graphs = GraphCache(lm)
    losses = graphs.token_losses(prefixes, rows, prefix_ids)   # as next_token.token_losses of the prepared prefixes

On a GPU, a forward pass of a small model is thousands of kernels of microseconds, and launching them one by one takes
ten times as long as running them.

A CUDA graph holds a forward pass and its backward pass for one shape. Rows are packed into bins whose number and length
are rounded up, so that few shapes occur; no token attends to the padding, and no loss is taken there. The first pass of
a shape is an ordinary one, the second is captured, further ones are replayed. All graphs share their memory, which is
sound as long as the backward pass of one is done before the next one starts: `GraphCache` is for a training loop.

CUDA graphs and autograd: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

Shapes: N learned tokens, G bins, L tokens per bin.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from softprompt.data.tokenize import Example
from softprompt.errors import is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import Batch, batch_losses, batch_of
from softprompt.prefix.kv import Prefix, PrefixLayout, lay_out_prefixes, run_prefixes
from softprompt.prefix.verify import verify

MAX_GRAPHS = 32  # about 10 MB each besides the memory that they share
MAX_SEEN_SHAPES = 4096  # shapes that are known to have occurred once
SIZES_PER_OCTAVE = 4  # sizes from one power of two to the next

GraphWork = Callable[[], None]
Recorder = Callable[[GraphWork], GraphWork]  # runs or captures some work, and returns a function that repeats it


class GraphCache:
    """The captured training passes of one model, by shape.

    Args:
        recorder: captures work; as a CUDA graph if None.
    """

    def __init__(self, lm: FrozenLM, recorder: Recorder | None = None) -> None:
        verify(lm)
        self.lm = lm
        self._recorder = recorder or cuda_recorder()
        self._seen_shapes: set[Hashable] = set()
        self._recorded: dict[Hashable, _Recorded] = {}  # the most recently used last
        self._layouts: dict[Hashable, PrefixLayout] = {}
        self.failed = ""  # why nothing is captured any more

    def token_losses(self, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: Sequence[int]) -> Tensor:
        """Loss [N] of every learned token, as `next_token.token_losses`, with gradient into the prompts."""
        outline = tuple(_outline(prefix) for prefix in prefixes)
        layout = self._layouts.get(outline) or lay_out_prefixes(self.lm, prefixes)
        batch = batch_of(self.lm, layout, rows, prefix_ids)
        padded, count = pad_batch(batch), len(batch.targets)
        labels = padded.soft_labels
        key = (outline, *(tuple(part.shape) for part in input_parts(padded)), labels and labels.is_hard)
        leaves = [tensor for prefix in prefixes for tensor in _tensors(prefix)]
        recorded = self._recorded.pop(key, None)
        if recorded is None and key in self._seen_shapes and not self.failed:
            if len(self._layouts) >= MAX_GRAPHS:  # captured passes keep theirs
                self._layouts.clear()
            self._layouts[outline] = layout
            recorded = self._record(prefixes, layout, padded)
        if recorded is None:
            if len(self._seen_shapes) < MAX_SEEN_SHAPES:
                self._seen_shapes.add(key)
            return batch_losses(self.lm, run_prefixes(self.lm, prefixes, layout), padded.to(self.lm.device))[:count]
        self._recorded[key] = recorded
        return cast(Tensor, _Replayed.apply(recorded, padded, *leaves))[:count]

    def _record(self, prefixes: Sequence[Prefix], layout: PrefixLayout, batch: Batch) -> _Recorded | None:
        """Capture a pass; None if the model does not allow it (its forward pass synchronizes with the device, say)."""
        while len(self._recorded) >= MAX_GRAPHS:
            self._recorded.pop(next(iter(self._recorded)))
        try:
            return _Recorded(self.lm, prefixes, layout, batch, self._recorder)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.failed = str(error)
            return None


class _Recorded:
    """A captured pass with input tensors of its own, into which new values are copied."""

    def __init__(
        self, lm: FrozenLM, prefixes: Sequence[Prefix], layout: PrefixLayout, batch: Batch, recorder: Recorder
    ) -> None:
        self.leaves = [t.detach().clone().requires_grad_(t.requires_grad) for p in prefixes for t in _tensors(p)]
        self.batch = batch.to(lm.device)
        self.learned = [leaf for leaf in self.leaves if leaf.requires_grad]
        self.losses = torch.zeros(len(batch.targets), device=lm.device)
        self.weights = torch.zeros_like(self.losses)
        self.grads: tuple[Tensor | None, ...] = ()
        static_prefixes = list(_with_tensors(lm, prefixes, self.leaves))

        def forward() -> None:
            self.losses = batch_losses(lm, run_prefixes(lm, static_prefixes, layout), self.batch)

        def backward() -> None:
            self.grads = torch.autograd.grad(self.losses, self.learned, self.weights, allow_unused=True)

        with torch.enable_grad():
            self.forward = recorder(forward)
            self.backward = recorder(backward)

    def load(self, batch: Batch, leaves: Sequence[Tensor]) -> None:
        """Copy the values of a pass of the same shape into the captured tensors."""
        for static, value in zip(input_parts(self.batch), input_parts(batch), strict=True):
            static.copy_(value)
        with torch.no_grad():
            for static, value in zip(self.leaves, leaves, strict=True):
                static.copy_(value)


class _Context(Protocol):
    """The context that PyTorch passes from the forward pass to the backward pass."""

    recorded: _Recorded


class _Replayed(torch.autograd.Function):
    """The losses of a captured pass, whose gradient is the captured backward pass."""

    @staticmethod
    def forward(ctx: _Context, recorded: _Recorded, batch: Batch, *leaves: Tensor) -> Tensor:
        recorded.load(batch, leaves)
        with torch.enable_grad():
            recorded.forward()
        ctx.recorded = recorded
        return recorded.losses.detach().clone()

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        recorded = ctx.recorded
        recorded.weights.copy_(grad_outputs[0])
        recorded.backward()
        learned_grads = iter(recorded.grads)
        grads = [next(learned_grads) if leaf.requires_grad else None for leaf in recorded.leaves]
        return None, None, *(None if grad is None else grad.clone() for grad in grads)


def cuda_recorder() -> Recorder:
    """A recorder that captures work as CUDA graphs with a shared memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: GraphWork) -> GraphWork:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record


def capturable(lm: FrozenLM, work: GraphWork) -> GraphWork:
    """Work on tensors that stay in place, as a function to call many times: on a GPU, a CUDA graph after a first run.

    The work itself on other devices, and for a model that cannot be captured.
    """
    if lm.device.type != "cuda" or lm.is_split or lm.is_sharded:
        return work
    work()
    try:
        return cuda_recorder()(work)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return work


def pad_batch(batch: Batch) -> Batch:
    """The batch with all its sizes rounded up."""
    bins, length = batch.bins, round_up(batch.bins.ids.shape[1])
    extra = round_up(len(batch.targets)) - len(batch.targets)
    longer = bins.padded(round_up(len(bins.ids)), length)
    where = batch.where // bins.ids.shape[1] * length + batch.where % bins.ids.shape[1]
    labels = batch.soft_labels
    if labels is not None:
        labels = labels.map(lambda tensor: torch.cat([tensor, tensor[-1:].expand(extra, *tensor.shape[1:])]))
    return Batch(replace(longer, flat=longer.flat[:0]), pad(where, (0, extra)), pad(batch.targets, (0, extra)), labels)


def round_up(size: int) -> int:
    """The next of the sizes that occur: `SIZES_PER_OCTAVE` from one power of two to the next."""
    step = max(1, 2 ** (max(size - 1, 1).bit_length() - 1) // SIZES_PER_OCTAVE)
    return -(-size // step) * step


def input_parts(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch."""
    yield from (*batch.bins.parts(), batch.where, batch.targets)
    if batch.soft_labels is not None:
        yield from batch.soft_labels.parts()


def _outline(prefix: Prefix) -> Hashable:
    """Everything of a prefix but the values of its tensors."""
    prompt = prefix.prompt
    shapes = () if prompt is None else tuple((n, tuple(t.shape), t.requires_grad) for n, t in prompt.tensors().items())
    return prefix.lead, prefix.follow, prefix.masked_span, prompt and prompt.form, shapes


def _tensors(prefix: Prefix) -> list[Tensor]:
    return [] if prefix.prompt is None else list(prefix.prompt.tensors().values())


def _with_tensors(lm: FrozenLM, prefixes: Sequence[Prefix], leaves: Sequence[Tensor]) -> Iterator[Prefix]:
    """The prefixes with these tensors in their prompts."""
    rest = iter(leaves)
    for prefix in prefixes:
        if prefix.prompt is not None:
            tensors = {name: next(rest) for name in prefix.prompt.tensors()}
            prefix = replace(prefix, prompt=prefix.prompt.replace_tensors(tensors))
        yield prefix
