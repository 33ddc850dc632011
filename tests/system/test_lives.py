"""A fixed few of the random lives; ``make fuzz N=1000`` tries as many as you want."""

import pytest

from tests.system import lives
from tests.tiers import few

SEEDS = range(20)


@pytest.mark.parametrize("seed", few(SEEDS, 4))
def test_a_sampler_follows_its_model_or_says_that_it_does_not(seed: int) -> None:
    lives.check(seed)


@pytest.mark.parametrize("seed", few(SEEDS, len(lives.WAYS)))
def test_whatever_a_model_holds_counts(seed: int) -> None:
    lives.held(seed)
