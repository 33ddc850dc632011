"""The noise of an image depends on the seed and its number, and never changes."""

import numpy as np
import pytest
import torch

from pixelcnn_fast.noise import noise_of


def test_it_is_that_of_numpys_generator() -> None:
    for seed, k in ((0, 0), (7, 5), (2**128 - 1, 2**64)):
        expected = np.random.Generator(np.random.Philox(key=seed, counter=k << 128)).random((2, 3, 4))
        assert np.array_equal(noise_of(seed, range(k, k + 1), (2, 3, 4))[0].numpy(), expected)


def test_it_stays_the_same_for_good() -> None:
    found = noise_of(1, range(2, 4), (2,))
    assert found.dtype == torch.float64
    assert (found * 2**53).long().tolist() == [
        [2431714827741334, 7314196612716597],
        [35772417830800, 5893265268575202],
    ]


def test_an_image_has_the_same_noise_among_any_others() -> None:
    among = noise_of(3, range(10, 20), (2, 5))
    assert torch.equal(noise_of(3, range(14, 17), (2, 5)), among[4:7])
    assert len(among.unique()) == among.numel()  # and no other has it
    assert not torch.equal(noise_of(4, range(10, 20), (2, 5)), among)


def test_it_is_uniform() -> None:
    u = noise_of(0, range(1000), (100,))
    assert float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u, 20, 0, 1)
    assert (counts - 5000).abs().max() < 5 * 5000**0.5


def test_no_images() -> None:
    assert noise_of(0, range(0), (1, 2, 2)).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("seed", [-1, 2**128])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        noise_of(seed, range(0), (1,))


def test_a_seed_that_is_no_integer_is_refused() -> None:
    assert torch.equal(noise_of(np.int64(3), range(2), (1,)), noise_of(3, range(2), (1,)))  # type: ignore[arg-type]  # it acts as one
    with pytest.raises(TypeError):
        noise_of(1.5, range(0), (1,))  # type: ignore[arg-type]  # on purpose
