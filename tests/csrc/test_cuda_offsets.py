"""The CUDA sampler finds its images where offsets into a batch's tensors have passed 2^32.

Such a batch would take terabytes. Here its memory is reserved, and there are only the pages that something touches:
the kernels run on the host, and only the blocks at the end of the launch do, which have the last images.
"""

import mmap
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import Sampler
from pixelcnn_fast.models import GatedPixelCNN
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, DeviceJob, Limits, Shape
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.emulated import EmulatedKernels, emulated
from tests.system.networks import enlivened
from tests.tiers import thorough

pytestmark = [
    thorough,
    pytest.mark.skipif(
        native() is None or not shutil.which("g++"),
        reason=f"the host's emulation is not built: {why_not_native() or 'no g++'}",
    ),
]

SHAPE = (3, 9, 10)
IMAGES = 2**24 - 1  # an error's location has 24 bits for the image
LAST = 5
NORESERVE = 0x4000  # MAP_NORESERVE of Linux; Python has no name for it before 3.13
GUARD = 2**31


def reserved(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros without memory. Others lie before them, for offsets that have overflowed and are negative."""
    size = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, (GUARD + size) * dtype.itemsize, flags)
    except OSError as error:
        pytest.skip(f"this system does not reserve {size} elements: {error}")
    return torch.frombuffer(memory, dtype=dtype, offset=GUARD * dtype.itemsize, count=size).view(shape)


@pytest.fixture(scope="module")
def engine() -> CudaRuntime:
    """Of a model with both kinds of conditions: feature maps, and labels behind them."""
    torch.manual_seed(1)
    model = enlivened(GatedPixelCNN(3, 8, dilations=(1,), n_classes=4, condition_channels=2))
    sampler = Sampler(model, SHAPE, condition_shape=(2, *SHAPE[1:]))
    captured = sampler._engine.require_compiled()
    return CudaRuntime(
        captured.program_for("cuda"),
        captured.conditions,
        sampler.head,
        "same",
        EmulatedKernels(),
        Limits(227 << 10, multiprocessors=1),
    )


@pytest.fixture
def few() -> Job:
    """The last images alone, some of whose pixels are known."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(LAST, *SHAPE, generator=generator, dtype=torch.float64)
    known = torch.rand(LAST, *SHAPE, generator=generator) < 0.2
    given = torch.randint(0, 256, (LAST, *SHAPE), generator=generator, dtype=torch.int32)
    condition = torch.randn(LAST, 2, *SHAPE[1:], generator=generator)
    return Job(
        values=given.masked_fill(~known, 0),
        noise=noise,
        known=known,
        given=Conditioning(torch.arange(LAST) % 4, condition),
        parameters=torch.full((LAST, *SHAPE, 256), torch.nan),
        log_probability=torch.zeros(LAST, *SHAPE, dtype=torch.float64),
    )


def at_the_end_of_many(few: Job, engine: CudaRuntime, shape: Shape) -> DeviceJob:
    """A batch whose last images they are."""
    operands = engine._program.condition_operands
    found = [engine._conditions(operands, few.given, LAST)[operand].float() for operand in operands]
    conditions = reserved(sum(x[0].numel() for x in found) * IMAGES, dtype=torch.float32)
    begin = 0
    for x in found:
        end = begin + x[0].numel() * IMAGES
        conditions[end - x.numel() : end] = x.flatten()
        begin = end
    tensors = []
    for small, dtype in (
        (few.values, torch.int32),
        (few.known, torch.uint8),
        (few.noise, torch.float64),
        (few.parameters, torch.float32),
        (few.log_probability, torch.float64),
    ):
        assert small is not None
        tensors.append(reserved(IMAGES, *small.shape[1:], dtype=dtype))
        tensors[-1][-LAST:] = small
    values, known, noise, parameters, log_probability = tensors
    batch = Job(
        values=values,
        known=known,
        noise=noise,
        options=few.options,
        parameters=parameters,
        log_probability=log_probability,
    )
    sampler = engine.sampler(shape)
    workspace = reserved(sampler.workspace_bytes(IMAGES), dtype=torch.uint8)
    assert min(x.numel() for x in (*tensors, conditions, workspace)) > 2**32
    error = torch.full((1,), -1, dtype=torch.int64)
    return DeviceJob(batch, sampler, [conditions], engine._constants_of(shape), workspace, error)


@pytest.fixture
def last_blocks_only() -> Iterator[None]:
    emulated().run_last(LAST)
    yield
    emulated().run_last(2**32 - 1)


@pytest.mark.parametrize("kind", ["an image a block", "many images a block", "an image a cluster"])
def test_the_last_images_of_a_large_batch(kind, engine, few, last_blocks_only):
    shapes = {"many images a block": engine.shape(IMAGES), "an image a cluster": Shape(1, 4)}
    shape = shapes.get(kind, Shape(1))
    assert shape.images > 1 or kind not in shapes or shape.cluster > 1
    batch = at_the_end_of_many(few, engine, shape)
    engine.enqueue(batch)
    assert int(batch.error) == -1
    rings = batch.workspace.view(-1, batch.sampler.facts["workspace_bytes"])
    first_block = (IMAGES - LAST) // shape.images * shape.cluster
    assert rings[first_block:].any(1).all(), "each block has kept values, where it should"
    assert few.parameters is not None and few.log_probability is not None and few.known is not None
    engine.run(few)  # fills its tensors
    found = batch.job
    assert found.parameters is not None and found.log_probability is not None
    assert torch.equal(found.values[-LAST:], few.values) and few.values.unique().numel() > 50
    assert torch.equal(found.parameters[-LAST:], few.parameters)
    assert torch.equal(found.log_probability[-LAST:], few.log_probability)
    assert few.log_probability[~few.known].all()


def test_the_location_of_an_error(engine: CudaRuntime, few: Job, last_blocks_only: None) -> None:
    """Noise that there is not counts as logits that are not finite."""
    batch = at_the_end_of_many(few, engine, Shape(1))
    batch.job.noise[-1], place = 0, (1, 4, 7)
    assert batch.job.known is not None
    batch.job.known[-1] = 0
    batch.job.noise[-1][place] = -1
    engine.enqueue(batch)
    assert engine._location(int(batch.error)) == (IMAGES - 1, *place)
