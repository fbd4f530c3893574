"""Readings of soft prompts with a planted truth."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch

from softprompt.data.tokenizer import decode
from softprompt.editing.compose import select
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.inspection.behavior import behavior
from softprompt.inspection.controls import random_like
from softprompt.inspection.drift import drift, effective_rank
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.inspection import READINGS, inspect
from softprompt.inspection.layers import head_losses, layer_bands
from softprompt.inspection.lens import lens
from softprompt.inspection.natural import natural_tokens
from softprompt.inspection.nearest import nearest
from softprompt.inspection.worth import _Values, token_worth  # pyright: ignore[reportPrivateUsage]
from softprompt.prefix.kv import Prefix
from softprompt.prefix.layer_states import normed_layer_states
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.inspection.planted import ROWS, effect_of, formatted_of
from tests.support.cases import random_prompt
from tests.support.odd_models import odd_lm
from tests.support.plain_ablation import hide_virtual_tokens
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

    @pytest.mark.parametrize("form", ["embedding", "kv"])
    def test_prompts_of_several_lengths_together_are_each_alone(
        self, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one pass, and in many; their divergences are the plain ones."""
        lm = tiny_lm()
        effect = effect_of(random_prompt(lm, form, 4, 1))
        prompts = [random_prompt(lm, form, size, seed) for seed, size in enumerate((3, 9, 1, 6, 3))]
        alone = [effect.recovered([prompt])[0] for prompt in prompts]
        plain = [1 - effect.divergence(states) / effect.total for states in effect.states_behind(prompts)]
        assert effect.recovered(prompts) == pytest.approx(alone, abs=1e-5)
        assert effect.recovered(prompts) == pytest.approx(plain, abs=1e-5)
        for name, value in (("_BATCH_TOKENS", 40), ("_LOGITS", 3)):
            monkeypatch.setattr(f"softprompt.inspection.effect.{name}", value)
        assert effect.recovered(prompts) == pytest.approx(alone, abs=1e-5)

    def test_rows_add_up_to_the_whole(self) -> None:
        effect, other = (effect_of(random_prompt(tiny_lm(), "kv", 4, seed)) for seed in (1, 2))
        parts = effect.by_row()
        assert len(parts) == len(ROWS) and sum(part for part, _ in parts) == pytest.approx(1)
        share = sum(part * row.recovered([other.prompt])[0] for part, row in parts)
        assert share == pytest.approx(effect.recovered([other.prompt])[0], abs=1e-5)

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
                without = lm.hf_model(torch.tensor([base_ids], device=lm.device)).logits[0].log_softmax(-1)
            for place, learned in enumerate(example.mask):
                if learned:
                    at = len(follow) + place - 1
                    total += (behind[at].exp() * (behind[at] - without[at])).sum().item()
                    count += 1
        assert effect.total == pytest.approx(total / count, rel=1e-4)


class TestNearest:
    def test_a_prompt_of_words_is_read_as_these_words(self) -> None:
        found = nearest(effect_of(of_words(WORDS)))
        assert [token.ids[0] for token in found.tokens] == WORDS
        assert found.recovered == pytest.approx(1, abs=1e-3)
        assert found.random_recovered < 0.9 and all(token.z > 3 for token in found.tokens)

    def test_noise_is_near_nothing(self) -> None:
        found = nearest(effect_of(random_prompt(tiny_lm(), "embedding", 6, 3)))
        assert max(token.z for token in found.tokens) < 6 and found.recovered < 0.9

    def test_keys_and_values_of_a_text_are_read_as_its_tokens(self) -> None:
        """Taken out of the neutral texts and moved to the front, they are found again and recover everything."""
        lm = tiny_lm()
        natural = natural_tokens(lm)
        places = [natural.first + 3, natural.first + 9]
        planted = select(natural.prompt, places, lm)
        found = nearest(effect_of(planted))
        assert [token.ids[0] for token in found.tokens] == [natural.ids[place] for place in places]
        assert found.recovered == pytest.approx(1, abs=1e-3) and found.random_recovered < 0.9
        quantiles = drift(lm, planted).norm_quantiles
        assert quantiles is not None and all(0 <= quantile < 1 for quantile in quantiles)


