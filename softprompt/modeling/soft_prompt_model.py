"""A frozen base model and a soft prompt as one Transformers model.

    model = SoftPromptModel.from_pretrained("Qwen/Qwen3-0.6B", "tone")            # a finished soft prompt
    model = SoftPromptModel.from_method("Qwen/Qwen3-0.6B", {"name": "prompt-tuning", "n_tokens": 20})
    Trainer(model, ...).train()                                                   # only the soft prompt is trained
    model.save_pretrained("prompts/tone")

Texts are tokenized as for the base model, BOS and chat template included. Logits belong to the given ids alone. The
prefix is run once in a forward pass, whatever the number of rows.

Shapes: B batch rows, L columns, K kept columns, V vocabulary.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from softprompt.data.template import Template
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.methods.config import MethodConfig
from softprompt.modeling.artifact import write_into
from softprompt.modeling.backbone import SoftPromptBackbone
from softprompt.modeling.generation_cache import GenerationCache
from softprompt.modeling.prompts import ModelPrompt, load_prompt, new_prompt, open_base, placement_of
from softprompt.modeling.rows import first_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.placement import DeviceMap
from softprompt.models.transformers_compat import CACHE_ARGUMENT, cache_of, logits_with_cache


class SoftPromptConfig(PreTrainedConfig):
    """The key of `SoftPromptModel` in Transformers' table of causal models; a model's own config is its base's."""

    model_type = "softprompt"


