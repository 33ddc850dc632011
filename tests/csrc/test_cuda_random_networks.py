"""Random networks on the CUDA kernels, run on the host: distributions as exact as the model's, whatever the batch."""

import warnings

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.test_cuda_runtime import CLUSTERS, MULTIPROCESSORS, needs_compiler, runtime
from tests.system.fuzz import Fuzzed, distance_from_exact
from tests.tiers import tiered

pytestmark = needs_compiler
IMAGES = 3
# From 1062 on, networks that scan rows before and after their pixels.
SEEDS = [100, 102, 105, 107, 109, 110, 136, 1062, 1159, 1190]
QUICK = [(seed, ("some", "clusters")) for seed in (136, 1062)]  # they take most branches of the planner


@pytest.mark.parametrize(
    ("seed", "shapes"),
    tiered([*QUICK, *((seed, (*MULTIPROCESSORS, *CLUSTERS)) for seed in SEEDS)], QUICK.__contains__),
)
def test_random_networks(seed, shapes):
    model = Fuzzed(seed, for_cuda=True).float()
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
    for blocks in shapes:
        logits = torch.full((*images.shape, model.levels), float("nan"))
        runtime(sampler, blocks).run(
            Job(
                values=images.int(),
                noise=torch.zeros(images.shape, dtype=torch.float64),
                given=Conditioning(given.labels, given.condition),
                known=torch.ones(images.shape, dtype=torch.bool),
                parameters=logits,
            )
        )
        own = distance_from_exact(model, images, given, logits)
        assert own <= 4 * theirs + 16 * torch.finfo(torch.float32).eps, model.name
        found.append(logits)
    assert all(torch.equal(logits, found[0]) for logits in found), "the batch changes no bit"
