"""Texts for soft prompts: a planted text is found and has all of the effect, and nothing is claimed without one."""

from __future__ import annotations

import pytest
import torch

from softprompt.inspection import verbalize as module
from softprompt.inspection.controls import random_like
from softprompt.inspection.descriptions import Description, descriptions, sentences
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.verbalize import verbalize
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.state_patch import patched_states, states_after_layers
from softprompt.prompts.forms import EmbeddingPrompt
from tests.inspection.planted import ROWS, effect_of, formatted_of
from tests.support.cases import random_prompt
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm

TEXT = "green winter"
FOUR = [*ROWS, ROWS[0]]


def of_text(lm: FrozenLM, text: str) -> EmbeddingPrompt:
    return EmbeddingPrompt(lm.embed(torch.tensor(lm.encode(f"{text}\n\n"))).detach())


def test_the_text_itself_recovers_everything_and_no_text_nothing() -> None:
    lm = tiny_lm()
    effect = effect_of(of_text(lm, TEXT), lm)
    assert effect.total > 0.01
    assert effect.recovered_by_text(TEXT) == pytest.approx(1, abs=1e-3)
    assert effect.recovered_by_text("") == pytest.approx(0, abs=1e-3)


def test_halves_and_parts_hold_the_predictions_of_their_rows() -> None:
    prompt = random_prompt(tiny_lm(), "embedding", 3, 1)
    whole = PromptEffect(tiny_lm(), formatted_of(tiny_lm(), prompt), [*ROWS, *ROWS])
    one, other = whole.halves(10_000)
    assert [record.where for record in one.records] == [ROWS[0].where, ROWS[2].where, ROWS[1].where]
    again = PromptEffect(tiny_lm(), formatted_of(tiny_lm(), prompt), one.records)
    torch.testing.assert_close(one.states, again.states, rtol=1e-4, atol=1e-5)
    assert one.total == pytest.approx(again.total, rel=1e-4)
    assert sum(map(len, (one.records, other.records))) == 6 and len(whole.first(1).records) == 2
    short = whole.shortest(1)
    sizes = sorted(len(example.ids) for example in whole.examples)
    assert sorted(len(example.ids) for example in short.examples) == sizes[:2]


def test_the_planted_text_is_chosen_and_measured_on_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    formatted = formatted_of(lm, of_text(lm, TEXT))

    def candidates(effect: PromptEffect) -> list[Description]:
        own = effect.prompt is formatted.prompt
        return [Description("one two three", "asked"), *([Description(TEXT, "continued")] if own else [])]

    monkeypatch.setattr(module, "descriptions", candidates)
    found = verbalize(lm, formatted, FOUR, start=random_like(of_text(lm, TEXT), 5))
    assert found.best.text == TEXT and found.recovered == pytest.approx(1, abs=1e-3) and found.says_it
    assert set(found.controls) == {"start", "random"} and max(found.controls.values()) < 0.9
    assert [text.text for text in found.candidates].count(TEXT) >= 1


def test_nothing_is_claimed_where_nothing_says_it() -> None:
    lm = tiny_lm()
    found = verbalize(lm, formatted_of(lm, random_prompt(lm, "kv", 3, 1)), FOUR)
    assert not found.says_it and found.to_dict()["says_it"] is False and found.rows == 4


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_sources_of_candidates(form: str) -> None:
    lm = tiny_lm()
    sources = {each.source.split(" ")[0] for each in descriptions(effect_of(random_prompt(lm, form, 3, 1)))}
    expected = {"asked", "continued", "nearest"} | ({"patched"} if form == "embedding" else set())
    assert sources == expected


def test_sentences_are_those_of_lines_and_lists() -> None:
    assert sentences('Be kind. Be brief!\n- "Write in French"\n\n') == ["Be kind.", "Be brief!", "Write in French"]


@pytest.mark.parametrize("layer", [0, 1])
def test_patching_a_texts_own_states_changes_nothing_and_others_do(layer: int) -> None:
    lm, ids = tiny_lm(), (5, 9, 12, 40, 7)
    own = states_after_layers(lm, Prefix(lead=ids))[layer]

    def after() -> torch.Tensor:
        with torch.no_grad():
            return packed_hidden_states(lm, prepare_prefixes(lm, [Prefix(lead=ids)]), [Row((8, 3))])

    plain = after()
    with patched_states(lm, layer, [1, 2], own[1:3]):
        torch.testing.assert_close(after(), plain)
    with patched_states(lm, layer, [1, 2], own[3:5]):
        moved = (after() - plain).abs().max()
    assert (moved > 1e-3) == (layer == 0), "what the last layer returns is read by no later one"


def test_the_last_layers_states_of_a_prefix_lead_to_the_models_own() -> None:
    """An oracle: Transformers' hidden states."""
    lm, ids = tiny_lm(), (5, 9, 12)
    with torch.no_grad():
        states = lm.hf_model(torch.tensor([ids], device=lm.device), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states_after_layers(lm, Prefix(lead=ids))[0], states[1][0])


def test_other_kinds_of_models_are_described_by_what_they_can() -> None:
    lm = odd_lm("granite4")
    effect = PromptEffect(lm, formatted_of(lm, random_prompt(lm, "embedding", 3, 1)), ROWS)
    assert {each.source.split(" ")[0] for each in descriptions(effect)} >= {"asked"}
