"""What happens at one pixel, where values may be known: ``Job.draw_pixel``."""

import pytest
import torch
from torch import Tensor

from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads import Bernoulli, Categorical, Head, SamplingOptions
from pixelcnn_fast.runtimes.job import Job, Runtime
from tests.copies import Copy, pretended_devices
from tests.heads.test_own_head import Pair

N, C, LEVELS = 3, 4, 5


def job(known: Tensor | None, channels: int = C, uniforms: int = C) -> Job:
    generator = torch.Generator().manual_seed(0)
    return Job(
        values=torch.full((N, channels, 1, 1), 2, dtype=torch.int32),
        noise=torch.rand(N, uniforms, 1, 1, dtype=torch.float64, generator=generator),
        known=known,
        log_probability=torch.zeros(N, channels, 1, 1, dtype=torch.float64),
    )


def logits(distributions: int = C) -> Tensor:
    return torch.randn(N, distributions, LEVELS, generator=torch.Generator().manual_seed(1))


def test_known_values_stay_and_have_no_log_probability() -> None:
    known = torch.zeros(N, C, 1, 1, dtype=torch.bool)
    known[0], known[1, 2] = True, True
    partly, free = job(known), job(None)
    for each in (partly, free):
        each.draw_pixel(0, 0, 0, 1, logits(), Categorical(LEVELS))
    assert (partly.values[known] == 2).all() and (free.values != 2).any()
    assert torch.equal(partly.values[~known], free.values[~known])
    assert partly.log_probability is not None and free.log_probability is not None
    assert (partly.log_probability[known] == 0).all() and (free.log_probability < 0).all()
    assert torch.equal(partly.log_probability[~known], free.log_probability[~known])


def test_parameters_of_known_values_need_not_be_finite() -> None:
    known = torch.zeros(N, C, 1, 1, dtype=torch.bool)
    known[1] = True
    bad = logits()
    bad[1] = float("nan")
    job(known).draw_pixel(0, 0, 0, 1, bad, Categorical(LEVELS))
    with pytest.raises(NonFiniteLogits):
        job(None).draw_pixel(0, 0, 0, 1, bad, Categorical(LEVELS))


@pytest.mark.parametrize("draw", [0, 1])
def test_the_channel_without_finite_parameters_is_named(draw: int) -> None:
    """Here each of two draws gives two image channels."""
    bad = logits(2)
    bad[2, 1, 3] = float("inf")
    with pytest.raises(NonFiniteLogits) as caught:
        job(None).draw_pixel(0, 0, draw, 2, bad, Categorical(LEVELS))
    assert caught.value.location == (2, 2 * draw + 1, 0, 0)


@pytest.mark.parametrize("known", [None, torch.tensor([True, False] * 2).view(C, 1, 1).expand(N, C, 1, 1)])
def test_the_first_channel_of_a_joint_distribution_is_named(known: Tensor | None) -> None:
    """Two draws, each of one distribution over two channels, of which one may be known."""
    parameters = torch.full((N, 1, 5), float("nan"))
    with pytest.raises(NonFiniteLogits) as caught:
        job(known, uniforms=6).draw_pixel(0, 0, 1, 2, parameters, Pair())
    assert caught.value.location == (0, 2, 0, 0)


class Broadcasting(Categorical):
    def draw(self, parameters: Tensor, *_: object) -> Tensor:
        return torch.zeros(1, parameters.shape[1], 1)


class Reducing(Categorical):
    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        return super().log_probability(parameters, values).sum(1)


@pytest.mark.parametrize("head", [Broadcasting(LEVELS), Reducing(LEVELS)], ids=["draw", "log_probability"])
def test_a_head_that_gives_another_shape_is_refused(head: Head) -> None:
    with pytest.raises(ValueError, match=r"gave \[.*expected a number for each value: \[3, 4, 1\]"):
        job(None).draw_pixel(0, 0, 0, 1, logits(), head)


def test_options_that_a_head_does_not_heed_are_refused() -> None:
    Bernoulli().check_options(SamplingOptions(top_k=1, temperature=0.5))
    Pair().check_options(SamplingOptions(temperature=0.5))
    with pytest.raises(ValueError, match="top_k is not used by Pair"):
        Pair().check_options(SamplingOptions(top_k=1))


def test_noise_from_another_device_is_brought_to_the_values() -> None:
    """All at once, since what draws in Python reads it pixel by pixel."""

    class Remembering(Runtime):
        def run(self, job: Job) -> None:
            assert job.noise.device == job.values.device

    with pretended_devices() as copies:
        jobs = [job(None), job(None)]
        for each in jobs:
            each.noise = each.noise.cuda()
        done = list(Remembering().run_each(jobs))
    assert done == jobs and copies.made[-2:] == 2 * [Copy("cuda", "cpu", N * C, waits=True)]