class TestLens:
    def test_the_last_layer_is_the_models_own_prediction(self) -> None:
        lm, prompt = tiny_lm(), of_words(WORDS)
        read = lens(effect_of(prompt))
        with torch.no_grad():
            logits = lm.hf_model(inputs_embeds=prompt.tensors()["embeddings"][None]).logits[0]
        assert read[-1].layer == 1
        assert read[-1].tokens == tuple(decode([i], lm.tokenizer) for i in logits.argmax(-1).tolist())
        assert read[-1].probabilities == pytest.approx(logits.softmax(-1).amax(-1).tolist(), rel=1e-4)

    @pytest.mark.parametrize("family", ["gpt2", "gemma2"])
    def test_the_norm_of_other_families_is_found(self, family: str) -> None:
        lm = tiny_lm(family)
        read = normed_layer_states(lm, Prefix(lead=(5, 6, 7)))
        with torch.no_grad():
            final = lm.backbone.run(ids_BL=torch.tensor([[5, 6, 7]]))[0]
        torch.testing.assert_close(read[-1], final)

    def test_keys_and_values_have_no_hidden_states(self) -> None:
        with pytest.raises(UnsupportedModelError, match="hidden states"):
            lens(effect_of(random_prompt(tiny_lm(), "kv", 3, 1)))


class RememberedValues(_Values):
    """Measured once for all draws."""

    tables: ClassVar[dict[tuple[str, ...], dict[frozenset[int], float]]] = {}

    def __init__(self, effect: PromptEffect) -> None:
        super().__init__(effect)
        rows = tuple(record.where for record in effect.records)
        self.known = self.tables.setdefault(rows, self.known)


