"""The CUDA sampler on a GPU, through what users call: its images against the model in float64, and the CPU runtime's.

``make gpu-check`` runs this file. What is drawn is judged sub-pixel by sub-pixel, by the model's own probabilities for
it after the image so far. So a level that rounding has moved to its neighbour is no error, nor is what follows from it.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from forced_shapes import prefers
from gpu.draws import PLAIN, judged
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from pixelcnn_fast.native import native
from pixelcnn_fast.runtimes import Precision, RuntimeName
from pixelcnn_fast.runtimes.cuda.kernels import kernels_of, why_no_kernels
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, CudaRuntime, largest_cluster, limits_of
from pixelcnn_fast.runtimes.job import Job
from tests.heads.test_drawing import OPTIONS
from tests.system.networks import enlivened, pixelcnn, two_stacks
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import exact_float32  # noqa: F401

DEVICE = "cuda"
RUNTIME: RuntimeName = "cuda"
module = native()
pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(
        module is None or why_no_kernels() is not None, reason=f"no kernels: {why_no_kernels()}"
    ),
]
Shape = tuple[int, int, int]


def gated(**arguments) -> GatedPixelCNN:
    torch.manual_seed(1)
    return enlivened(GatedPixelCNN(hidden_channels=24, dilations=(1, 2), **arguments))


def recurrent(kind) -> PixelRNN:
    torch.manual_seed(2)
    return enlivened(PixelRNN(kind, input_channels=1, hidden_channels=16, n_layers=2, kernel_size=3))


# Odd sizes, conditions, every phase of a step, several tiles of 16 channels; images of one row, column or pixel.
CASES: dict[str, Callable[[], tuple[nn.Module, Shape]]] = {
    "1x1 image": lambda: (pixelcnn(hidden=5, kernel=5), (1, 1, 1)),
    "one column": lambda: (pixelcnn(channels=3), (3, 6, 1)),
    "one row": lambda: (pixelcnn(channels=3), (3, 1, 6)),
    "7x5": lambda: (pixelcnn(hidden=33, kernel=7), (1, 7, 5)),
    "labels": lambda: (pixelcnn(channels=3, hidden=40, blocks=2, classes=4), (3, 7, 9)),
    "two stacks": lambda: (two_stacks(), (2, 8, 8)),
    "wide": lambda: (pixelcnn(hidden=200, blocks=4), (1, 6, 6)),
    "gated": lambda: (gated(input_channels=2, n_classes=4), (2, 9, 9)),
    "ordered colours": lambda: (gated(channel_order="thirds"), (3, 8, 8)),
    "interleaved colours": lambda: (
        enlivened(PixelCNN(3, 33, 1, channel_order="interleaved", kernel_size=3)),
        (3, 4, 5),
    ),
    "default": lambda: (random_model(), (3, 32, 32)),
}
RECURRENT: dict[str, Callable[[], tuple[nn.Module, Shape]]] = {
    "row_lstm": lambda: (recurrent("row_lstm"), (1, 6, 7)),
    "diagonal_bilstm": lambda: (recurrent("diagonal_bilstm"), (1, 6, 7)),
}
ROUNDED: tuple[Precision, ...] = tuple(PLAIN)


@cache
def network(name: str) -> tuple[nn.Module, Shape]:
    """On the device; no test may change or move it."""
    model, shape = {**CASES, **RECURRENT}[name]()
    return model.to(DEVICE), shape


@cache
def sampler_of(name: str, precision: Precision = "same") -> Sampler:
    model, shape = network(name)
    return Sampler(model, shape, precision=precision)


@cache
def sampler_on_cpu(name: str) -> Sampler:
    model, shape = network(name)
    return Sampler(copy.deepcopy(model).cpu(), shape)


def noise_for(shape: Shape, n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_as_on_cpu(
    name: str,
    n: int,
    drawn: Callable[[Tensor], tuple[Tensor, Tensor]],
    labels: Tensor | None = None,
    can_judge: bool = True,
) -> None:
    """drawn(noise): images of the GPU and of the CPU. A uniform may lie so near the edge between two levels that
    rounding decides: where they differ, the model judges. Of draws that it can't judge, with options or known pixels,
    those of one noise of two must be equal."""
    model, shape = network(name)
    for seed in (0, 1):
        images, on_cpu = drawn(noise := noise_for(shape, n, seed))
        if torch.equal(images, on_cpu):
            return
        if can_judge:
            found = judged(model, images, noise, labels)
            assert found.is_right, found
            return
    raise AssertionError("the images are not those of the CPU, with either noise")


def labels_for(model: nn.Module, n: int) -> Tensor | None:
    return torch.arange(n) % 4 if getattr(model, "n_classes", None) else None


def assert_drawn_right(
    name: str, n: int, precision: Precision = "same", batch_size: int | None = None
) -> None:
    model, shape = network(name)
    noise, labels = noise_for(shape, n), labels_for(model, n)
    images = sampler_of(name, precision).sample(
        n, labels, noise=noise, runtime=RUNTIME, batch_size=batch_size
    )
    found = judged(model, images, noise, labels, precision)
    assert found.is_right, found


@pytest.mark.parametrize("n", [21, 50])
@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_their_noise(name, n):
    """So few that a GPU may have a cluster of blocks for each, and more than that."""
    assert_drawn_right(name, n)


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("name", ["7x5", "labels", "two stacks", "wide", "gated", "default"])
def test_rounded_products_move_no_more_than_plain_torch(name, precision):
    assert_drawn_right(name, 21, precision)


@pytest.mark.parametrize("precision", ["same", "bf16"])
@pytest.mark.parametrize("name", ["7x5", "labels", "two stacks"])
def test_200_images(name, precision):
    assert_drawn_right(name, 200, precision)


@pytest.mark.parametrize("tiles", range(1, 9))
def test_about_as_many_tiles_on_each_multiprocessor(tiles):
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    n = tiles * 8 * multiprocessors - 3  # the last tile isn't full
    for precision in ("same", "bf16"):
        assert_drawn_right("one row", n, precision, batch_size=n)


TILES: dict[Precision, set[int]] = {
    "same": {1, 2},
    "bf16": set(range(1, 9)),
    "fp16": set(range(1, 9)),
}


@pytest.mark.parametrize("precision", TILES)
def test_every_number_of_tiles_in_one_block(precision):
    """As if the GPU had a single multiprocessor. With one row, each image is a site."""
    model, shape = network("one row")
    sampler = Sampler(model, shape, precision=precision)
    found = sampler._engine.require_compiled()
    limits = replace(limits_of(found.program.device), multiprocessors=1, largest_cluster=1)
    runtime = CudaRuntime(found.program_for("cuda"), found.conditions, sampler.head, precision, limits=limits)
    sampler._engine._runtimes[RUNTIME] = runtime
    tiles = set()
    for n in range(3, runtime.facts(1)["most_images"] + 1, 8):
        facts, noise = runtime.facts(n), noise_for(shape, n)
        assert facts["images"] == n
        tiles.add(facts["tiles"])
        images = sampler.sample(n, noise=noise, runtime=RUNTIME, batch_size=n)
        result = judged(model, images, noise, None, precision)
        assert result.is_right, result
    assert tiles == TILES[precision]


@pytest.mark.parametrize("precision", ["same", "bf16"])
def test_the_batch_size_changes_no_image(precision):
    sampler, (_, shape) = sampler_of("labels", precision), network("labels")
    noise, labels = noise_for(shape, 40), torch.arange(40) % 4
    whole = sampler.sample(40, labels, noise=noise, runtime=RUNTIME, batch_size=40)
    for size in (1, 7, 8, 33):
        part = slice(0, min(2 * size, 40))
        some = sampler.sample(part.stop, labels[part], noise=noise[part], runtime=RUNTIME, batch_size=size)
        assert torch.equal(some, whole[part])


def test_the_next_batch_starts_anew():
    """A larger batch before it, of other noise, leaves nothing behind."""
    sampler, (_, shape) = sampler_of("two stacks"), network("two stacks")
    noise, labels = noise_for(shape, 5), torch.arange(5) % 4
    first = sampler.sample(5, labels, noise=noise, runtime=RUNTIME)
    sampler.sample(64, torch.arange(64) % 4, runtime=RUNTIME)
    assert torch.equal(sampler.sample(5, labels, noise=noise, runtime=RUNTIME), first)


@pytest.mark.parametrize("name", ["labels", "two stacks", "ordered colours"])
def test_same_noise_same_images_as_the_cpu_runtime(name):
    labels = labels_for(network(name)[0], 5)

    def drawn(noise: Tensor) -> tuple[Tensor, Tensor]:
        images = sampler_of(name).sample(5, labels, noise=noise, runtime=RUNTIME)
        return images, sampler_on_cpu(name).sample(5, labels, noise=noise, runtime="cpu")

    assert_as_on_cpu(name, 5, drawn, labels)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_drawing(options):
    def drawn(noise: Tensor) -> tuple[Tensor, Tensor]:
        images = sampler_of("wide").sample(9, noise=noise, runtime=RUNTIME, **options)
        return images, sampler_on_cpu("wide").sample(9, noise=noise, runtime="cpu", **options)

    assert_as_on_cpu("wide", 9, drawn, can_judge=False)


def test_known_pixels_are_kept():
    _, (channels, height, width) = network("labels")
    labels = torch.arange(9) % 4
    images = torch.randint(0, 256, (9, channels, height, width), dtype=torch.uint8)
    known = torch.rand(9, 1, height, width) < 0.5

    def drawn(noise: Tensor) -> tuple[Tensor, Tensor]:
        completed = sampler_of("labels").complete(images, known, labels, noise=noise, runtime=RUNTIME)
        return completed, sampler_on_cpu("labels").complete(images, known, labels, noise=noise, runtime="cpu")

    assert_as_on_cpu("labels", 9, drawn, can_judge=False)


def test_log_probabilities_are_the_teacher_forced_likelihood():
    model, shape = network("labels")
    noise, labels = noise_for(shape, 9), torch.arange(9) % 4
    images, found = sampler_of("labels").sample(9, labels, noise=noise, runtime=RUNTIME, log_probability=True)
    given = images.to(DEVICE), labels.to(DEVICE)
    plain = -nll(model, *given).detach().float().cpu()
    exact = -nll(copy.deepcopy(model).double(), *given).detach().cpu()
    assert_as_exact_as_plain(found.float(), plain, exact)


@pytest.mark.parametrize("precision", ["same", *ROUNDED])
@pytest.mark.parametrize("name", ["labels", "two stacks", "wide"])
def test_logits_are_as_exact_as_plain_torch(name, precision):
    model, shape = network(name)
    images, labels = torch.randint(0, 256, (13, *shape), dtype=torch.uint8), labels_for(model, 13)
    logits = sampler_of(name, precision).logits(images, labels, RUNTIME)
    given = [x.to(DEVICE) for x in (images, labels) if x is not None]
    with torch.no_grad():
        plain = copy.deepcopy(model).to(PLAIN.get(precision, torch.float32))(*given).cpu()
        exact = copy.deepcopy(model).double()(*given).cpu()
    assert_as_exact_as_plain(logits.to(plain.dtype), plain, exact)


def test_another_stream():
    sampler, (_, shape) = sampler_of("7x5"), network("7x5")
    noise = noise_for(shape, 9)
    expected = sampler.sample(9, noise=noise, runtime=RUNTIME)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(sampler.sample(9, noise=noise, runtime=RUNTIME), expected)


def test_logits_that_are_not_finite_are_named_and_the_next_batch_is_right():
    model, shape = CASES["7x5"]()
    sampler = Sampler(model.to(DEVICE), shape)
    expected = sampler.sample(9, noise=noise_for(shape, 9), runtime=RUNTIME)
    broken = copy.deepcopy(model)
    next(broken.get_submodule("conv_out").parameters()).data.fill_(torch.inf)
    with pytest.raises(NonFiniteLogits):
        sampler.refresh(broken).sample(9, runtime=RUNTIME)
    assert torch.equal(sampler.refresh(model).sample(9, noise=noise_for(shape, 9), runtime=RUNTIME), expected)


@pytest.mark.parametrize("precision", ["same", "bf16"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrences(kind, precision):
    skip_if_refused(kind, precision)
    assert_drawn_right(kind, 9, precision)


def skip_if_refused(name: str, precision: Precision) -> None:
    try:
        sampler_of(name, precision).runtime(RUNTIME)
    except RuntimeError as error:
        pytest.skip(str(error))


# -- clusters: blocks that share an image and send each other what they make, where there are multiprocessors enough

# Images: each has a cluster; on an H100, a cluster of 8 blocks then has two of them, and one of 4, if they have few
# rows in flight, or else they have clusters of fewer blocks.
IN_CLUSTERS = 5, 22, 55
MANY = 200  # not in clusters
CLUSTERED = ("labels", "gated", *RECURRENT)


def sampler_with_clusters(name: str, precision: Precision, blocks: int) -> tuple[Sampler, CudaRuntime]:
    """Its clusters are of so many blocks, as long as they hold the images."""
    if largest_cluster(torch.cuda.get_device_capability()) == 1:
        pytest.skip("the GPU has no clusters")
    skip_if_refused(name, precision)
    sampler = Sampler(*network(name), precision=precision)
    runtime = sampler.runtime(RUNTIME)
    assert isinstance(runtime, CudaRuntime)
    runtime.cost = prefers(blocks)
    assert runtime.shape(IN_CLUSTERS[0]) == (1, blocks)
    return sampler, runtime


@pytest.mark.parametrize("blocks", CLUSTERS)
@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters_draw_the_images_of_the_cpu_runtime(name, blocks):
    sampler, _ = sampler_with_clusters(name, "same", blocks)
    for n in IN_CLUSTERS:
        labels = labels_for(network(name)[0], n)

        def drawn(noise: Tensor, n: int = n, labels: Tensor | None = labels) -> tuple[Tensor, Tensor]:
            images = sampler.sample(n, labels, noise=noise, runtime=RUNTIME, batch_size=n)
            return images, sampler_on_cpu(name).sample(n, labels, noise=noise, runtime="cpu")

        assert_as_on_cpu(name, n, drawn, labels)


@pytest.mark.parametrize("blocks", CLUSTERS)
@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters_change_no_bit(name, blocks):
    """Of images and of logits, against a larger batch of which they are part."""
    sampler, runtime = sampler_with_clusters(name, "bf16", blocks)
    model, shape = network(name)
    noise, labels = noise_for(shape, MANY), labels_for(model, MANY)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        given = None if labels is None else labels[:n]
        images = sampler.sample(n, given, noise=noise[:n], runtime=RUNTIME, batch_size=n)
        return images, sampler.logits(images, given, RUNTIME)

    found = [drawn(n) for n in IN_CLUSTERS]
    runtime.cost = prefers(1)
    images, logits = drawn(MANY)
    for some, their_logits in found:
        assert torch.equal(some, images[: len(some)]) and torch.equal(their_logits, logits[: len(some)])


def test_a_cluster_has_several_images():
    _, runtime = sampler_with_clusters("gated", "bf16", max(CLUSTERS))
    at_once = runtime.clusters_at_once(runtime.shape(1))
    assert runtime.shape(at_once + 1) == (2, max(CLUSTERS))


def test_a_graph_captures_a_prepared_batch():
    """And plays it again with other noise, in the same memory."""
    model, shape = network("7x5")
    sampler, n = Sampler(model, shape), 3
    sampler.prepare(n)
    runtime = sampler.runtime(RUNTIME)
    assert isinstance(runtime, CudaRuntime)
    noise = noise_for(shape, n).to(DEVICE)
    values = torch.zeros(n, *shape, dtype=torch.int32, device=DEVICE)
    batch = runtime.prepared(Job(values=values, noise=noise))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runtime.enqueue(batch)
    for seed in (0, 1):
        noise.copy_(noise_for(shape, n, seed))
        graph.replay()
        torch.cuda.synchronize()
        expected = sampler.sample(n, noise=noise_for(shape, n, seed), runtime=RUNTIME)
        assert torch.equal(batch.levels.cpu(), expected.int())


@pytest.mark.parametrize("prepared", [False, True])
def test_a_graph_s_capture_of_a_call_that_waits_is_refused(prepared):
    """Whether its kernel is loaded or not; the sampler draws as before afterwards."""
    model, shape = network("7x5")
    sampler = Sampler(model, shape)
    kernels_of.cache_clear()
    if prepared:
        sampler.prepare(2)
    with pytest.raises(RuntimeError, match="prepare"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sampler.sample(2, runtime=RUNTIME)
    assert sampler.sample(2, runtime=RUNTIME).shape == (2, *shape)
