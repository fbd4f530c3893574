"""What is known of a model belongs to that model: two models in one process share nothing, and importing registers
nothing."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.attention_switch import IMPLEMENTATION
from softprompt.prefix.attention_trace import record_attention
from softprompt.prefix.cascade import cascade, shared_layers
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix, require_causal
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.rope import shift_positions
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import check_close, mixed_prefixes, random_prompt, text_ids
from tests.support.tiny import tiny_model, tiny_seq2seq, tiny_tokenizer

ROWS = [[5, 6, 7], [8], [9, 10]]
STEPS = 3

IMPORTS = """
import importlib, json, pkgutil, sys
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

def names():
    tables = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping, SCHEDULER_MAPPING
    return [sorted(table) for table in tables]

before = names()
import softprompt
modules = [name for _, name, _ in pkgutil.walk_packages(softprompt.__path__, "softprompt.")]
imported = 0
for name in modules:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
        imported += 1
    except ImportError as error:
        assert not str(error.name).startswith(("softprompt", "transformers", "torch")), error
print(json.dumps([before == names(), imported, len(modules)]))
"""


def fresh(family: str, seed: int = 0) -> FrozenLM:
    """A model that no other test shares."""
    return FrozenLM(copy.deepcopy(tiny_model(family, seed)), tiny_tokenizer(), f"{family}-{seed}")


def decoded(lm: FrozenLM, between: Callable[[], object] = lambda: None) -> Tensor:
    """Hidden states [STEPS + 1, B, H] of rows that decode after one prefix, with something between the steps."""
    session = DecodingSession(lm, prepare_prefixes(lm, [mixed_prefixes(lm)[1]]), ROWS, [0] * len(ROWS), room=STEPS)
    states = [session.hidden]
    for i in range(STEPS):
        between()
        states.append(session.step(torch.tensor(text_ids(len(ROWS), i), device=lm.device)))
    return torch.stack(states)


def traced(lm: FrozenLM) -> Tensor:
    """The first layer's recorded attention outputs."""
    traces = record_attention(
        lm, prepare_prefixes(lm, [Prefix(lead=(5, 6))]), [Row(r) for r in ROWS], lambda h, _: h.sum()
    )
    assert traces[0] is not None
    return traces[0].output


def massed(lm: FrozenLM) -> Tensor:
    """The attention that the first layer pays to a prefix."""
    counted = [[True] * len(row) for row in ROWS]
    (mass, *_) = attention_mass(lm, prepare_prefixes(lm, [Prefix(lead=(5, 6))]), [Row(row) for row in ROWS], counted)
    assert mass is not None
    return mass


def moved(lm: FrozenLM) -> Tensor:
    """Keys moved to other positions."""
    prompt = random_prompt(lm, "kv", 2, 1)
    assert isinstance(prompt, KVPrompt)
    return shift_positions(lm, prompt, [3, 5]).tensors()["layers.0.k"]


def test_importing_every_module_registers_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    same, imported, modules = json.loads(done.stdout.splitlines()[-1])
    assert same and imported > 0.8 * modules


def test_each_model_is_proven_by_itself() -> None:
    one, other = fresh("llama"), fresh("qwen3")
    verify(one)
    moved(one)
    state, untouched = PrefixRuntime.of(one), PrefixRuntime.of(other)
    assert (state.exact, state.mask_style, state.rope_layouts) == (True, "single", ("halves",) * 2)
    assert (untouched.exact, untouched.mask_style, untouched.rope_layouts) == (False, None, None)
    verify(other)
    assert untouched.mask_style == "per layer type" and state.mask_style == "single"


def test_a_runtime_lives_as_long_as_its_model() -> None:
    lm = fresh("llama")
    decoded(lm)
    assert PrefixRuntime.of(lm) is PrefixRuntime.of(lm)
    gone = weakref.ref(PrefixRuntime.of(lm)), weakref.ref(lm)
    gc.disable()
    try:
        del lm
        assert [ref() for ref in gone] == [None, None], "no cycle keeps the weights"
    finally:
        gc.enable()


@pytest.mark.parametrize("work", [decoded, traced, massed, moved])
def test_one_model_in_the_middle_of_the_other(work: Callable[[FrozenLM], Tensor]) -> None:
    one, other, wanted = fresh("llama"), fresh("llama", 1), fresh("llama", 1)
    expected, alone = work(wanted), decoded(fresh("llama"))
    layers = shared_layers(one, require_causal(prepare_prefixes(one, [mixed_prefixes(one)[1]])))
    with cascade(one, layers):
        assert one.hf_model.config._attn_implementation == IMPLEMENTATION
        assert other.hf_model.config._attn_implementation == "sdpa"
        check_close(work(other), expected)
        assert one.hf_model.config._attn_implementation == IMPLEMENTATION
    assert one.hf_model.config._attn_implementation == "sdpa"
    between: list[Tensor] = []
    check_close(decoded(one, lambda: between.append(work(other))), alone)
    for result in between:
        check_close(result, expected)


