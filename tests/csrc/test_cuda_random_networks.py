"""Random networks on the CUDA kernels, run on the host: distributions as exact as the model's, whatever the batch."""

from __future__ import annotations

import warnings

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.program.conditions import Given
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.test_cuda_runtime import CLUSTERS, MULTIPROCESSORS, needs_compiler, runtime
from tests.system.fuzz import Fuzzed, distance_from_exact
from tests.tiers import thorough

pytestmark = [needs_compiler, thorough]
IMAGES = 3


# From 1062 on, networks that scan rows before and after their pixels.
@pytest.mark.parametrize("seed", [100, 102, 105, 107, 109, 110, 112, 1062, 1159, 1190, 1202])
def test_random_networks(seed):
    model = Fuzzed(seed).float()
    model.dtype = torch.float32
    given = model.given(IMAGES)
    given = given._replace(condition=given.condition.float())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(model.levels, (IMAGES, *model.shape), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some make nothing of their labels, or condition
        shape = tuple(given.condition.shape[1:])
        sampler = Sampler(model, model.shape, head=model.head, conditional=True, condition_shape=shape)
    plain = sampler.logits(images, given.labels, condition=given.condition, runtime="reference")
    theirs = distance_from_exact(model, images, given, plain)
    found = []
    for blocks in MULTIPROCESSORS | CLUSTERS:
        logits = torch.full((*images.shape, model.levels), float("nan"))
        runtime(sampler, blocks).run(
            Job(
                values=images.int(),
                noise=torch.zeros(images.shape, dtype=torch.float64),
                given=Given(given.labels, given.condition),
                known=torch.ones(images.shape, dtype=torch.bool),
                parameters=logits,
            )
        )
        own = distance_from_exact(model, images, given, logits)
        assert own <= 4 * theirs + 16 * torch.finfo(torch.float32).eps, model.name
        found.append(logits)
    assert all(torch.equal(logits, found[0]) for logits in found), "the batch changes no bit"
