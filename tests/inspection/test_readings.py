"""Readings of soft prompts with a planted truth."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import ConfigError
from softprompt.inspection.behavior import behavior
from softprompt.inspection.controls import random_like
from softprompt.inspection.drift import drift, effective_rank
from softprompt.inspection.inspection import READINGS, inspect
from softprompt.inspection.layers import layer_bands
from softprompt.inspection.nearest import nearest
from softprompt.inspection.worth import token_worth
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.inspection.planted import ROWS, effect_of, formatted_of
from tests.support.cases import random_prompt
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm

WORDS = [70, 90, 110]


def of_words(ids: list[int]) -> EmbeddingPrompt:
    return EmbeddingPrompt(tiny_lm().embed(torch.tensor(ids)).detach())


class TestEffect:
    @pytest.mark.parametrize("form", ["embedding", "kv"])
    def test_the_prompt_itself_recovers_all_and_another_one_less(self, form: str) -> None:
        prompt = random_prompt(tiny_lm(), form, 4, 1)
        itself, other = effect_of(prompt).recovered([prompt, random_prompt(tiny_lm(), form, 4, 2)])
        assert itself == pytest.approx(1, abs=1e-3) and other < 0.99

    def test_the_base_recovers_nothing(self) -> None:
        effect = effect_of(random_prompt(tiny_lm(), "embedding", 4, 1))
        assert effect.total > 0.01 and effect.share(effect.base_states) == pytest.approx(0, abs=1e-6)

    def test_it_is_the_divergence_of_plain_predictions(self) -> None:
        """An oracle: one row, Transformers' own logits of concatenated embeddings."""
        lm, prompt = tiny_lm(), random_prompt(tiny_lm(), "embedding", 4, 1)
        effect = effect_of(prompt)
        total, count = 0.0, 0
        follow = lm.encode(effect.formatted.layout.follow)
        for example in effect.examples:
            ids, base_ids = [*follow, *example.ids], lm.encode("Q:") + list(example.ids)
            assert follow == lm.encode("Q:")
            with torch.no_grad():
                embeds = torch.cat([prompt.tensors()["embeddings"], lm.embed(torch.tensor(ids))])[None]
                behind = lm.hf_model(inputs_embeds=embeds).logits[0, 4:].log_softmax(-1)
                without = lm.hf_model(torch.tensor([base_ids])).logits[0].log_softmax(-1)
            for place, learned in enumerate(example.mask):
                if learned:
                    at = len(follow) + place - 1
                    total += (behind[at].exp() * (behind[at] - without[at])).sum().item()
                    count += 1
        assert effect.total == pytest.approx(total / count, rel=1e-4)


class TestNearest:
    def test_a_prompt_of_words_is_read_as_these_words(self) -> None:
        found = nearest(effect_of(of_words(WORDS)))
        assert found is not None and [token.ids[0] for token in found.tokens] == WORDS
        assert found.recovered == pytest.approx(1, abs=1e-3)
        assert found.random_recovered < 0.9 and all(token.z > 3 for token in found.tokens)

    def test_noise_is_near_nothing(self) -> None:
        found = nearest(effect_of(random_prompt(tiny_lm(), "embedding", 6, 3)))
        assert found is not None and max(token.z for token in found.tokens) < 6 and found.recovered < 0.9

    def test_keys_and_values_have_no_words(self) -> None:
        assert nearest(effect_of(random_prompt(tiny_lm(), "kv", 3, 1))) is None


class TestWorth:
    def test_shapley_values_add_up_to_the_whole(self) -> None:
        worth = token_worth(effect_of(random_prompt(tiny_lm(), "kv", 4, 1)), orders=3)
        assert sum(worth.shapley) == pytest.approx(1, abs=1e-5)
        assert worth.deletion[0] == 1 and worth.deletion[-1] == 0
        assert worth.insertion[0] == 0 and worth.insertion[-1] == 1

    def test_the_one_working_token_has_all_the_worth(self) -> None:
        """Keys so small that they take no part, beside one virtual token that everything attends to."""
        lm = tiny_lm()
        noise = random_prompt(lm, "kv", 4, 1)
        assert isinstance(noise, KVPrompt)
        layers = []
        for kv in noise.layers:
            assert kv is not None
            keys, values = kv[0] * 0, kv[1] * 0
            values[:, 2] = kv[1][:, 2] * 6
            layers.append((keys, values))
        worth = token_worth(effect_of(KVPrompt(tuple(layers)), lm), orders=4)
        assert max(range(4), key=lambda i: worth.shapley[i]) == 2
        assert worth.leave_one_out[2] == max(worth.leave_one_out)


