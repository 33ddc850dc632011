"""A small image, drawn by the kernels' machine code. What the emulation takes for granted of the device is in it,
such as that copies are waited for, and how products lay out their operands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from column_steps import SHARED, Planned, needed_compiler
from sass_simulator import RATES, Kernel, Memory, simulate

from pixelcnn_fast import Sampler
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.models import PixelCNN
from pixelcnn_fast.program.schema import Job
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda.driver import NAME
from pixelcnn_fast.runtimes.cuda.kernels import Instance, sources
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, Limits, Shape
from tests.needs import needs_native
from tests.sass_simulator.needs import needs_kernels
from tests.system.networks import enlivened
from tests.tiers import thorough

pytestmark = [needs_native, needs_kernels, thorough]
SHAPE = (1, 3, 4)
ARCH = "90"
LEVELS = 256


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.manual_seed(2)
    return Sampler(enlivened(PixelCNN(1, 24, 1, kernel_size=5)), SHAPE)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def drawn(
    sampler: Sampler,
    noise: torch.Tensor,
    folder: Path,
    precision: Precision = "same",
    cluster: int = 1,
    replaced: tuple[str, str] = ("", ""),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(levels, logits) of one image. replaced: a piece of device.h, and what stands there instead."""
    captured = sampler._engine.require_compiled()
    (kilobytes,) = (kb for kb, archs in SHARED.items() if ARCH in archs)
    limits = Limits(kilobytes << 10, RATES[ARCH].multiprocessors, cluster)
    runtime = CudaRuntime(
        captured.program_for("cuda"), captured.conditions, sampler.head, precision, Planned(), limits
    )
    plan = runtime.sampler(Shape(1, cluster))
    instance = Instance(runtime.math, plan.facts["tiles"], cluster)
    device = sources()["cuda/kernels/device.h"]
    assert replaced[0] in device
    texts = {**sources(), "cuda/kernels/device.h": device.replace(*replaced)}
    cubin = folder / "walk.cubin"
    cubin.write_bytes(needed_compiler().compiled(texts, int(ARCH), [*instance.options, "-lineinfo"]))
    memory, size = Memory(), int(np.prod(SHAPE))
    levels = memory.place(4 * size)
    logits = memory.place(np.full(size * LEVELS, np.nan, np.float32))
    job = Job(
        images=1,
        values=levels,
        noise=memory.place(noise.numpy()),
        conditions=[],
        options=SamplingOptions(),
        parameters=logits,
    )
    parameters = plan.parameters(
        job,
        constants=memory.place(plan.constants()),
        workspace=memory.place(plan.workspace_bytes(1)),
        error=memory.place(np.array([-1])),
    )
    simulate(
        Kernel.load(cubin, NAME.decode()),
        parameters,
        memory,
        threads=plan.facts["threads"],
        rates=RATES[ARCH],
        shared_bytes=plan.facts["shared_bytes"],
        blocks=(cluster, 1, 1),
        cluster=cluster,
    )
    found = memory.read(levels, size, np.int32), memory.read(logits, size * LEVELS, np.float32)
    return torch.from_numpy(found[0]).view(1, *SHAPE), torch.from_numpy(found[1]).view(1, *SHAPE, LEVELS)


@pytest.mark.parametrize("cluster", [1, 2])
def test_it_is_the_image_of_the_cpu(sampler, noise, tmp_path, cluster):
    levels, logits = drawn(sampler, noise, tmp_path, cluster=cluster)
    assert torch.equal(levels, sampler.sample(1, noise=noise, runtime="cpu").int())
    assert levels.unique().numel() > 6
    assert (logits - sampler.logits(levels, runtime="cpu")).abs().max() < 5e-7 * logits.abs().max()


def test_in_bf16_it_is_near(sampler: Sampler, noise: torch.Tensor, tmp_path: Path) -> None:
    levels, logits = drawn(sampler, noise, tmp_path, "bf16")
    assert (logits - sampler.logits(levels, runtime="cpu")).abs().max() < 0.02 * logits.abs().max()


def test_copies_must_be_waited_for(sampler: Sampler, noise: torch.Tensor, tmp_path: Path) -> None:
    """Without the wait, all else passes, and looks faster."""
    without = ("cp.async.wait_all", "cp.async.commit_group")
    levels, logits = drawn(sampler, noise, tmp_path, replaced=without)
    expected = sampler.logits(levels.clamp(0, LEVELS - 1), runtime="cpu")
    assert not torch.allclose(logits, expected, atol=1e-3)