class TestWorth:
    def test_shapley_values_add_up_to_the_whole(self) -> None:
        worth = token_worth(effect_of(random_prompt(tiny_lm(), "kv", 4, 1)), orders=3)
        assert sum(worth.shapley) == pytest.approx(1, abs=1e-5) and worth.orders == 4 * len(ROWS)
        assert worth.random_insertion[-1] == pytest.approx(1, abs=1e-5) and worth.random_insertion[0] == 0
        assert worth.random_deletion == pytest.approx(worth.random_insertion[::-1])
        assert worth.deletion[0] == 1 and worth.deletion[-1] == 0
        assert worth.insertion[0] == 0 and worth.insertion[-1] == 1

    def test_many_orders_come_near_the_mean_of_all(self) -> None:
        """An oracle: all 24 orders of four tokens. The errors that are printed cover the differences."""
        effect = effect_of(random_prompt(tiny_lm(), "kv", 4, 1))
        worth = token_worth(effect, orders=32)
        sets = [kept for size in range(1, 5) for kept in itertools.combinations(range(4), size)]
        shares = effect.recovered([select(effect.prompt, kept, effect.lm) for kept in sets])
        value = {(): 0.0} | dict(zip(sets, shares, strict=True))
        exact = torch.zeros(4)
        for order in itertools.permutations(range(4)):
            for place, token in enumerate(order):
                gain = value[tuple(sorted(order[: place + 1]))] - value[tuple(sorted(order[:place]))]
                exact[token] += gain / 24
        for token in range(4):
            assert abs(worth.shapley[token] - exact[token].item()) < 4 * worth.shapley_error[token] + 1e-4
        assert max(worth.shapley_error) < 0.1

    @pytest.mark.parametrize("orders", [1, 2, 4])
    def test_errors_are_those_of_repeated_draws(self, orders: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """One order or pair a row: read from the spread over rows, so too large; two pairs: that of draws."""
        monkeypatch.setattr("softprompt.inspection.worth._Values", RememberedValues)
        effect = effect_of(random_prompt(tiny_lm(), "kv", 4, 1))
        drawn = [token_worth(effect, orders=orders, seed=seed) for seed in range(24)]
        spread_P = torch.tensor([worth.shapley for worth in drawn]).std(0)
        printed_P = torch.tensor([worth.shapley_error for worth in drawn]).square().mean(0).sqrt()
        assert (printed_P > 0.6 * spread_P - 1e-4).all()
        if orders > 2:
            assert (printed_P < 1.6 * spread_P + 1e-4).all()

    def test_a_single_token_has_all_the_worth(self) -> None:
        worth = token_worth(effect_of(random_prompt(tiny_lm(), "embedding", 1, 1)))
        assert worth.shapley == pytest.approx((1.0,)) and worth.leave_one_out == (1.0,) and worth.sizes == (0, 1)

    def test_curves_of_long_prompts_are_measured_at_some_sizes(self) -> None:
        effect = effect_of(random_prompt(tiny_lm(), "kv", 20, 1))
        worth = token_worth(effect, orders=1)
        assert worth.orders == len(ROWS) and {0, 10, 20} <= set(worth.sizes) and len(worth.sizes) < 13
        best = sorted(range(20), key=lambda i: -worth.shapley[i])
        for size, inserted, deleted in zip(worth.sizes[1:-1], worth.insertion[1:-1], worth.deletion[1:-1], strict=True):
            kept = [select(effect.prompt, sorted(part), effect.lm) for part in (best[:size], best[size:])]
            assert [inserted, deleted] == pytest.approx(effect.recovered(kept), abs=1e-4)
        middle = worth.sizes.index(10)
        assert worth.half == (worth.insertion[middle], worth.random_insertion[middle])

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

    def test_all_heads_of_a_layer_together_are_the_layer(self) -> None:
        effect = effect_of(random_prompt(tiny_lm(), "kv", 3, 1))
        with hide_virtual_tokens(effect.lm, [1], range(3), range(effect.lm.geometry.n_heads)):
            by_heads = effect.recovered([effect.prompt])[0]
        bands = layer_bands(effect)
        assert 1 - by_heads == pytest.approx(bands[1].lost, abs=1e-5)
        heads = head_losses(effect, bands)
        assert [(head.layer, head.head) for head in heads] == [
            (layer, head) for layer in (0, 1) for head in range(effect.lm.geometry.n_heads)
        ]

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
        assert {name for name in seen if " " not in name} == set(READINGS) - {"leak"} and found.rows > 0
        assert set(found.left_out) == {"leak", "likeness"}
        assert set(READINGS) <= set(found.to_dict())

    def test_controls_are_read_beside_it(self) -> None:
        """Started from itself, the start recovers everything; a random prompt does not."""
        lm = tiny_lm()
        prompt = random_prompt(lm, "kv", 3, 1)
        found = inspect(lm, formatted_of(lm, prompt), ROWS, only=["drift", "layers", "behavior"], start=prompt)
        assert found.recovered == 1 and set(found.controls) == {"start", "random"}
        start, random = found.controls["start"], found.controls["random"]
        assert start.recovered == pytest.approx(1, abs=1e-3) and random.recovered < 0.9
        assert start.layers == found.layers and random.layers and random.drift and start.behavior
        assert random.effect == pytest.approx(effect_of(random_like(prompt)).total, rel=1e-5)

    def test_ctrl_c_keeps_the_sections_that_are_done(self) -> None:
        lm = tiny_lm()
        formatted = formatted_of(lm, random_prompt(lm, "kv", 3, 1))

        def press(section: str) -> None:
            if section == "worth":
                raise KeyboardInterrupt

        found = inspect(lm, formatted, ROWS, keep_on_interrupt=True, on_section=press)
        assert found.drift and found.nearest and found.worth is None
        assert found.left_out["worth"] == found.left_out["likeness"] == "interrupted" and not found.controls
        with pytest.raises(KeyboardInterrupt):
            inspect(lm, formatted, ROWS, on_section=press)

    def test_unknown_sections_are_named(self) -> None:
        lm = tiny_lm()
        with pytest.raises(ConfigError, match="no such section"):
            inspect(lm, formatted_of(lm, random_prompt(lm, "kv", 3, 1)), only=["nearest", "soul"])
