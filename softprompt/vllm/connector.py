"""A vLLM KV connector that loads the keys and values of compiled prefixes into vLLM's cache.

    --kv-transfer-config '{"kv_connector": "SoftPromptConnector", "kv_role": "kv_consumer",
        "kv_connector_module_path": "softprompt.vllm.connector",
        "kv_connector_extra_config": {"soft_prompts": "/folder/of/compiled/prefixes"}}'

A request with a soft prompt begins with as many placeholder ids as its prefix has tokens, and names the compiled
prefix: kv_transfer_params={"soft_prompt": ID}. The scheduler treats these tokens as computed elsewhere. The workers
write their keys and values before the step that needs them, with the operation that writes the model's own, so layouts,
quantization and tensor parallelism are right. Their blocks are then cached like any others. A salt of the prefix's own
keeps prefixes apart in vLLM's prefix cache, since all have the same placeholders.

An exception here would end vLLM, so invalid requests fail by themselves instead, and servers should refuse them first.
Without SupportsHMA vLLM keeps all layers in one group of blocks; with several groups it could not fail a request by its
blocks.

Shapes: L layers of this process, T tokens of a prefix, K key/value heads of this process, D head size.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole
from vllm.logger import init_logger

from softprompt.errors import GeometryError
from softprompt.vllm import prefix_file

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.softprompt")

_REQUEST_PARAM, _FOLDER_OPTION = "soft_prompt", "soft_prompts"
REFUSED_PREFIX = "refused"  # not an id; a request with this name fails
PREFIX_CACHE_BYTES = 2**30  # of prefixes in a worker's memory; the least recently used are evicted
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.|(?:^|\.)h\.(\d+)\.")


class CacheWriter(Protocol):
    """The implementation of an attention layer of vLLM."""

    def do_kv_cache_update(
        self, layer: AttentionLayer, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, /
    ) -> None: ...


class AttentionLayer(Protocol):
    """The parts of vLLM's attention layer that the connector uses."""

    kv_cache: Tensor
    head_size: int
    num_kv_heads: int
    impl: CacheWriter


@dataclass
class PrefixLoad:
    """Tokens [start, end) of a prefix for a request's blocks; `name` is REFUSED_PREFIX if the request must fail."""

    name: str
    start: int
    end: int
    blocks: list[int]


@dataclass
class PrefixLoads(KVConnectorMetadata):
    """The loads of one step, sent to the workers."""

    loads: list[PrefixLoad] = field(default_factory=list)


