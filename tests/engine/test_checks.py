"""Models that no engine of paged keys and values can run are refused by name, with the true reason."""

from __future__ import annotations

import pytest

from softprompt.engine.checks import check_supported
from softprompt.errors import UnsupportedModelError
from tests.support.odd_models import odd_lm
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("granite4", "recurrent or convolution states"),
        ("falcon_h1", "recurrent or convolution states"),  # its layers have keys and values, too
        ("mamba", "recurrent or convolution states"),
        ("bloom", "its masks depend on places"),
        ("llama4", "its masks depend on places"),
        ("deepseek_v3", "its cache holds latents"),
        ("gemma4", "of other layers"),
    ],
)
def test_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"(?s){reason}.*softprompt generate runs this model"):
        check_supported(odd_lm(family))


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_a_head_of_its_own_is_no_reason(family: str) -> None:
    check_supported(odd_lm(family))
    check_supported(tiny_lm("llama"))
