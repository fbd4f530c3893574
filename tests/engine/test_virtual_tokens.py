"""Virtual ids and their tensors."""

from __future__ import annotations

import pytest
import torch

from softprompt.engine import virtual_tokens
from softprompt.engine.virtual_tokens import VirtualVocabulary, only_text_ids
from softprompt.errors import EngineError
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm

CPU = torch.device("cpu")


def loaded(vocabulary: VirtualVocabulary, name: str, prefix: Prefix) -> virtual_tokens.LoadedPrompt:
    vocabulary.load(name, prefix, CPU, torch.float32)
    return vocabulary.take(name)


def prompt(n_tokens: int) -> EmbeddingPrompt:
    return EmbeddingPrompt(torch.randn(n_tokens, 8))


def test_an_id_is_given_once() -> None:
    vocabulary, seen = VirtualVocabulary(100), set[int]()
    for i in range(20):
        one = loaded(vocabulary, f"p{i % 3}", Prefix(prompt(1 + i % 4), (3, 4), (5,)))
        ids = set(one.ids[2:-1])
        assert one.ids[:2] == (3, 4) and one.ids[-1] == 5
        assert len(ids) == 1 + i % 4 and min(ids) >= 100 and not ids & seen
        seen |= ids
        if i % 2:
            vocabulary.release(one)
    assert sorted(vocabulary.names()) == ["p0", "p1", "p2"]


def test_no_ids_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_tokens, "FIRST_SALTED_ID", 110)
    vocabulary = VirtualVocabulary(100)
    vocabulary.load("a", Prefix(prompt(10)), CPU, torch.float32)
    with pytest.raises(EngineError, match="no virtual ids are left"):
        vocabulary.load("a", Prefix(prompt(1)), CPU, torch.float32)
    assert vocabulary.take("a").ids == tuple(range(100, 110)), "what is loaded stays"


def test_every_tenant_has_an_alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    """None has an id of another's, or of a virtual token; read back, all are the tokens of the base model."""
    vocabulary = VirtualVocabulary(100)
    one = loaded(vocabulary, "a", Prefix(prompt(10)))
    names = ["", "x", "y", ""]
    ids = [[vocabulary.salted(token, name) for token in range(100)] for name in names]
    assert ids[0] == ids[3] == list(range(100))
    everything = [*ids[0], *ids[1], *ids[2], *one.ids]
    assert len(set(everything)) == 310
    row = torch.tensor(everything, dtype=torch.int32)
    assert only_text_ids(row, 100).tolist() == [*range(100)] * 3 + [0] * 10
    monkeypatch.setattr(virtual_tokens, "ID_LIMIT", virtual_tokens.FIRST_SALTED_ID + 250)
    for _ in range(2):
        with pytest.raises(EngineError, match="too many tenants"):
            vocabulary.salted(1, "z")
    assert vocabulary.salted(1, "y") == ids[2][1]


def test_tensors_go_with_the_last_user() -> None:
    vocabulary = VirtualVocabulary(100)
    one, again = loaded(vocabulary, "a", Prefix(prompt(2))), vocabulary.take("a")
    vocabulary.unload("a")
    vocabulary.release(one)
    assert again.embeddings is not None
    vocabulary.check_integrity([again])
    vocabulary.release(again)
    assert again.embeddings is None
    vocabulary.check_integrity([])


def test_a_prompt_without_users_is_freed_at_once_but_not_while_it_is_listed() -> None:
    vocabulary = VirtualVocabulary(100)
    one = loaded(vocabulary, "a", Prefix(prompt(2)))
    vocabulary.release(one)
    assert one.embeddings is not None
    vocabulary.load("a", Prefix(prompt(2)), CPU, torch.float32)
    assert one.embeddings is None


def test_a_copy_is_kept() -> None:
    """Training may go on with the tensors that were loaded."""
    vocabulary, tensor = VirtualVocabulary(100), torch.randn(3, 8)
    one = loaded(vocabulary, "a", Prefix(EmbeddingPrompt(tensor)))
    before = tensor.clone()
    tensor.zero_()
    assert one.embeddings is not None and torch.equal(one.embeddings, before)
    lm = tiny_lm("llama")
    kv = random_prompt(lm, "kv", 3, 1)
    two = loaded(vocabulary, "b", Prefix(kv))
    assert isinstance(kv, KVPrompt) and kv.layers[0] is not None
    assert torch.equal(two.layers[0][0].transpose(0, 1), kv.layers[0][0])
    kv.layers[0][0].zero_()
    assert two.layers[0][0].norm() > 0


@pytest.mark.parametrize(
    ("positions", "wanted"), [((0, 9), (0, 4)), ((0, 3), (0, 1)), ((3, 5), (1, 3)), ((4, 20), (2, 4))]
)
def test_which_virtual_tokens_lie_where(positions: tuple[int, int], wanted: tuple[int, int]) -> None:
    one = loaded(VirtualVocabulary(100), "a", Prefix(prompt(4), (7, 8), (9,)))
    assert one.virtual(*positions) == wanted
    for outside in ((0, 2), (6, 7), (7, 30)):
        begin, end = one.virtual(*outside)
        assert begin >= end


def test_the_books_are_checked() -> None:
    vocabulary = VirtualVocabulary(100)
    one = loaded(vocabulary, "a", Prefix(prompt(2)))
    with pytest.raises(AssertionError, match="a has 1 users"):
        vocabulary.check_integrity([])
    one.users = 2
    with pytest.raises(AssertionError, match="a has 2 users"):
        vocabulary.check_integrity([one])
    one.users = 1
    vocabulary.check_integrity([one])
    other = loaded(vocabulary, "b", Prefix(prompt(2)))
    other.ids = one.ids
    with pytest.raises(AssertionError, match="share a virtual id"):
        vocabulary.check_integrity([one, other])
