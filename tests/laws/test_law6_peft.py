"""Law 6: PEFT adapters in and out give the logits of PEFT's own forward, and out and in again is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import from_card, layout_ids
from softprompt.interchange import peft
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.import_card import import_card
from softprompt.interchange.registry import read_foreign
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import prompt_digest
from tests.support.adapters import CONFIGS, peft_logits, saved_adapter
from tests.support.artifacts import contents
from tests.support.cases import check_close, random_prompt, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

ROWS = [text_ids(n, n) for n in (9, 2, 14, 1)]  # some past the sliding window of 11; padded to 14 in PEFT's batch
TEMPLATE = Template("text", "Row: {text}")
EVERY_TYPE = ("llama", "qwen2", "gpt2", "gpt_neox", "opt")  # the other families: one type of each form
PAIRS = [
    (family, kind)
    for family in FAMILIES
    for kind in CONFIGS
    if family in EVERY_TYPE or kind in ("PROMPT_TUNING", "PREFIX_TUNING")
]
# PEFT cannot load CPT of a model whose embeddings are narrower than its layers: CPTConfig forgets `token_dim`.
PAIRS.remove(("opt", "CPT"))


def our_logits(lm: FrozenLM, prompt: SoftPrompt, card: Card, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits at the tokens of each row, all rows packed after the prompt in its card's frame."""
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [from_card(prompt, card).prefix(lm)])
        logits = lm.logits(packed_hidden_states(lm, prefixes, [Row(row) for row in rows]))
    return list(logits.split([len(row) for row in rows]))


def check_rows(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, wanted in zip(ours, theirs, strict=True):
        check_close(mine, wanted)


def imported(lm: FrozenLM, folder: Path) -> list[ImportedPrompt]:
    return read_foreign(folder, lm.geometry)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_imported_adapters(family: str, kind: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    folder = saved_adapter(kind, lm, tmp_path / "adapter")
    found = imported(lm, folder)
    assert len(found) == (3 if kind == "MULTITASK_PROMPT_TUNING" else 1)
    for i, one in enumerate(found):
        card = import_card(lm, one, "tone")
        assert (card.method["name"], card.method["imported_from"], card.n_tokens) == (kind.lower(), "peft", 5)
        task = i if len(found) > 1 else None
        check_rows(our_logits(lm, one.prompt, card, ROWS), peft_logits(lm, folder, ROWS, task))


@pytest.mark.parametrize("form", ["embedding", "kv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_prompts(family: str, form: str, tmp_path: Path) -> None:
    """With BOS and lead before an embedding prompt, which PEFT cannot have there: they become virtual tokens."""
    lm = tiny_lm(family, bos=True)
    prompt, card = made(
        lm, form, Layout(bos=form == "embedding", lead="ab" if form == "embedding" else "", follow="Row:")
    )
    folder = exported(lm, prompt, card, tmp_path / "adapter")
    follow = layout_ids(lm, card.layout)[1]
    theirs = peft_logits(lm, folder, [[*follow, *row] for row in ROWS])
    check_rows(our_logits(lm, prompt, card, ROWS), [logits[len(follow) :] for logits in theirs])


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_out_and_in_again(form: str, tmp_path: Path) -> None:
    """Nothing before it: the same bits. Frame and labels come back too."""
    lm = tiny_lm(bos=True)
    prompt, card = made(lm, form, Layout(follow="Row:"), labels=("yes", "no"), method={"name": "x"})
    (found,) = imported(lm, exported(lm, prompt, card, tmp_path / "adapter"))
    again = import_card(lm, found, "tone")
    assert contents(found.prompt) == contents(prompt)
    assert (again.template, again.labels, again.layout) == (card.template, card.labels, card.layout)
    assert again.method == {"name": found.method["name"], "imported_from": "peft"}


def test_a_baked_lead_is_imported_as_virtual_tokens(tmp_path: Path) -> None:
    lm = tiny_lm(bos=True)
    prompt, card = made(lm, "embedding", Layout(bos=True, lead="ab", follow="Row:"))
    (found,) = imported(lm, exported(lm, prompt, card, tmp_path / "adapter"))
    again = import_card(lm, found, "tone")
    assert again.n_tokens == card.n_tokens + 3
    assert again.layout == Layout(follow="Row:")
    check_rows(our_logits(lm, found.prompt, again, ROWS), our_logits(lm, prompt, card, ROWS))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "CARTRIDGE"])
def test_in_and_out_again(kind: str, tmp_path: Path) -> None:
    """PEFT's tensor comes back with the same bits, in an adapter of the same type; BOS stays part of the text."""
    lm = tiny_lm(bos=True)
    (found,) = imported(lm, saved_adapter(kind, lm, tmp_path / "one"))
    card = store.save(tmp_path / "tone", found.prompt, import_card(lm, found, "tone", template=TEMPLATE))
    assert card.layout == Layout(follow_bos=True, follow="Row:")
    (again,) = imported(lm, exported(lm, found.prompt, card, tmp_path / "two"))
    assert prompt_digest(again.prompt) == prompt_digest(found.prompt)
    assert again.method == found.method
    assert import_card(lm, again, "tone").layout == card.layout


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_the_bos_of_the_tokenizer_is_behind_the_virtual_tokens(kind: str, tmp_path: Path) -> None:
    """As PEFT has it when the user tokenises as usual."""
    lm = tiny_lm(bos=True)
    folder = saved_adapter(kind, lm, tmp_path / "adapter")
    (found,) = imported(lm, folder)
    card = import_card(lm, found, "tone", template=TEMPLATE)
    text = lm.tokenizer.encode("Row: hello")
    body = lm.encode(" hello")
    (theirs,) = peft_logits(lm, folder, [text])
    check_rows(our_logits(lm, found.prompt, card, [body]), [theirs[-len(body) :]])


def made(lm: FrozenLM, form: str, layout: Layout, **facts: object) -> tuple[SoftPrompt, Card]:
    prompt = random_prompt(lm, form, 5, 7)
    given = {
        "name": "tone",
        "form": form,
        "n_tokens": 5,
        "sha256": prompt_digest(prompt),
        "base": lm.geometry.to_dict(),
    }
    return prompt, Card.model_validate(given | {"layout": layout, "template": TEMPLATE.to_dict()} | facts)


def exported(lm: FrozenLM, prompt: SoftPrompt, card: Card, folder: Path) -> Path:
    peft.write(
        folder, prompt, card, lm.embed(torch.tensor(layout_ids(lm, card.layout)[0], dtype=torch.long, device=lm.device))
    )
    return folder
