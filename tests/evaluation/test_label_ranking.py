"""Labels ranked as a tree equal labels scored one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from softprompt.data.spans import target_ids
from softprompt.data.targets import end_id
from softprompt.evaluation import label_ranking
from softprompt.evaluation.label_ranking import LabelTrie, rank_labels
from tests.support.labels import LABELS, TEMPLATE, brute_force, formatted, labelled
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_rank_is_brute_force(family: str, labels: list[str], small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For rows of all lengths at once, and in several parts."""
    if small:
        monkeypatch.setattr(label_ranking, "_TOKENS", 30)
        monkeypatch.setattr(label_ranking, "HEAD_POSITIONS", 1)
    lm, rows = tiny_lm(family), labelled(labels)
    begins = any(a != b and b.startswith(a) for a in labels for b in labels)
    totals, lengths = rank_labels(lm, formatted(lm), rows, labels)
    assert_close(totals, brute_force(lm, formatted(lm), rows, labels, end=begins), rtol=1e-4, atol=1e-3)
    assert lengths.tolist() == [len(label) + 1 + begins for label in labels], "a space before, the end after"


@pytest.mark.parametrize("form", ["none", "embedding", "kv"])
def test_rank_behind_every_kind_of_prefix(form: str) -> None:
    lm, labels = tiny_lm("llama", bos=True), LABELS["shared beginnings"]
    rows = labelled(labels)
    totals, _ = rank_labels(lm, formatted(lm, form), rows, labels)
    assert_close(totals, brute_force(lm, formatted(lm, form), rows, labels, end=False), rtol=1e-4, atol=1e-3)


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6, unique=True))
@settings(deadline=None, max_examples=50)
def test_the_tree_runs_shared_beginnings_once(labels: list[str]) -> None:
    """As many inner nodes as there are different proper beginnings, and each path spells its label."""
    lm = tiny_lm("llama")
    tree = LabelTrie.of(lm, formatted(lm), labels)
    begins = any(a != b and b.startswith(a) for a in labels for b in labels)
    closing = [end_id(TEMPLATE, lm.tokenizer)] if begins else []
    spelt = [(*target_ids(label, TEMPLATE, lm.tokenizer), *closing) for label in labels]
    assert len(tree.tokens) == len({ids[:n] for ids in spelt for n in range(1, len(ids))})
    assert len(tree.edges) == len({ids[:n] for ids in spelt for n in range(1, len(ids) + 1)})
    assert [tuple(tree.edges[edge][1] for edge in path) for path in tree.paths] == spelt
    children = {(parent + 1, tree.tokens[n]): n + 1 for n, parent in enumerate(tree.parents)}
    for path in tree.paths:
        node = 0
        for edge in path:
            assert tree.edges[edge][0] == node
            node = children.get(tree.edges[edge], -1)  # the last token of a label is no inner node