class SoftPromptConnector(KVConnectorBase_V1):
    """The connector's two roles: the scheduler's chooses what to load, and each worker's loads it."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._folder = Path(self._kv_transfer_config.get_from_extra_config(_FOLDER_OPTION, ""))
        self._block = vllm_config.cache_config.block_size
        self._lengths: dict[str, int] = {}
        self._loads: list[PrefixLoad] = []
        self._layers: list[tuple[int, AttentionLayer]] = []
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._failed: set[int] = set()

    # The scheduler's half.

    def on_new_request(self, request: Request) -> None:
        """Set the request's cache salt to that of its prefix, keeping the salt it came with."""
        if not isinstance(request.kv_transfer_params, dict):
            request.kv_transfer_params = None  # vLLM's scheduler expects a mapping
        name = self._name(request)
        if name is None:
            return
        length = self._length(name)
        # For prompt log-probabilities vLLM would compute the placeholders as if they were text.
        if length is None or length >= request.num_tokens or request.skip_reading_prefix_cache:
            request.skip_reading_prefix_cache = False
            if request.sampling_params is not None:
                request.sampling_params.prompt_logprobs = None
            request.kv_transfer_params, name = (
                {_REQUEST_PARAM: REFUSED_PREFIX},
                f"{REFUSED_PREFIX} {request.request_id}",
            )
        request.cache_salt = f"{_REQUEST_PARAM}:{name}:{request.cache_salt or ''}"
        request.block_hashes.clear()
        request.update_block_hashes()

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Number of tokens to load after the cached ones; one for a request that must fail."""
        name = self._name(request)
        if name is None:
            return 0, False
        # vLLM always computes the last token, so a request of one token loads nothing.
        length = min(1, request.num_tokens - 1) if name == REFUSED_PREFIX else self._length(name) or 0
        return max(0, length - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Record the load into the blocks that were allocated for the request."""
        name = self._name(request)
        if name is None or not num_external_tokens:
            return
        end = self._length(name) or num_external_tokens
        self._loads.append(PrefixLoad(name, end - num_external_tokens, end, blocks.get_block_ids()[0]))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> PrefixLoads:
        """The loads of this step."""
        loads, self._loads = self._loads, []
        return PrefixLoads(loads)

    def _name(self, request: Request) -> str | None:
        """The id of the request's prefix; None without one, REFUSED_PREFIX for an invalid one."""
        params = request.kv_transfer_params or {}
        if _REQUEST_PARAM not in params:
            return None
        name = params[_REQUEST_PARAM]
        return name if isinstance(name, str) and prefix_file.PREFIX_ID.fullmatch(name) else REFUSED_PREFIX

    def _length(self, name: str) -> int | None:
        if name not in self._lengths:
            shape = prefix_file.prefix_shape(self._folder, name)
            if shape is None:
                return None
            self._lengths[name] = shape[1]
        return self._lengths[name]

    # A worker's half.

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Find the attention layers of this process and their indices in the whole model."""
        modules = self._vllm_config.compilation_config.static_forward_context
        self._layers = []
        for name in kv_caches:
            numbers = _LAYER.search(name)
            if numbers is None or not hasattr(getattr(modules[name], "impl", None), "do_kv_cache_update"):
                raise GeometryError("keys and values of this layer cannot be written", where=name)
            self._layers.append((int(numbers[1] or numbers[2]), modules[name]))

    def start_load_kv(self, forward_context: object, **kwargs: object) -> None:
        """Write the keys and values of this step's loads into the cache."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PrefixLoads)
        for load in metadata.loads:
            try:
                self._write(load)
            except Exception:
                logger.exception("cannot load the soft prompt %s", load.name)
                self._failed.update(load.blocks)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose requests fail."""
        failed, self._failed = self._failed, set()
        return failed

    def _write(self, load: PrefixLoad) -> None:
        if load.name == REFUSED_PREFIX:
            raise GeometryError("the request names no soft prompt, is too short for it, or asks for prompt logprobs")
        positions = torch.arange(load.start, load.end)
        blocks = torch.tensor(load.blocks)[positions // self._block]
        cache = self._layers[0][1].kv_cache
        slots = (blocks * self._block + positions % self._block).to(cache.device)
        states_L2TKD = self._prefix(load.name)[:, :, load.start : load.end]
        states_L2TKD = states_L2TKD.to(cache.device, self._vllm_config.model_config.dtype)
        for (_, layer), (keys_TKD, values_TKD) in zip(self._layers, states_L2TKD, strict=True):
            layer.impl.do_kv_cache_update(layer, keys_TKD, values_TKD, layer.kv_cache, slots)

    def _prefix(self, name: str) -> Tensor:
        """[L, 2, T, K, D] in main memory; a load copies only the tokens it needs to the device."""
        if name not in self._held:
            self._held[name] = self._read(name)
            held = sum(states.nbytes for states in self._held.values())
            while held > PREFIX_CACHE_BYTES and len(self._held) > 1:
                held -= self._held.popitem(last=False)[1].nbytes
        self._held.move_to_end(name)
        return self._held[name]

    def _read(self, name: str) -> Tensor:
        """Raises StoreError, GeometryError."""
        model, parallel = self._vllm_config.model_config, self._vllm_config.parallel_config
        layer = self._layers[0][1]
        whole = (model.hf_text_config.num_hidden_layers, model.get_total_num_kv_heads(), layer.head_size)
        shape = prefix_file.prefix_shape(self._folder, name)
        if shape is None or (shape[0], *shape[2:]) != whole:
            raise GeometryError("the prefix is not of this model", where=name, expected=whole, got=shape)
        # With more processes than heads, several processes have the same head.
        first = get_tensor_model_parallel_rank() * whole[1] // parallel.tensor_parallel_size
        heads = slice(first, first + layer.num_kv_heads)
        return prefix_file.read_prefix(self._folder, name, [number for number, _ in self._layers], heads)

    # Methods of connectors that save keys and values.

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: loads end before the step."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: object, **kwargs: object) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def transfer_config(folder: Path) -> dict[str, object]:
    """vLLM's KVTransferConfig that loads compiled prefixes from a folder."""
    return {
        "kv_connector": SoftPromptConnector.__name__,
        "kv_connector_module_path": __name__,
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {_FOLDER_OPTION: str(folder)},
    }


def request_params(name: str) -> dict[str, object]:
    """The kv_transfer_params of a request with this prefix."""
    return {_REQUEST_PARAM: name}