def test_a_model_inside_itself_is_a_new_call() -> None:
    """Switches of one model nest in a thread; the outer one's attention comes back."""
    lm = fresh("llama")
    prefix_kv, rows = prepare_prefixes(lm, [mixed_prefixes(lm)[1]]), [Row(row) for row in ROWS]
    counted = [[True] * len(row) for row in ROWS]
    expected = attention_mass(lm, prefix_kv, rows, counted)[0]
    assert expected is not None
    with cascade(lm, shared_layers(lm, require_causal(prefix_kv))):
        mass = attention_mass(lm, prefix_kv, rows, counted)[0]
        assert mass is not None
        check_close(mass, expected)
        assert lm.hf_model.config._attn_implementation == IMPLEMENTATION
        assert PrefixRuntime.of(lm).attention_name == "sdpa"


def test_two_models_in_two_threads_do_not_wait_for_each_other() -> None:
    one, other = fresh("llama"), fresh("gemma2")
    expected = traced(other)
    layers = shared_layers(one, require_causal(prepare_prefixes(one, [mixed_prefixes(one)[1]])))
    found: list[Tensor] = []
    with cascade(one, layers):
        thread = threading.Thread(target=lambda: found.append(traced(other)))
        thread.start()
        thread.join(timeout=60)
        assert found, "it waits for another model's switch"
    check_close(found[0], expected)


def test_many_threads_on_two_models() -> None:
    models = [fresh("llama"), fresh("llama", 1)]
    works = [decoded, traced, massed]
    expected = [[work(lm) for work in works] for lm in (fresh("llama"), fresh("llama", 1))]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(i, j, pool.submit(works[j], models[i])) for _ in range(3) for i in range(2) for j in range(3)]
    for i, j, job in jobs:
        check_close(job.result(), expected[i][j])
    assert {lm.hf_model.config._attn_implementation for lm in models} == {"sdpa"}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_a_plain_call_of_another_thread_is_the_models_own(family: str) -> None:
    """With padding and with the model's own attention, while this thread records another."""
    lm = fresh(family)
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    expected = lm.hf_model(**inputs).logits
    ours = PrefixRuntime.of(lm).use_attention(lambda *args, **options: pytest.fail("another thread's function"))
    with ours, ThreadPoolExecutor(1) as pool:
        found = pool.submit(torch.no_grad()(lambda: lm.hf_model(**inputs).logits)).result()
    check_close(found[0], expected[0])
    check_close(found[1, 0], expected[1, 0])


def test_two_lms_of_one_transformers_model_share_its_switch() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    one, other = (FrozenLM(model, tiny_tokenizer(), name) for name in ("one", "other"))
    expected = decoded(one)
    check_close(decoded(other, lambda: decoded(one)), expected)
    assert PrefixRuntime.of(one).switch is PrefixRuntime.of(other).switch


def test_a_copied_model_has_a_switch_of_its_own() -> None:
    lm = fresh("llama")
    expected = decoded(lm)
    for model in (copy.deepcopy(lm.hf_model), pickle.loads(pickle.dumps(lm.hf_model))):
        twin = FrozenLM(model, tiny_tokenizer(), "twin")
        assert PrefixRuntime.of(twin).switch is not PrefixRuntime.of(lm).switch
        check_close(decoded(twin), expected)


def test_two_encoder_decoders() -> None:
    """The hooks of one encoder are not another's."""
    one = tiny_seq2seq("t5")
    other = FrozenLM(copy.deepcopy(one.hf_model), one.tokenizer, "other")
    PrefixRuntime.of(one).exact = False
    verify(one)
    assert one.encoder_decoder is not other.encoder_decoder and not PrefixRuntime.of(other).exact
    verify(other)
    assert PrefixRuntime.of(other).exact


def test_recomputing_layers_is_one_models_affair() -> None:
    one, other = fresh("llama"), fresh("llama", 1)

    def wrapped(lm: FrozenLM) -> bool:
        return any("forward" in vars(module) for module in lm.hf_model.modules())

    with one.checkpoint_layers():
        assert wrapped(one) and not wrapped(other)
        with other.checkpoint_layers(), one.checkpoint_layers():
            assert wrapped(one) and wrapped(other)
        assert wrapped(one) and not wrapped(other)
    with pytest.raises(InterruptedError), one.checkpoint_layers():
        raise InterruptedError
    assert not wrapped(one)
