"""A fixed few of the random networks; ``make fuzz N=1000`` tries as many as you want."""

import pytest

from tests.system import fuzz, fuzzed_layers
from tests.tiers import few

SEEDS = range(70)


@pytest.mark.parametrize("seed", few(SEEDS, 10))
def test_all_runtimes_agree(seed):
    fuzz.check(seed)


def test_the_seeds_reach_every_kind_of_layer():
    of = fuzzed_layers
    kinds = {layer.kind for seed in SEEDS for layer in fuzz.Fuzzed(seed).layers}
    assert kinds == {*of.KINDS, *of.MIXING_KINDS, *of.STYLES, "cells", "twice", "attends"}
