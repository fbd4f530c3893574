"""`generate` with everything of Transformers', compared with its own loop over plain concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, pipeline
from transformers.modeling_outputs import CausalLMOutputWithPast

from softprompt.errors import ConfigError, DataError, UnsupportedModelError
from softprompt.modeling.generation_cache import GenerationCache
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.transformers_compat import CACHE_ARGUMENT, cache_of
from tests.support.prompted import FORMS, greedy, padded, prompted, texts, wanted_logits
from tests.support.tiny import tiny_lm, tiny_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "beams that sample": {"num_beams": 2, "do_sample": True},
    "chunks": {"prefill_chunk_size": 3},
}


class Plain(nn.Module, GenerationMixin):
    """Transformers' loop over logits that are computed by concatenation, a row at a time, for every token anew."""

    main_input_name = "input_ids"
    _is_stateful = False
    input_modalities = "text"

    def __init__(self, model: SoftPromptModel) -> None:
        super().__init__()
        self.wrapped, self.config = [model], model.config
        self.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
        self.device, self.dtype = model.device, model.dtype

    def can_generate(self) -> bool:
        return True

    def get_experts_implementation(self) -> dict[str, str]:
        return {}

    @staticmethod
    def is_remote_code() -> bool:
        return False

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True, use_cache: bool = False
    ) -> CausalLMOutputWithPast:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[on.bool()].tolist() for ids, on in zip(input_ids, mask, strict=True)]
        last = torch.stack([wanted_logits(self.wrapped[0], row)[-1:] for row in rows])
        return CausalLMOutputWithPast(logits=last)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("family", "form"), [("llama", "embedding"), ("mistral", "kv")])
@torch.no_grad()
def test_every_way_to_decode(family: str, form: str, name: str) -> None:
    """The same tokens as Transformers' loop draws from logits of concatenation."""
    model, options = prompted(family, form), OPTIONS[name]
    ids, mask = padded(texts(1, (7, 3)), "left")
    common: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(3)
    ours = model.generate(ids, **common, **options)
    torch.manual_seed(3)
    slow = {key: value for key, value in options.items() if key != "prefill_chunk_size"}
    plain: Any = Plain(model)
    wanted = plain.generate(ids, use_cache=False, **common, **slow)
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_assisted_decoding_is_greedy_decoding(form: str) -> None:
    """By another model's guesses, of which wrong ones are dropped from the cache, and by guesses from the text."""
    model, assistant = prompted("llama", form), tiny_lm("qwen2").hf_model
    (row,) = texts(2, (6,))
    wanted = greedy(model, row, 8)
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        out = model.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False, eos_token_id=None, **options)
        assert out[0, len(row) :].tolist() == wanted


@torch.no_grad()
def test_a_conversation_continues_from_its_cache() -> None:
    """By `generate`, and by calls with several new tokens, one, and none of its columns dropped."""
    model, (row,) = prompted(), texts(5, (9,))
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(torch.tensor([row]), max_new_tokens=4, **options)
    more = torch.cat([first.sequences, torch.tensor([[40, 41]])], 1)
    second = model.generate(more, max_new_tokens=3, **{CACHE_ARGUMENT: cache_of(first)}, **options)
    assert second.sequences[0, more.shape[1] :].tolist() == greedy(model, more[0].tolist(), 3)
    cache = cache_of(model(torch.tensor([row[:4]], device=model.device)))
    assert isinstance(cache, GenerationCache)
    for start, end, name in ((4, 7, "past_key_values"), (7, 8, "cache"), (8, 9, CACHE_ARGUMENT)):
        out = model(torch.tensor([row[start:end]], device=model.device), **{name: cache})
        wanted = wanted_logits(model, row[:end])[start:]
        assert torch.allclose(out.logits[0], wanted, rtol=1e-4, atol=5e-5)
    assert cache.get_seq_length() == 9


@torch.no_grad()
def test_longer_than_a_session_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.modeling.generation_cache._FIRST_ROOM", 2)
    model, (row,) = prompted(), texts(6, (5,))
    out = model.generate(torch.tensor([row]), max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert out[0, 5:].tolist() == greedy(model, row, 9)


def test_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    model = prompted("llama", "embedding")
    make: Any = pipeline  # its overloads know fewer tokenizers
    pipe = make("text-generation", model=model, tokenizer=model.tokenizer)
    text = "Where is my parcel?"
    (answer,) = pipe(text, max_new_tokens=5, do_sample=False, return_full_text=False, eos_token_id=None)
    wanted = greedy(model, model.tokenizer(text).input_ids, 5)
    assert answer["generated_text"] == model.tokenizer.decode(wanted, skip_special_tokens=True)
    turns = [{"role": "user", "content": text}]
    tokens: Any = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    ids = tokens["input_ids"]
    (answer,) = pipe(turns, max_new_tokens=5, do_sample=False, eos_token_id=None)
    said = answer["generated_text"][-1]["content"]
    assert said == model.tokenizer.decode(greedy(model, ids, 5), skip_special_tokens=True)
    assert "is not supported" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (UnsupportedModelError, {"past_key_values": DynamicCache()}),
        (UnsupportedModelError, {"cache": DynamicCache()}),
        (UnsupportedModelError, {"inputs_embeds": torch.zeros(1, 3, 32)}),
        (UnsupportedModelError, {"output_hidden_states": True}),
        (DataError, {"attention_mask": torch.ones(2, 7)}),
        (DataError, {"position_ids": torch.tensor([[0, 1, 2, 2, 3]])}),
        (DataError, {"position_ids": torch.arange(5)[None], "past_key_values": GenerationCache()}),
        (DataError, {"input_ids": torch.ones(5, dtype=torch.long)}),
    ],
)
def test_what_cannot_be_run_is_refused(kind: type[Exception], options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=r"input_ids|past_key_values|inputs_embeds|output_|mask|position_ids"):
        prompted()(**({"input_ids": torch.tensor([[5, 6, 7, 8, 9]])} | options))


def test_static_caches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)a cache of its own.*static"):
        prompted().generate(torch.tensor([[5, 6]]), cache_implementation="static", max_new_tokens=2)


def test_the_tokenizer_is_the_bases() -> None:
    assert len(prompted().tokenizer) == len(tiny_tokenizer())
