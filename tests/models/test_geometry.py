"""What identifies a base model: shape and sampled weights, whatever dtype it was loaded in."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.models.geometry import Geometry, LayerShape
from softprompt.models.measure import measure_geometry
from tests.support.artifacts import PLAIN, geometries, geometry
from tests.support.tiny import FAMILIES, VOCAB, tiny_model, tiny_seq2seq_model

OTHER: dict[str, Any] = {
    "architecture": "gpt2",
    "hidden": 7,
    "layers": (LayerShape(2, 4, 3), None, LayerShape(1, 2, 3)),
    "windows": (None, 17, None),
    "sites": ("encoder", "decoder", "cross"),
}


@settings(deadline=None, max_examples=100)
@given(geometries())
def test_round_trip_through_json(one: Geometry) -> None:
    again = Geometry.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert again.fingerprint == one.fingerprint
    assert again.differs(one) is None


@pytest.mark.parametrize("name", OTHER)
def test_another_shape_is_named(name: str) -> None:
    other = geometry(**{name: OTHER[name]})
    for mine, theirs in ((PLAIN, other), (other, PLAIN)):
        reason = mine.differs(theirs)
        assert reason is not None
        assert reason.startswith(f"{name} is ")
    assert str(OTHER[name])[:50] in (PLAIN.differs(other) or "")
    assert PLAIN.fingerprint != other.fingerprint


def test_a_reason_stays_readable_for_many_layers() -> None:
    many = geometry(layers=(LayerShape(2, 4, 3),) * 80)
    assert len(PLAIN.differs(many) or "") < 200


def test_name_and_context_length_do_not_count() -> None:
    other = geometry(base="another name for it", max_positions=99)
    assert PLAIN.differs(other) is None
    assert PLAIN.fingerprint == geometry(base="another name for it").fingerprint


def test_samples_of_other_lengths_are_other_weights() -> None:
    assert PLAIN.differs(geometry(sample=PLAIN.sample[:-1])) is not None


@settings(deadline=None, max_examples=100)
@given(geometries(), st.sampled_from([torch.bfloat16, torch.float16]))
def test_rounding_the_weights_changes_nothing(one: Geometry, dtype: torch.dtype) -> None:
    rounded = dataclasses.replace(one, sample=tuple(torch.tensor(one.sample).to(dtype).double().tolist()))
    assert one.differs(rounded) is None
    assert rounded.differs(one) is None


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=8),
    st.integers(0, 7),
    st.sampled_from([-1.0, 1.0]),
    st.floats(0.05, 1.0),
)
def test_one_other_weight_is_another_model(sample: list[float], at: int, sign: float, by: float) -> None:
    scale = max(1e-3, *map(abs, sample))
    changed = list(sample)
    changed[at % len(sample)] += sign * by * scale
    one, other = geometry(sample=tuple(sample)), geometry(sample=tuple(changed))
    assert one.differs(other) == other.differs(one) == "same architecture and shape, but other weights"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_itself_in_every_dtype(family: str) -> None:
    plain = measure_geometry(tiny_model(family), "a")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = copy.deepcopy(tiny_model(family))
        torch.nn.Module.to(model, dtype)
        cast = measure_geometry(model, "b")
        assert plain.differs(cast) is None
        assert cast.differs(plain) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_another_model_of_one_shape_is_told_apart(family: str) -> None:
    one, other = (measure_geometry(tiny_model(family, seed), "a") for seed in (0, 1))
    assert "other weights" in (one.differs(other) or "")
    assert one.fingerprint != other.fingerprint


def test_no_two_families_are_the_same() -> None:
    found = [measure_geometry(tiny_model(family), "a") for family in FAMILIES]
    for i, one in enumerate(found):
        assert [j for j, other in enumerate(found) if one.differs(other) is None] == [i]


def test_the_fingerprint_is_short_hex() -> None:
    assert len(PLAIN.fingerprint) == 16
    int(PLAIN.fingerprint, 16)


def test_the_fingerprint_knows_adapters_and_no_rounding_of_them() -> None:
    one, rounded, other = (geometry(adapted=(("a", 1, x),)) for x in (0.5, 0.5000001, 0.25))
    assert one.fingerprint == rounded.fingerprint != other.fingerprint
    assert PLAIN.fingerprint not in (one.fingerprint, other.fingerprint)


def test_query_heads_are_no_part_of_a_card() -> None:
    """Cards and fingerprints are those of releases that did not know them."""
    loaded = dataclasses.replace(PLAIN, n_heads=4)
    assert loaded.to_dict() == PLAIN.to_dict() and "n_heads" not in loaded.to_dict()
    assert loaded.fingerprint == PLAIN.fingerprint and loaded.differs(PLAIN) is None
    assert Geometry.from_dict(loaded.to_dict()) == loaded
    assert measure_geometry(tiny_model("llama"), "a").n_heads == 4


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(name)


def _with(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update({name: value})


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"no {name}": _without(name) for name in PLAIN.to_dict()},
    "sites of other layers": _with("sites", ["encoder"]),
    "site as number": _with("sites", [1, 2, 3]),
    "matrices as text": _with("matrices", ["x"]),
    "another key": _with("weights", 1),
    "hidden as text": _with("hidden", "6"),
    "hidden as truth": _with("hidden", True),
    "heads as text": _with("n_heads", "4"),
    "base as number": _with("base", 3),
    "layers as number": _with("layers", 3),
    "layer without values": _with("layers", [{"kv_heads": 1, "key_dim": 1}]),
    "layer with a text": _with("layers", [{"kv_heads": "1", "key_dim": 1, "value_dim": 1}]),
    "window as text": _with("windows", ["16"]),
    "sample as text": _with("sample", "abc"),
    "adapted as number": _with("adapted", 3),
    "adapted without a value": _with("adapted", [["a", 1]]),
    "adapted by text": _with("adapted", [["a", "1", 0.5]]),
    "adapted to text": _with("adapted", [["a", 1, "x"]]),
    "sample beyond float": _with("sample", [10**400]),
}


@pytest.mark.parametrize("change", BROKEN)
def test_other_data_is_refused(change: str) -> None:
    data = json.loads(json.dumps(PLAIN.to_dict()))
    BROKEN[change](data)
    with pytest.raises((KeyError, TypeError)):
        Geometry.from_dict(data)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sibling_with_the_same_embeddings_is_told_apart(family: str) -> None:
    """A merged LoRA leaves the embeddings as they were."""
    plain, model = measure_geometry(tiny_model(family), "a"), copy.deepcopy(tiny_model(family))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.base_model.named_parameters():
            if weight.ndim == 2 and not any(table in name for table in ("embed", "wte", "wpe")):
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.01)
    assert measure_geometry(model, "b").sample == plain.sample
    assert "other weights" in (measure_geometry(model, "b").differs(plain) or "")


def test_a_quantised_model_is_compared_by_its_embeddings() -> None:
    quantised = geometry(matrices=())
    assert PLAIN.differs(quantised) is quantised.differs(PLAIN) is None
    assert quantised.differs(geometry(sample=(0.5, -0.25, 0.0, 1.4))) is not None


@pytest.mark.parametrize("rows", [VOCAB - 30, VOCAB - 1, VOCAB + 1, VOCAB + 20, 3 * VOCAB])
@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), lambda: tiny_model("gpt2"), lambda: t5_with_own_head()])
def test_a_table_of_another_length_is_the_same_model(make: Callable[[], Any], rows: int) -> None:
    """Padded to a round number, or with tokens added; the output embedding of T5 is one of the sampled matrices."""
    plain, other = make(), copy.deepcopy(make())
    other.resize_token_embeddings(rows, mean_resizing=False)
    one, two = measure_geometry(plain, "a"), measure_geometry(other, "b")
    cards = [Geometry.from_dict(geometry.to_dict()) for geometry in (one, two)]
    assert one.differs(cards[1]) is two.differs(cards[0]) is cards[1].differs(one) is one.differs(two) is None


@pytest.mark.parametrize("rows", [VOCAB - 1, VOCAB + 20])
@pytest.mark.parametrize("where", ["table", "layers"])
def test_other_weights_beside_another_length_are_another_model(where: str, rows: int) -> None:
    """Among the rows that both have, and among the layers."""
    other = copy.deepcopy(tiny_model("llama"))
    other.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        parts: Any = other
        changed = parts.get_input_embeddings().weight if where == "table" else parts.model.layers[0].mlp.up_proj.weight
        changed[: VOCAB // 2] += 0.1
    one, two = measure_geometry(tiny_model("llama"), "a"), measure_geometry(other, "b")
    card = Geometry.from_dict(one.to_dict())
    assert "differ" in (two.differs(card) or "") and two.differs(card) == two.differs(one)


def test_two_cards_of_other_lengths_are_told_by_their_matrices() -> None:
    """Neither lists the rows that the other does."""
    assert PLAIN.differs(geometry(vocab=301, sample=(9.0,))) is None
    assert "vocab is 300" in (PLAIN.differs(geometry(vocab=301, matrices=(0.5, -1.0))) or "")
    assert "vocab is 300" in (PLAIN.differs(geometry(vocab=301, matrices=())) or "")


def test_a_table_of_hardly_a_row_in_common_proves_nothing() -> None:
    one = measure_geometry(tiny_model("llama"), "a")
    card = Geometry.from_dict(one.to_dict() | {"vocab": 100 * VOCAB})
    assert one.differs(card) == f"vocab is {VOCAB}, the prompt's base has {100 * VOCAB}"


def test_a_measured_geometry_does_not_keep_its_model_alive() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    measured, alive = measure_geometry(model, "a"), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert measured.differs(measure_geometry(tiny_model("llama"), "b")) is None


def t5_with_own_head() -> Any:
    return tiny_seq2seq_model("t5-1.1")