@final
class SoftPromptModel(PreTrainedModel, GenerationMixin):
    """A frozen base model with a soft prompt, to train, generate and evaluate with other libraries.

    The base runs without dropout in either mode. A state dict holds the soft prompt alone.

    Attributes:
        lm: the base model.
        model: base model and soft prompt without the head.
        card: of the soft prompt; of one in training as it will be saved.
    """

    config_class = SoftPromptConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `Trainer` passes the number of learned tokens in all parts of a batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, lm: FrozenLM, prompt: ModelPrompt) -> None:
        placement = placement_of(lm, prompt.card)
        super().__init__(_config(lm, len(placement.lead) + prompt.card.n_tokens))
        self.lm, self.card = lm, prompt.card
        self.model = SoftPromptBackbone(lm, prompt.method, placement)
        self.loss_type = "ForCausalLM"
        self.generation_config = copy.deepcopy(lm.hf_model.generation_config)
        self.all_tied_weights_keys: dict[str, str] = {}
        self.train(lm.hf_model.training)
        AutoModelForCausalLM.register(SoftPromptConfig, SoftPromptModel, exist_ok=True)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        base: str | PreTrainedModel | FrozenLM,
        prompt: str | Path,
        *,
        is_trainable: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str = "auto",
        load_in: str | None = None,
        device_map: str | DeviceMap | None = None,
        trust_remote_code: bool = False,
    ) -> SoftPromptModel:
        """A base model with a saved soft prompt.

        Args:
            base: Hub id, folder, GGUF file or built-in name, or a model that is loaded already.
            prompt: the soft prompt's name in the prompts folder, or its folder.
            is_trainable: train the soft prompt on, instead of using it as it is.
            tokenizer: of a base that is loaded already, if not that of its name.
            dtype, device, load_in, device_map, trust_remote_code: of `softprompt.load_model`, for a base by name.

        Raises:
            ModelError: the base cannot be loaded, or is an encoder–decoder.
            StoreError: the soft prompt is missing, damaged or altered.
            WrongBaseError: it was made for another base model.
        """
        lm = open_base(base, tokenizer, dtype, device, load_in, device_map, trust_remote_code)
        return cls(lm, load_prompt(lm, prompt, is_trainable=is_trainable))

    @classmethod
    def from_method(
        cls,
        base: str | PreTrainedModel | FrozenLM,
        method: str | Mapping[str, object] | MethodConfig = "prompt-tuning",
        *,
        template: str | Template | None = None,
        labels: Sequence[str] = (),
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str = "auto",
        load_in: str | None = None,
        device_map: str | DeviceMap | None = None,
        trust_remote_code: bool = False,
    ) -> SoftPromptModel:
        """A base model with a new soft prompt, to be trained.

            SoftPromptModel.from_method(base, {"name": "prefix-tuning", "n_tokens": 20, "init_text": "Answer briefly."})

        Args:
            base, tokenizer, dtype, device, load_in, device_map, trust_remote_code: as in `from_pretrained`.
            method: a method's name, or its settings as in the section `method` of `softprompt train`. Without
                `init_text` the virtual tokens start as frequent tokens.
            template: how the training texts are written, e.g. "Review: {text}\\nSentiment:", for `softprompt generate`
                and the server. By default the model's chat template, or bare text.
            labels: class labels to start from, with init "labels".
            seed: of the start.

        Raises:
            ModelError: the base cannot be loaded, or is an encoder–decoder.
            ConfigError: settings that do not exist or do not fit, or a method that trains several prompts.
        """
        lm = open_base(base, tokenizer, dtype, device, load_in, device_map, trust_remote_code)
        return cls(lm, new_prompt(lm, method, template=template, labels=labels, seed=seed))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        cache: GenerationCache | None = None,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits [B, K, V] of the given ids, and the loss at the labels.

        A place of padding has the logits of the last token before it, so `logits[:, -1]` predicts the next token
        whatever side was padded.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], or of all columns with a cache; zeros are padding on any side.
            position_ids: [B, L] for several sequences in a row (padding-free batches), each counted from 0. Every
                sequence follows the soft prompt.
            past_key_values, cache: the cache of an earlier call, by its name before and since Transformers 5.24.
            labels: [B, L], compared with the logits one column earlier; -100 is not learned.
            logits_to_keep: number of last columns, or the numbers of the columns; 0 for all.
            num_items_in_batch: what the summed loss is divided by; the number of labels by default.
            cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, seq_idx: not read; padding-free batches give them
                beside `position_ids`, which say the same.

        Raises:
            DataError: ids, mask or positions that cannot be read, or a row too long for the context.
            UnsupportedModelError: `inputs_embeds`, foreign caches, or attentions and hidden states as outputs.
        """
        if output_attentions or output_hidden_states:
            what = "a SoftPromptModel returns logits only"
            raise UnsupportedModelError(what, where="output_attentions, output_hidden_states", hint="leave them out")
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False)) and not self.training and position_ids is None
        last_only = isinstance(logits_to_keep, int) and logits_to_keep == 1
        past = past_key_values if cache is None else cache
        output = self.model(
            input_ids, attention_mask, position_ids, past, inputs_embeds, use_cache, last_only=last_only
        )
        states_BLH = output.last_hidden_state
        if not last_only:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            states_BLH = states_BLH[:, kept]
        logits_BKV = self.lm.logits(states_BLH.flatten(0, 1)).unflatten(0, states_BLH.shape[:2])
        loss = None
        if labels is not None:
            visible_BL = torch.ones_like(labels) if attention_mask is None else attention_mask
            labels = labels.masked_fill(first_tokens(visible_BL.bool(), position_ids), -100)  # whatever side is padded
            loss = self.loss_function(
                logits=logits_BKV, labels=labels, vocab_size=logits_BKV.shape[-1], num_items_in_batch=num_items_in_batch
            )
        result = logits_with_cache(loss, logits_BKV, cache_of(output))
        return result.to_tuple() if return_dict is False else result

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "",
    ) -> None:
        """Write the soft prompt: its tensors, its card and a README, as `softprompt train` does.

        `softprompt generate FOLDER` and `from_pretrained(base, FOLDER)` read it. Of a soft prompt in training the
        parameters are kept beside it, from which `Trainer` resumes. Other files in the folder stay.

        Args:
            save_directory: the artifact's folder.
            is_main_process: nothing is written if not.
            state_dict: of this model, if it is gathered already.
            max_shard_size: has no effect: a soft prompt is one file.

        Raises StoreError if the folder cannot be written to, or holds another model's weights.
        """
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        own = {name: tensor for name, tensor in state.items() if name.startswith("model.prompt.")}
        with torch.no_grad():
            self.card = write_into(Path(save_directory), self.model.live().freeze(), self.card, own)

    if TYPE_CHECKING:  # Transformers types its own for its own models alone

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Transformers' inputs of a step, without positions: they are known from the mask, for any padding side."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        inputs.pop("position_ids", None)
        return inputs

    def get_base_model(self) -> PreTrainedModel:
        """The base model alone, without the soft prompt; it shares its weights, e.g. as `ref_model` of DPO."""
        return self.lm.hf_model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.lm.tokenizer

    @property
    def device(self) -> torch.device:
        """Of the base model."""
        return self.lm.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base model; a soft prompt in training is float32."""
        return self.lm.dtype

    def train(self, mode: bool = True) -> SoftPromptModel:
        """Set the mode of the soft prompt; the frozen base always runs without dropout."""
        super().train(mode)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The base model's table of token embeddings."""
        return self.lm.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The base model's head."""
        return self.lm.hf_model.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refused: the base model is frozen."""
        raise _frozen("its embeddings cannot be replaced")

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Embedding:
        """Refused: the base model is frozen."""
        raise _frozen("its vocabulary cannot be resized")

    def enable_input_require_grads(self) -> None:
        """Nothing: gradients reach the soft prompt by themselves, also with gradient checkpointing."""

    def tie_weights(self, *args: object, **kwargs: object) -> None:
        """Nothing: the base model's weights are tied already."""

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: object, **kwargs: object
    ) -> str:
        """The base model's own: it was checked when that was loaded."""
        return attn_implementation or "eager"

    def _check_and_adjust_experts_implementation(self, experts_implementation: str | None) -> str:
        """As for attention."""
        return experts_implementation or "eager"

    def _set_gradient_checkpointing(self, enable: bool = True, *args: object, **kwargs: object) -> None:
        """Recompute layers in the backward pass; the base model's own switch would drop the prefix."""
        self.model.gradient_checkpointing = enable

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, object],
        generation_mode: object,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """Make the cache of a generation; returns whether there was none and one is wanted."""
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise ConfigError("a soft prompt has a cache of its own", where="cache_implementation", got=wanted)
        new = generation_config.use_cache is not False and model_kwargs.get(CACHE_ARGUMENT) is None
        if new:
            model_kwargs[CACHE_ARGUMENT] = GenerationCache()
        return new


def _config(lm: FrozenLM, taken: int) -> PreTrainedConfig:
    """A copy of the base's config, whose context is what the soft prompt leaves to the caller."""
    config = copy.deepcopy(lm.hf_model.config)
    text = config.get_text_config()
    if isinstance(getattr(text, "max_position_embeddings", None), int):
        text.max_position_embeddings = max(1, lm.geometry.max_positions - taken)
    return config


def _frozen(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the base model is frozen: {what}")
