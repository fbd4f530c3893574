"""State tuning on models with recurrent layers; what holds of every method is in `test_every_method`."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import PromptError
from softprompt.methods.initializers import INITS
from softprompt.prefix.kv import Prefix
from softprompt.prefix.state import compute_states
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import check_fits
from tests.laws.test_law8_fits import LABELS
from tests.support.cases import text_ids
from tests.support.learning import learn, nats
from tests.support.odd_models import odd_lm
from tests.support.tasks import answers, learner


@pytest.mark.parametrize("family", ["granite4", "mamba2"])
@pytest.mark.parametrize("init", [init for init in INITS if init != "prompt"])
def test_from_every_start(family: str, init: str) -> None:
    lm = odd_lm(family)
    method = learner(lm, "state-tuning", n_tokens=6, init=init, text=tuple(text_ids(5, 3)), labels=LABELS, lead=(3,))
    (prompt,) = method.freeze()
    check_fits(prompt, lm.geometry)
    assert prompt.n_tokens == (6 if any(lm.geometry.layers) else 1)
    states = [t for name, t in prompt.tensors().items() if "recurrent" in name]
    assert states and all(state.any().item() == (init not in ("uniform", "normal")) for state in states)


def test_it_starts_as_the_text_and_as_another_prompt() -> None:
    lm, ids = odd_lm("qwen3_5"), tuple(text_ids(5, 3))
    verify(lm)
    (prompt,) = learner(lm, "state-tuning", n_tokens=6, init="text", text=ids, lead=(3,)).freeze()
    wanted = compute_states(lm, Prefix(lead=(3, *ids))).tensors()
    assert prompt.tensors().keys() == wanted.keys()
    (again,) = learner(lm, "state-tuning", n_tokens=6, init="prompt", prompt=prompt).freeze()
    for name, tensor in wanted.items():
        assert_close(prompt.tensors()[name], tensor)
        assert_close(again.tensors()[name], tensor)


@pytest.mark.parametrize("family", ["qwen3_5", "mamba2"])
def test_it_learns(family: str) -> None:
    lm, rows = odd_lm(family), answers(16, 0)
    method = learner(lm, "state-tuning", n_tokens=6)
    with torch.no_grad():
        before = nats(lm, method, rows).item()
    learn(lm, method, rows, steps=60, lr=0.3)
    loss = nats(lm, method, rows)
    assert loss.item() < 0.6 * before
    loss.backward()
    still = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert still == []


def test_states_cannot_be_cut_or_joined() -> None:
    (prompt,) = learner(odd_lm("granite4"), "state-tuning", n_tokens=6).freeze()
    with pytest.raises(PromptError, match="not a list of virtual tokens"):
        prompt.select([0])
    with pytest.raises(PromptError, match="not a list of virtual tokens"):
        prompt.concatenate([prompt])
