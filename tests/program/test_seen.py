"""Products of truth values, of which those that are all true, or an identity, are taken in another way."""

from itertools import product as pairs

import numpy as np
import pytest

from pixelcnn_fast.program.receptive_field.seen import product

MATRICES = {
    "all true": np.ones((3, 3), bool),
    "an identity": np.eye(3, dtype=bool),
    "a permutation": np.eye(3, dtype=bool)[[1, 2, 0]],
    "some rows empty": np.array([[0, 0, 0], [1, 0, 1], [0, 0, 0]], bool),
    "empty": np.zeros((3, 3), bool),
    "wide": np.array([[1, 0, 0], [0, 1, 0]], bool).T,
}


@pytest.mark.parametrize(("first", "second"), [*pairs(MATRICES, MATRICES)])
def test_products(first: str, second: str) -> None:
    a, b = MATRICES[first], MATRICES[second]
    a = a.T if a.shape[1] != len(b) else a
    expected = (a[:, :, None] & b[None]).any(1)
    assert np.array_equal(product(a, b), expected)
