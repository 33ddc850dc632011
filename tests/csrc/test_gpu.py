"""The CUDA runtime on a GPU, against the eager one on the same device."""

from __future__ import annotations

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.native import native
from pixelcnn_fast.program.conditions import Given
from pixelcnn_fast.runtimes.cuda import CudaRuntime
from pixelcnn_fast.runtimes.job import Job
from tests.heads.test_drawing import OPTIONS
from tests.system.networks import pixelcnn, two_stacks
from tests.tolerances import assert_as_exact_as_plain

module = native()
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(
        module is None or not module.build_info()["cuda"], reason="a build without the CUDA part"
    ),
]
CASES = {
    "labels": lambda: (pixelcnn(channels=3, hidden=40, blocks=2, classes=4), (3, 7, 9)),
    "two stacks": lambda: (two_stacks(), (2, 8, 8)),
    "wide": lambda: (pixelcnn(channels=1, hidden=200, blocks=4), (1, 6, 6)),
}
VARIANTS = ("block", "pipeline", "auto")


def built(name, precision="same", variant="auto"):
    model, shape = CASES[name]()
    sampler = Sampler(model.cuda(), shape, precision=precision)
    return (
        model,
        shape,
        sampler,
        CudaRuntime(
            sampler._engine.captured.program,
            sampler._engine.captured.conditions,
            sampler.head,
            precision,
            variant,
        ),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_same_noise_same_images_as_the_cpu_runtime(name, variant):
    model, shape, sampler, engine = built(name, variant=variant)
    labels = torch.arange(21) % 4 if sampler._engine.model.conditional else None
    noise = torch.rand(21, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = Sampler(model.cpu(), shape).sample(21, labels, noise=noise, runtime="cpu")
    levels = torch.zeros(21, *shape, dtype=torch.int32)
    device_labels = None if labels is None else labels.cuda()
    engine.run(Job(values=levels, noise=noise, given=Given(device_labels)))
    assert torch.equal(levels, expected.int())


@pytest.mark.parametrize("variant", ["block", "pipeline"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_top_k_and_top_p(variant, options):
    model, shape, sampler, engine = built("wide", variant=variant)
    noise = torch.rand(21, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = Sampler(model.cpu(), shape).sample(21, noise=noise, runtime="cpu", **options)
    levels = torch.zeros(21, *shape, dtype=torch.int32)
    engine.run(Job(values=levels, noise=noise, options=SamplingOptions(**options)))
    assert torch.equal(levels, expected.int())


@pytest.mark.parametrize("precision", ["same", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_as_exact_as_plain_torch(name, precision):
    model, shape, sampler, _ = built(name, precision)
    images = torch.randint(0, 256, (13, *shape), dtype=torch.uint8)
    labels = torch.arange(13) % 4 if sampler._engine.model.conditional else None
    logits = sampler.logits(images, labels, "cuda")
    arguments = (images.cuda(),) if labels is None else (images.cuda(), labels.cuda())
    dtype = {"same": torch.float32, "bf16": torch.bfloat16}.get(precision, torch.float16)
    plain = model.to(dtype)(*arguments).detach().cpu()
    exact = CASES[name]()[0].double()(*(a.cpu() for a in arguments)).detach()
    plain = plain.float() if precision == "tf32" else plain
    assert_as_exact_as_plain(logits.to(plain.dtype), plain, exact)


@pytest.mark.parametrize("variant", ["block", "pipeline"])
def test_a_cuda_graph_captures_a_batch(variant):
    _, shape, sampler, engine = built("wide", variant=variant)
    noise = torch.rand(5, *shape, dtype=torch.float64)
    eager = torch.zeros(5, *shape, dtype=torch.int32)
    engine.run(Job(values=eager, noise=noise))
    batch = engine.prepared(Job(values=torch.zeros_like(eager), noise=noise))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        engine.enqueue(batch)
    batch.levels.zero_()
    graph.replay()
    assert torch.equal(batch.levels.cpu(), eager)
