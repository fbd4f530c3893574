"""P-tuning v2: prefix tuning from one table, with dropout."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import ConfigError
from softprompt.methods.base import Method
from softprompt.methods.p_tuning_v2 import DROPOUT
from tests.support.learning import learn, stir
from tests.support.tasks import answers, learner
from tests.support.tiny import tiny_lm


def table(method: Method) -> torch.Tensor:
    (prompt,) = method()
    return prompt.matrix()


def test_dropout_while_training_only() -> None:
    """A tenth of the numbers drop out, others each time, the rest is scaled up; never the frozen tokens."""
    method = learner(tiny_lm("llama"), "p-tuning-v2", n_tokens=60, frozen_tokens=2)
    assert isinstance(method, Method)
    whole = table(method.eval())
    one, two = table(method.train()), table(method)
    assert_close(one[:2], whole[:2], rtol=0, atol=0)
    dropped = one[2:] == 0
    assert dropped.float().mean().item() == pytest.approx(DROPOUT, abs=0.02)
    assert_close(one[2:][~dropped], whole[2:][~dropped] / (1 - DROPOUT))
    assert not torch.equal(dropped, two[2:] == 0)
    with torch.no_grad():
        assert_close(table(method), whole, rtol=0, atol=0)
    assert_close(method.freeze()[0].matrix(), whole.detach(), rtol=0, atol=0)


def test_without_dropout_it_is_prefix_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers from the same start take the same steps."""
    monkeypatch.setattr("softprompt.methods.p_tuning_v2.DROPOUT", 0.0)
    lm, trained = tiny_lm("llama"), []
    for name in ("p-tuning-v2", "prefix-tuning"):
        method = learner(lm, name, frozen_tokens=1)
        learn(lm, method, answers(16, 0), steps=5)
        trained.append(method.freeze()[0].matrix())
    assert_close(*trained, rtol=1e-4, atol=1e-4)


def test_one_table_and_frozen_tokens() -> None:
    method = learner(tiny_lm("llama"), "p-tuning-v2", frozen_tokens=2).eval()
    assert isinstance(method, Method)
    before = table(method).detach()
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {"table": (4, before.shape[1])}
    stir(method)
    same = (table(method) == before).all(dim=1).tolist()
    assert same == [True] * 2 + [False] * 4
    with pytest.raises(ConfigError, match="frozen tokens"):
        learner(tiny_lm("llama"), "p-tuning-v2", frozen_tokens=6)
