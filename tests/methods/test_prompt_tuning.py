"""Prompt tuning: P·H parameters that are the prompt."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import ConfigError
from softprompt.methods.base import Start
from softprompt.methods.registry import build_method, method_specs
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.tiny import FAMILIES, tiny_lm

METHODS = tuple(method_specs())


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_its_text(family: str) -> None:
    lm = tiny_lm(family)
    method = build_method("prompt-tuning", lm, Start(3, "text", (70, 71, 72)))
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    assert_close(prompt.embeddings.detach(), lm.embed([70, 71, 72]), rtol=0, atol=0)


def test_parameters_are_the_prompt_and_no_more() -> None:
    lm = tiny_lm("llama")
    method = build_method("prompt-tuning", lm, Start(5, "text", (70,)))
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {"embeddings": (5, lm.geometry.hidden)}
    assert method.state_dict().keys() == {"embeddings"}
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    (gradient,) = torch.autograd.grad((prompt.embeddings * 3).sum(), list(method.parameters()))
    assert torch.equal(gradient, torch.full_like(gradient, 3.0))


def test_the_embedding_table_is_not_the_parameter() -> None:
    """A step must not write into the base model."""
    lm = tiny_lm("llama")
    before = lm.digest()
    method = build_method("prompt-tuning", lm, Start(5, "text", (70, 71)))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    assert lm.digest() == before


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        build_method("prompt-tunning", tiny_lm("llama"), Start(2))
    assert "prompt-tunning" in str(error.value)
    assert all(name in str(error.value) for name in METHODS)
