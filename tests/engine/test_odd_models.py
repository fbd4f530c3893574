"""Models whose attention or cache is not that of a Llama: served exactly, or refused with the true reason."""

from __future__ import annotations

import asyncio
import re

import pytest

from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import UnsupportedModelError
from softprompt.inference.sampling import Sampling
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from tests.support.cases import mixed_prefixes, text_ids
from tests.support.engines import NAMES, generated, ids_of, job, running
from tests.support.odd_models import SERVED_CONFIGS, UNSERVED_CONFIGS, odd_lm


@pytest.mark.parametrize("family", SERVED_CONFIGS)
def test_a_mixed_batch(family: str) -> None:
    """Learned sinks, heads of different sizes and numbers in one model, layers that pass no arguments on."""
    lm = odd_lm(family)
    rows = [text_ids(1 + 5 * i % 17, i) for i in range(12)]

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm) as engine:
            jobs = [job(str(i), NAMES[i % 6], row, Sampling(20)) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    prefixes = mixed_prefixes(lm)
    for i, answer in enumerate(asyncio.run(run())):
        assert answer == generated(lm, prefixes[i % 6], rows[i], Sampling(20)), f"row {i}"


@pytest.mark.parametrize("family", UNSERVED_CONFIGS)
def test_attention_of_its_own(family: str) -> None:
    """It would see nothing of other rows' borders, nor of the cache; the refusal names that, and no percentage."""

    lm = odd_lm(family)
    verify(lm)
    if PrefixRuntime.of(lm).can_switch_attention:
        pytest.skip("inside the interface since Transformers 5.24")

    async def run() -> None:
        engine = TransformersEngine(lm)
        with pytest.raises(UnsupportedModelError) as caught:
            await engine.start()
        assert re.search("do not use Transformers' attention interface", str(caught.value.got))

    asyncio.run(run())
