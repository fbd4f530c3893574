"""The frozen base model: a loaded Transformers model whose weights never change.

`FrozenLM` gives embeddings of ids, logits of hidden states, the tokenizer, and the `Geometry` that soft prompts are
checked against. The Transformers model itself stays inside `models`, `prefix` and `engine`. Packages that keep state
about a loaded model keep it in an extension, which lives as long as the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - torch's own type
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.data.tokenizer import answer_ends, closing_ids, preceding_ids
from softprompt.deprecation import warn_renamed
from softprompt.errors import UnsupportedModelError
from softprompt.models.adapters import plain_model
from softprompt.models.backbone import Backbone
from softprompt.models.encoder_decoder import EncoderDecoder, writing_config
from softprompt.models.head import Head, encoder_decoder_head, head_of
from softprompt.models.load_in import quantization_kind
from softprompt.models.measure import answer_context_of, measure_geometry
from softprompt.models.placement import home_device, is_offloaded, is_split, layer_devices, whole_weight, whole_weights
from softprompt.models.quantized import (
    is_quantized,
    keep_weights_as_they_are,
    let_gradients_through,
    plain_tensors,
    weight_bytes,
    weight_count,
)
from softprompt.models.scan_chunks import shorten_chunks
from softprompt.models.sharding import is_sharded, shard, tied
from softprompt.models.transformers_compat import encode_plain, encoder_and_decoder, text_config

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.distributed.device_mesh import DeviceMesh

E = TypeVar("E")
_PLAIN_FORWARD = "softprompt_plain_forward"  # of a layer while it is checkpointed


class FrozenLM:
    """A language model whose weights carry no gradient, with its tokenizer and geometry.

    Args:
        model: any Transformers causal LM, or an encoder–decoder; it is put in eval mode and frozen. Of a PeftModel the
            adapters are merged into a copy of the layers that they change.
        tokenizer: its tokenizer.
        name: the model's name in messages and cards.
        reason: why this device and dtype, for display.

    Attributes:
        geometry: shape and identity of the model.
        layer_types: Transformers' kind of each layer, where the model has several ("sliding_attention", …).
        opening, closing: tokens that the tokenizer of an encoder–decoder puts before every text (BOS aside) and after.
        is_split: whether Accelerate moves inputs between the devices of the model's parts.
        is_offloaded: whether some weights are loaded for each call, from memory or disk.
        is_sharded: whether each of several processes holds a part of the layers' weights.

    Raises:
        UnsupportedModelError: the model keeps no keys and values that a prefix could extend.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str, reason: str = ""
    ) -> None:
        model, adapted = plain_model(model, name)
        if is_quantized(model):
            keep_weights_as_they_are(model, model.device)
        shorten_chunks(model)
        self._model = model.eval()
        self._config = model.config if model.config.is_encoder_decoder else text_config(model.config)
        self.tokenizer = tokenizer
        self.name = name
        self.reason = reason
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.layer_types: tuple[str, ...] = tuple(getattr(self._config, "layer_types", None) or ())
        self.is_encoder_decoder = bool(self._config.is_encoder_decoder)
        self.opening = tuple(preceding_ids(tokenizer)) if self.is_encoder_decoder else ()
        self.closing = tuple(closing_ids(tokenizer)) if self.is_encoder_decoder else ()
        self.is_split, self.is_offloaded = is_split(model), is_offloaded(model)
        self.is_sharded = is_sharded(model)
        self._home = home_device(model) if self.is_split else None
        geometry = measure_geometry(model, name)
        if is_quantized(model):
            let_gradients_through(model)
        self.geometry = replace(geometry, adapted=adapted, quantization=quantization_kind(model.config))
        self._extensions: dict[object, object] = {}
        self._checkpointing = threading.Lock()
        self._checkpointed = 0  # `checkpoint_layers` blocks that are open

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Transformers model, for `prefix`, engines and comparisons. Its weights may not be changed."""
        return self._model

    @property
    def loaded_from(self) -> str:
        """The folder or Hub id that Transformers loaded the model from, which other tools take for its name."""
        return str(self._model.config.name_or_path)

    @property
    def model(self) -> PreTrainedModel:
        """The name of 0.1 for `hf_model`."""
        warn_renamed("FrozenLM.model", "FrozenLM.hf_model")
        return self._model

    @property
    def config(self) -> PreTrainedConfig:
        """The name of 0.1 for the text model's config."""
        warn_renamed("FrozenLM.config", "FrozenLM.hf_model.config.get_text_config()")
        return self._config

    def extension(self, make: Callable[[FrozenLM], E]) -> E:
        """State about this model, made by `make(lm)` on first use and then kept as long as the model.

        `make` is the key, usually a class. What it makes must not refer to this FrozenLM, or only the garbage collector
        would free the weights.
        """
        state = self._extensions.get(make)
        if state is None:
            state = self._extensions.setdefault(make, make(self))  # atomic: threads agree on one
        return cast("E", state)

    @property
    def embedding(self) -> nn.Embedding:
        """The table of token embeddings."""
        table = self._model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @cached_property
    def unusable_ids(self) -> frozenset[int]:
        """Ids of the tokenizer that have no row in the embedding table, so that no text may hold them; usually none."""
        rows = self.embedding.weight.shape[0]
        return frozenset(number for number in self.tokenizer.get_vocab().values() if number >= rows)

    @property
    def embedding_table(self) -> Tensor:
        """The embeddings [V, H] of all tokens, on whatever device they are kept."""
        return whole_weight(self.embedding)

    @property
    def device(self) -> torch.device:
        """The device of inputs, final hidden states and logits."""
        return self._home or self._model.device

    @cached_property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """The device on which each layer of `geometry.layers` keeps its keys and values."""
        count = len(self.geometry.layers)
        causal = self.is_split and not self.is_encoder_decoder
        return layer_devices(self.backbone.module, count, self.device) if causal else (self.device,) * count

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Embeddings [..., H] of ids [...], scaled as the model itself would."""
        embeds = self.embedding(torch.as_tensor(ids, device=self.device)).to(self.device)
        part = self.encoder_decoder if self.is_encoder_decoder else self.backbone
        scale = part.embedding_scale
        return embeds if scale == 1.0 else embeds * scale

    @cached_property
    def backbone(self) -> Backbone:
        """The layers of a causal model, from tokens to final hidden states."""
        return Backbone(self._model)

    def shard(self, mesh: DeviceMesh, device: str) -> None:
        """Leave this process, on its device, a part of every layer's weights; see `placement.shard`.

        All processes call it, and from then on run the same forward and backward passes.
        """
        shard(encoder_and_decoder(self._model) if self.is_encoder_decoder else [self.backbone.module], mesh)
        nn.Module.to(self._model, torch.device(device))
        self.is_sharded = True
        for kept in ("backbone", "layer_devices"):
            vars(self).pop(kept, None)

    @cached_property
    def encoder_decoder(self) -> EncoderDecoder:
        """The encoder and the decoder of an encoder–decoder."""
        return EncoderDecoder(self._model)

    @cached_property
    def _head(self) -> Head:
        if self.is_encoder_decoder:
            return encoder_decoder_head(self._model, self.encoder_decoder)
        return head_of(self._model, self.backbone)

    def tied(self, tensor: Tensor, hidden: Tensor) -> Tensor:
        """A tensor of a pass, whose gradient reaches the pass's hidden states, too: for sharded layers alone."""
        return tied(tensor, hidden) if self.is_sharded else tensor

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in the model's dtype of final hidden states [N, H], by the model's own rule."""
        return self._head(hidden_NH).to(self.device)

    @cached_property
    def flops_per_token(self) -> float:
        """FLOPs of a forward pass's matrix products per token, without the head."""
        layers = self._model.base_model if self.is_encoder_decoder else self.backbone.module
        weights = weight_count(layers, quantized=is_quantized(self._model))
        return 2.0 * (weights - self.embedding.weight.numel())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored, quantized ones with their scales."""
        return weight_bytes(self._model)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer by the model's generation config; none if it names none."""
        configured = getattr(self._model.generation_config, "eos_token_id", None)
        ids = cast("list[Any]", configured if isinstance(configured, list) else [configured])
        return tuple(i for i in ids if isinstance(i, int))

    @property
    def start_id(self) -> int:
        """The first decoder token of an encoder–decoder, as its `generate` chooses it.

        A tokenizer that ends every answer with its language (PLBart) names that.

        Raises UnsupportedModelError if nothing names one.
        """
        generation, writer = self._model.generation_config, writing_config(self._config)
        language = self._answer_ends[1][-1:] if len(self._answer_ends[1]) > 1 else [None]
        named = [getattr(config, "decoder_start_token_id", None) for config in (generation, self._config)]
        fallback = [getattr(config, "bos_token_id", None) for config in (generation, writer)]
        for start in (*named, *language, *fallback):
            if isinstance(start, int):
                return start
        hint = "set decoder_start_token_id in the model's generation_config.json"
        raise UnsupportedModelError("the model names no token to start its decoder with", where=self.name, hint=hint)

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The decoder tokens that every answer follows: the first one, then BOS or the target language, where the
        generation config forces one or the tokenizer opens every answer with one (BART, mBART, NLLB)."""
        forced = getattr(self._model.generation_config, "forced_bos_token_id", None)
        opening = [forced] if isinstance(forced, int) else self._answer_ends[0]
        return (self.start_id, *opening) if opening != [self.start_id] else (self.start_id,)

    def beside_text(self, tokens: int) -> int:
        """How many of an answer's tokens share the context with the text: none in an encoder–decoder."""
        return 0 if self.is_encoder_decoder else tokens

    @property
    def answer_positions(self) -> int:
        """The most tokens that the decoder of an encoder–decoder holds."""
        return answer_context_of(writing_config(self._config))

    @cached_property
    def _answer_ends(self) -> tuple[list[int], list[int]]:
        return answer_ends(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without added special tokens."""
        return encode_plain(self.tokenizer, text)

    def digest(self) -> str:
        """sha256 hex of every weight and buffer: proof that training left the base model alone."""
        sha = hashlib.sha256()
        away = whole_weights(self._model) if self.is_offloaded or self.is_sharded else {}
        for key, weight in sorted((self._model.state_dict() | away).items()):
            for name, tensor in plain_tensors(key, weight):
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                sha.update(f"{name} {tuple(tensor.shape)}\n".encode())
                sha.update(plain.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    @property
    def checkpoints_layers(self) -> bool:
        """Whether a `checkpoint_layers` block is open."""
        return self._checkpointed > 0

    @contextlib.contextmanager
    def checkpoint_layers(self, on: bool = True) -> Generator[None]:
        """Recompute each layer in the backward pass instead of keeping its activations.

        Transformers' own switch drops the cache, and with it the prefix. This one wraps the layers and keeps the cache,
        which is sound because a `PrefixCache` does not change when a layer runs twice. Blocks may be nested and may be
        open in several threads; without `on` nothing happens.
        """
        if not on:
            yield
            return
        self._count_checkpointing(1)
        try:
            yield
        finally:
            self._count_checkpointing(-1)

    def _count_checkpointing(self, change: int) -> None:
        """Wrap the layers when the first block opens; unwrap them when the last one closes."""
        with self._checkpointing:
            before, self._checkpointed = self._checkpointed, self._checkpointed + change
            if before and self._checkpointed:
                return
            for layer in self._model.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    own = vars(layer).pop(_PLAIN_FORWARD, None)  # Accelerate's, of a layer with hooks
                    if self._checkpointed:
                        vars(layer)[_PLAIN_FORWARD] = vars(layer).get("forward")
                        forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
                        layer.forward = forward
                    else:
                        vars(layer).pop("forward", None)
                        if own is not None:
                            layer.forward = own