class TestLayers:
    @pytest.mark.parametrize("acting", [0, 1])
    def test_a_prompt_that_acts_in_one_layer_is_found_there(self, acting: int) -> None:
        """One token with loud values in that layer and none in the other, where it only takes a little attention."""
        lm = tiny_lm()
        loud = random_prompt(lm, "kv", 1, 1)
        assert isinstance(loud, KVPrompt)
        layers = []
        for number, kv in enumerate(loud.layers):
            assert kv is not None
            layers.append((kv[0], kv[1] * (8.0 if number == acting else 0.0)))
        bands = layer_bands(effect_of(KVPrompt(tuple(layers)), lm))
        assert len(bands) == 2
        assert bands[acting].lost > bands[1 - acting].lost

    @pytest.mark.parametrize("form", ["embedding", "kv"])
    def test_hidden_from_all_layers_is_no_prompt(self, form: str) -> None:
        """Positions aside: GPT-2's learned ones would move, RoPE's distances do not."""
        effect = effect_of(random_prompt(tiny_lm(), form, 3, 1))
        (band,) = layer_bands(effect, size=2)
        assert band.lost == pytest.approx(1, abs=1e-3)

    def test_recurrent_layers_are_refused(self) -> None:
        lm = odd_lm("granite4")
        found = inspect(lm, formatted_of(lm, random_prompt(lm, "embedding", 3, 1)), ROWS, only=["layers", "drift"])
        assert found.layers is None and "keys and values" in found.left_out["layers"] and found.drift


class TestDriftAndBehavior:
    def test_ranks_and_distances(self) -> None:
        assert effective_rank(torch.eye(5)) == pytest.approx(5, rel=1e-4)
        assert effective_rank(torch.ones(5, 8)) == pytest.approx(1, rel=1e-4)
        prompt = of_words(WORDS)
        found = drift(tiny_lm(), prompt, prompt.map(lambda tensor: tensor * 0.5))
        assert found.distances == pytest.approx([1.0] * 3) and found.norm_quantiles is not None
        assert all(found.cosines[i][i] == pytest.approx(1, abs=1e-5) for i in range(3))

    def test_changes_are_those_of_the_predictions(self) -> None:
        effect = effect_of(random_prompt(tiny_lm(), "kv", 3, 1))
        found = behavior(effect)
        lm, first = tiny_lm(), effect.first_places()
        assert len(first) == len(ROWS)
        with torch.no_grad():
            behind, without = (
                lm.logits(states[first]).log_softmax(-1) for states in (effect.states, effect.base_states)
            )
        listed = torch.maximum(behind.exp().mean(0), without.exp().mean(0)) >= 1e-4
        change = (behind - without).mean(0)[listed]
        assert found.promoted[0].change == pytest.approx(change.max().item(), abs=1e-5)
        assert found.demoted[0].change == pytest.approx(change.min().item(), abs=1e-5)
        assert found.entropy == pytest.approx(-(behind.exp() * behind).sum(-1).mean().item(), rel=1e-5)

    def test_random_controls_have_the_same_norms(self) -> None:
        prompt = random_prompt(tiny_lm(), "kv", 3, 1)
        control = random_like(prompt)
        for name, tensor in prompt.tensors().items():
            torch.testing.assert_close(control.tensors()[name].norm(dim=-1), tensor.norm(dim=-1))


class TestInspect:
    def test_all_sections_as_json_without_rows(self) -> None:
        lm = tiny_lm()
        seen: list[str] = []
        found = inspect(lm, formatted_of(lm, random_prompt(lm, "embedding", 3, 1)), on_section=seen.append)
        assert (
            seen == [name for name in READINGS if name != "leak"] and set(found.left_out) == {"leak"} and found.rows > 0
        )
        assert set(READINGS) <= set(found.to_dict())

    def test_unknown_sections_are_named(self) -> None:
        lm = tiny_lm()
        with pytest.raises(ConfigError, match="no such section"):
            inspect(lm, formatted_of(lm, random_prompt(lm, "kv", 3, 1)), only=["nearest", "soul"])
