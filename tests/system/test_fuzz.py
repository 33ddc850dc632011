"""A fixed few of the random networks; ``make fuzz N=1000`` tries as many as you want."""

import pytest

from tests.system import fuzz
from tests.tiers import few

SEEDS = range(70)


@pytest.mark.parametrize("seed", few(SEEDS, 10))
def test_all_runtimes_agree(seed):
    fuzz.check(seed)


def test_the_seeds_reach_every_kind_of_layer():
    kinds = {layer.kind for seed in SEEDS for layer in fuzz.Fuzzed(seed).layers}
    assert kinds == {*fuzz.KINDS, *fuzz.MIXING_KINDS, *fuzz.STYLES, "cells", "twice", "attends"}
