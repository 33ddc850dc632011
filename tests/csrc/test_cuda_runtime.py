"""The CUDA kernels, run on the host: every number of tiles and number format against the model and the CPU runtime."""

import copy
import faulthandler
import itertools
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from column_steps import Planned
from forced_shapes import prefers
from torch import Tensor

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits, RuntimeUnavailable
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.heads.drawing import draw
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.operands import ConditionOperand
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda.cost import cycles
from pixelcnn_fast.runtimes.cuda.runtime import MOST_KEPT, CudaRuntime, Limits, Shape
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.cuda_networks import CASES, FarSighted, gated
from tests.csrc.emulated import EmulatedKernel, EmulatedKernels, emulated
from tests.heads.test_drawing import OPTIONS, OfLabel
from tests.system.foreign import NETWORKS
from tests.system.networks import ChannelByChannel, enlivened, pixelcnn
from tests.system.test_attending import ATTENTIONS
from tests.tiers import thorough, tiered
from tests.tolerances import assert_as_exact_as_plain

needs_compiler = pytest.mark.skipif(
    native() is None or not shutil.which("g++"),
    reason=f"the host's emulation is not built: {why_not_native() or 'no g++'}",
)
pytestmark = needs_compiler

# How many multiprocessors share the images: a block has one image, some, or as many as it holds.
MULTIPROCESSORS = {"one image a block": 20, "some": 3, "as many as it holds": 1}
CLUSTERS = {"pairs": 2, "clusters": 4, "eights": 8}  # of so many blocks, three of them at once
BLOCKS = [*MULTIPROCESSORS, "clusters"]
DRAWS = ["as many as it holds", "clusters"]  # with several tiles of sites, and with one
IMAGES = 11


def runtime(
    sampler: Sampler,
    blocks: str = "some",
    precision: Precision = "same",
    shared: int = 227 << 10,
) -> CudaRuntime:
    captured = sampler._engine.require_compiled()
    size = CLUSTERS.get(blocks, 1)
    limits = Limits(shared, MULTIPROCESSORS.get(blocks, 3 * size), size)
    engine = CudaRuntime(
        captured.program_for("cuda"), captured.conditions, sampler.head, precision, EmulatedKernels(), limits
    )
    engine.cost = prefers(size)
    return engine


def inputs(shape, n=IMAGES):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.int32)
    return images, torch.rand(n, *shape, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def run(
    engine, sampler, u, *, levels=None, known=None, labels=None, condition=None, options=None, seed=0,
    log_probability=None,
):  # fmt: skip
    """-> (levels, logits). Logits that are not written stay NaN."""
    emulated().set_seed(seed)
    n = u.shape[0]
    levels = torch.full(u.shape, -7, dtype=torch.int32) if levels is None else levels.clone()
    logits = torch.full((*u.shape, sampler.head.levels), float("nan"))
    rows: list[int] = []
    given = Conditioning(labels if sampler._engine.model.conditional else None, condition)
    options = options or SamplingOptions()
    engine.run(
        Job(
            values=levels,
            noise=u,
            given=given,
            options=options,
            known=known,
            parameters=logits,
            log_probability=log_probability,
            on_row=rows.append,
        )
    )
    assert rows == list(range(u.shape[2])) and levels.shape[0] == n
    return levels, logits


def set_up(name: str, n: int = IMAGES) -> tuple[Sampler, Tensor, Tensor]:
    """-> the sampler of a case, noise of n images, and labels"""
    model, shape = CASES[name]()
    return Sampler(model, shape), *inputs(shape, n)[1:]


def images_with(blocks: str, most: int = IMAGES) -> int:
    return 2 if blocks in CLUSTERS else most


# In the first tier: one tile and several, clusters, every phase, a scan, a step that reads all channels.
QUICK = {("two stacks", "some"), ("labels", "as many as it holds"), ("gated", "clusters")}
QUICK |= {("diagonal bilstm", "some"), ("layer norm", "some"), ("one row", "some")}
QUICK |= {
    ("two forms of levels", "some"),
    ("half a gate", "some"),
    ("small row lstm", "some"),
    ("small bilstm", "clusters"),
}
EVERY_CASE = [
    pytest.param(name, blocks, marks=() if (name, blocks) in QUICK else thorough)
    for name in CASES
    for blocks in BLOCKS
]


@pytest.mark.parametrize(("name", "blocks"), EVERY_CASE)
def test_same_noise_same_images_as_the_cpu_runtime(name, blocks):
    n = images_with(blocks)
    sampler, u, labels = set_up(name, n)
    engine = runtime(sampler, blocks)
    assert engine.facts(n)["cluster"] == CLUSTERS.get(blocks, 1)
    got, _ = run(engine, sampler, u, labels=labels)
    expected = sampler.sample(
        n, labels if sampler._engine.model.conditional else None, noise=u, runtime="cpu"
    )
    assert torch.equal(got, expected.int())
    assert got.numel() < 50 or got.unique().numel() > 10


def teacher_forced(name: str, blocks: str, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """-> (logits, plain PyTorch's in the same precision, in float64)"""
    model, shape = CASES[name]()
    images, u, labels = inputs(shape, images_with(blocks, 9))
    arguments = (images.to(torch.uint8), labels) if model.n_classes else (images.to(torch.uint8),)
    exact = copy.deepcopy(model).double()(*arguments).detach()
    dtype = {"same": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    plain = copy.deepcopy(model).to(dtype)(*arguments).detach()
    sampler = Sampler(model, shape)
    engine = runtime(sampler, blocks, precision)
    known = torch.ones_like(images, dtype=torch.bool)
    levels, logits = run(engine, sampler, u, levels=images, known=known, labels=labels)
    assert torch.equal(levels, images)
    again = run(engine, sampler, u, levels=images, known=known, labels=labels, seed=1)
    assert torch.equal(again[1], logits), "the schedule changes nothing"
    return logits.to(plain.dtype), plain, exact


@pytest.mark.parametrize("precision", ["same", "bf16", "fp16"])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", ["7x5", "two stacks"])
@thorough
def test_teacher_forced_logits_are_as_exact_as_plain_torch(name, blocks, precision):
    assert_as_exact_as_plain(*teacher_forced(name, blocks, precision))


@pytest.mark.parametrize(
    ("name", "precision"),
    tiered(
        itertools.product(("small row lstm", "gated", "row lstm", "diagonal bilstm"), ("bf16", "fp16")),
        lambda case: case == ("small row lstm", "bf16"),
    ),
)
def test_activations_are_as_exact_as_plain_torch(name, precision):
    """On average, which the worst of a few thousand logits would not show."""
    logits, plain, exact = teacher_forced(name, "some", precision)
    assert (logits - exact).abs().mean() <= (plain - exact).abs().mean()


@pytest.mark.parametrize("blocks", MULTIPROCESSORS)
@thorough
def test_the_batch_split_changes_no_bit(blocks):
    sampler, u, labels = set_up("labels", 18)
    engine = runtime(sampler, blocks)
    whole = run(engine, sampler, u, labels=labels)
    for part in (slice(0, 1), slice(3, 11), slice(1, 18)):
        levels, logits = run(engine, sampler, u[part], labels=labels[part])
        assert torch.equal(levels, whole[0][part]) and torch.equal(logits, whole[1][part])


@pytest.mark.parametrize("name", ["gated", "row lstm", "diagonal bilstm", "labels"])
@pytest.mark.parametrize("precision", ["same", "bf16"])
@thorough
def test_clusters_change_no_bit(name, precision):
    """Nor do clusters of several images, of which the last has fewer."""
    sampler, u, labels = set_up(name, 5)
    apart = runtime(sampler, "as many as it holds", precision)
    levels, logits = run(apart, sampler, u, labels=labels)
    for blocks, size in CLUSTERS.items():
        together = runtime(sampler, blocks, precision)
        assert together.shape(5) == (2, size)
        found = run(together, sampler, u, labels=labels, seed=3)
        assert torch.equal(found[0], levels) and torch.equal(found[1], logits)


@thorough
def test_what_is_sent_comes_in_time():
    """One value in the place of another, which nobody reads but the record that makes it: it must not come last."""
    torch.manual_seed(1)
    model = enlivened(GatedPixelCNN(1, hidden_channels=24, dilations=(1,), n_classes=4))
    sampler = Sampler(model, (1, 2, 6))
    _, u, labels = inputs((1, 2, 6), 1)
    apart, together = (runtime(sampler, blocks) for blocks in ("one image a block", "clusters"))
    _, logits = run(apart, sampler, u, labels=labels)
    for seed in range(12):
        assert torch.equal(run(together, sampler, u, labels=labels, seed=seed)[1], logits)


def test_clusters_are_for_few_images():
    """With 3 rows in flight, a cluster has at most 2 images, and a block 5."""
    sampler = Sampler(*CASES["labels"]())
    engine = runtime(sampler, "clusters")
    shapes = {
        1: (1, 4),
        3: (1, 4),
        4: (2, 4),
        6: (2, 4),
        7: (2, 2),
        12: (2, 2),
        13: (2, 1),
        60: (5, 1),
        61: (3, 1),
    }
    assert {n: engine.shape(n) for n in shapes} == shapes
    assert runtime(sampler).shape(1) == (1, 1)


def test_each_size_of_cluster_is_planned_once(monkeypatch):
    engine = runtime(Sampler(*CASES["7x5"]()), "eights")
    planned, plan = [], engine._planned

    def counted(shape):
        planned.append(shape)
        return plan(shape)

    monkeypatch.setattr(engine, "_planned", counted)
    with ThreadPoolExecutor(4) as threads:
        shapes = [*threads.map(engine.shape, [2, 3] * 8)]
    assert {shape.cluster for shape in shapes} == {8}
    for n in range(1, 13):
        engine.shape(n)
    assert max(Counter(planned).values()) <= 4  # at most by each thread


@cache
def of_channels(hidden: int) -> Sampler:
    return Sampler(PixelCNN(1, hidden, 6).eval(), (1, 8, 32))


def shapes_by_cost(
    hidden: int, multiprocessors: int, largest_cluster: int
) -> Callable[[int], tuple[int, int]]:
    sampler = of_channels(hidden)
    captured = sampler._engine.require_compiled()
    limits = Limits(227 << 10, multiprocessors, largest_cluster)
    return CudaRuntime(
        captured.program_for("cuda"), captured.conditions, sampler.head, "bf16", Planned(), limits
    ).shape


def test_a_network_has_clusters_if_its_weights_take_long():
    """With 8 rows in flight, a cluster can have one image."""
    few, many = shapes_by_cost(16, 80, 8), shapes_by_cost(128, 80, 8)
    assert [many(n) for n in (5, 20, 40, 41)] == [(1, 8), (1, 4), (1, 2), (1, 1)]
    assert [few(n) for n in (5, 20, 40, 41)] == 4 * [(1, 1)]


def test_blocks_have_more_images_if_else_too_many_read_at_once():
    """With as many blocks as multiprocessors, each gets little of L2."""
    of_small, of_large = shapes_by_cost(16, 132, 1), shapes_by_cost(128, 132, 1)
    assert [of_small(n) for n in (66, 132, 133)] == [(1, 1), (1, 1), (2, 1)]
    assert [of_large(n) for n in (66, 132, 133)] == [(1, 1), (2, 1), (2, 1)]


@pytest.mark.parametrize("blocks", DRAWS)
@pytest.mark.parametrize("temperature", [0, 0.3, 2.0])
@thorough
def test_temperature_and_known_pixels(blocks, temperature):
    model, shape = CASES["two stacks"]()
    sampler = Sampler(model, shape)
    images, u, labels = inputs(shape, images_with(blocks))
    known = torch.rand(u.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    got, _ = run(
        runtime(sampler, blocks),
        sampler,
        u,
        levels=images.masked_fill(~known, 0),
        known=known,
        labels=labels,
        options=SamplingOptions(temperature=temperature),
    )
    expected = sampler.complete(images, known, labels, temperature, noise=u, runtime="cpu")
    assert torch.equal(got, expected.int())


def test_known_sub_pixels_stay_and_do_not_count():
    model, shape = CASES["labels"]()
    sampler = Sampler(model, shape)
    images, u, labels = inputs(shape, 2)
    known = torch.rand(u.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    images, found = images.masked_fill(~known, 0), torch.zeros(u.shape, dtype=torch.float64)
    got, _ = run(
        runtime(sampler), sampler, u, levels=images, known=known, labels=labels, log_probability=found
    )
    expected, log_probability = sampler.complete(
        images, known, labels, noise=u, runtime="cpu", log_probability=True
    )
    assert torch.equal(got, expected.int())
    torch.testing.assert_close(found.sum((1, 2, 3)), log_probability, rtol=1e-5, atol=1e-4)


# In the first tier: top-p alone, which draws from registers know nothing of.
@pytest.mark.parametrize("blocks", tiered(DRAWS, lambda blocks: blocks == "as many as it holds"))
@pytest.mark.parametrize("options", tiered(OPTIONS, lambda options: options == OPTIONS[4]), ids=str)
def test_top_k_and_top_p(options, blocks):
    """Many logits are equal, some pixels are known, and log-probabilities count all levels."""
    model, shape = CASES["two stacks"]()
    with torch.no_grad():
        for parameter in model.get_submodule("conv_out").parameters():
            parameter.mul_(2).round_().div_(2)
    sampler = Sampler(model, shape)
    images, u, labels = inputs(shape, images_with(blocks))
    u[:3], u[3:6] = 0, math.nextafter(1, 0)
    known = torch.rand(u.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    images, found = images.masked_fill(~known, 0), torch.zeros(u.shape, dtype=torch.float64)
    got, _ = run(
        runtime(sampler, blocks),
        sampler,
        u,
        levels=images,
        known=known,
        labels=labels,
        options=SamplingOptions(**options),
        log_probability=found,
    )
    for other in ("cpu", "reference"):
        expected, log_probability = sampler.complete(
            images, known, labels, noise=u, runtime=other, log_probability=True, **options
        )
        assert torch.equal(got, expected.int())
        torch.testing.assert_close(found.sum((1, 2, 3)), log_probability, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", tiered(OPTIONS, lambda options: options == OPTIONS[6]), ids=str)
def test_draws_equal_the_reference_draw(options):
    """One pixel whose logits are the layer's bias: all equal, some equal, some too unlikely for float32."""
    model = pixelcnn(channels=1, hidden=5, kernel=5)
    assert model.conv_out.bias is not None
    with torch.no_grad():
        model.conv_out.weight.zero_()
        bias = 9 * torch.randn(256, generator=torch.Generator().manual_seed(4))
        for logits in (torch.zeros(256), bias, bias.round(), (bias / 4).round(), 30 * bias.round()):
            model.conv_out.bias.copy_(logits)
            sampler = Sampler(model, (1, 1, 1))
            _, u, _ = inputs((1, 1, 1), 24)
            u[0], u[1] = 0, 1 - 1e-9
            got, _ = run(runtime(sampler), sampler, u, options=SamplingOptions(**options))
            assert torch.equal(
                got.flatten(), draw(logits.expand(24, 256), u.flatten(), SamplingOptions(**options)).int()
            )


NOT_ON_CUDA = ("strides", "two scales", *ATTENTIONS)  # several grids, and attention


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in NOT_ON_CUDA])
@thorough
def test_networks_that_other_people_could_have_written(name):
    """Layer norms, embeddings, feature maps as conditions, draws per sub-pixel: images and log-probabilities."""
    blocks = list(MULTIPROCESSORS)[len(name) % len(MULTIPROCESSORS)]
    network = NETWORKS[name]
    model = network.model().float()
    sampler, given = network.sampler(model), network.given(3)
    _, u, _ = inputs(network.shape, 3)
    found = torch.zeros(u.shape, dtype=torch.float64)
    levels, _ = run(runtime(sampler, blocks), sampler, u, **given, log_probability=found)
    images, expected = sampler.sample(3, **given, noise=u, runtime="eager", log_probability=True)
    assert torch.equal(levels, images.int())
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("levels", [10, 256, 300])
def test_draws_of_few_and_of_many_levels(levels):
    """From registers, as far as they hold them. Three are the likeliest, and the first is too unlikely for float32."""
    model = GatedPixelCNN(1, 6, (1,), levels=levels)
    assert model.conv_out.bias is not None
    with torch.no_grad():
        model.conv_out.weight.zero_()
        logits = torch.randn(levels, generator=torch.Generator().manual_seed(4)).mul(2).round()
        logits[0], logits[[3, 4, -2]] = -300, logits.max()
        model.conv_out.bias.copy_(logits)
    sampler = Sampler(model.eval(), (1, 1, 1), image_form="unit")
    _, u, _ = inputs((1, 1, 1), 24)
    u[0], u[1] = 0, 1 - 1e-9
    engine = runtime(sampler)
    nucleus = dict(top_p=0.6), dict(top_k=9, top_p=0.7)
    for given in ({}, dict(temperature=0), dict(temperature=0.5), dict(top_k=3), *nucleus):
        options = SamplingOptions(**given)
        got, _ = run(engine, sampler, u, options=options)
        expected = draw(logits.expand(24, levels), u.flatten(), options)
        assert torch.equal(got.flatten(), expected.int())


def test_rounding_never_draws_a_level_without_probability():
    """Where the sums up to a level round to less than their total, the last one that has any is drawn."""
    model = OfLabel().float()
    model.logits.weight.data.mul_(3)[:, 198:] = -1e4
    sampler = Sampler(model, (1, 1, 2), conditional=True, image_form="levels")
    u = torch.full((200, 1, 1, 2), math.nextafter(1, 0), dtype=torch.float64)
    levels, _ = run(runtime(sampler, "as many as it holds"), sampler, u, labels=torch.arange(200))
    assert (levels >= 20).all() and (levels < 198).all() and (levels == 197).any()


@pytest.mark.parametrize("precision", ["same", "bf16"])
def test_each_colour_is_drawn_from_its_own_logits(precision):
    """Some of four at once, where there are registers for that."""
    sampler = Sampler(pixelcnn(channels=4, hidden=8), (4, 1, 2))
    _, u, _ = inputs((4, 1, 2), 5)
    levels, logits = run(runtime(sampler, precision=precision), sampler, u)
    expected = draw(logits.flatten(0, -2), u.flatten(), SamplingOptions())
    assert torch.equal(levels.flatten(), expected.int())


def least_shared(sampler: Sampler, blocks: str) -> CudaRuntime:
    """A runtime with the least shared memory that will do."""
    for size in range(8 << 10, 228 << 10, 2 << 10):
        try:
            return runtime(sampler, blocks, shared=size)
        except RuntimeError:
            continue
    raise AssertionError("the network does not fit")


@pytest.mark.parametrize(
    "name",
    tiered(
        ["few colours", "two forms of levels", "two stacks", "labels"],
        lambda name: name in ("few colours", "two forms of levels"),
    ),
)
def test_little_shared_memory_changes_no_image(name):
    """Layers are summed in several pieces, and colours drawn one after the other, where there is no room for more."""
    sampler, u, labels = set_up(name, 3)
    engines = [least_shared(sampler, "one image a block"), runtime(sampler, "one image a block")]
    facts = [engine.facts(3) for engine in engines]
    assert facts[0]["records"] > facts[1]["records"]
    assert facts[0]["shared_bytes"] <= engines[0]._limits.shared_bytes
    results = [run(engine, sampler, u, labels=labels) for engine in engines]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("blocks", MULTIPROCESSORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@thorough
def test_logits_that_are_not_finite_name_their_position(blocks, bad):
    model, shape = CASES["labels"]()
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape)
    engine = runtime(sampler, blocks)
    original = sampler._engine.require_compiled().conditions

    class Broken(ConditionProgram):  # image 9 alone has a condition that is not finite
        def __call__(
            self, operands: Sequence[ConditionOperand], given: Conditioning, n: int
        ) -> dict[ConditionOperand, torch.Tensor]:
            conditions = original(operands, given, n)
            conditions[operands[0]][9] = bad
            return conditions

    engine._conditions = Broken([])
    with pytest.raises(NonFiniteLogits) as found:
        run(engine, sampler, u, labels=labels)
    image, _, row, column = found.value.location
    assert (image, row, column) == (9, 0, 0)


def test_conditions_of_several_kinds():
    """A map and labels, at images that are not square."""
    shape = (1, 2, 4)
    model = gated(6, input_channels=1, n_classes=4, condition_channels=2)
    sampler = Sampler(model, shape, condition_shape=(2, 2, 4))
    _, u, labels = inputs(shape, 3)
    condition = torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(1))
    levels = torch.empty(u.shape, dtype=torch.int32)
    runtime(sampler).run(Job(values=levels, noise=u, given=Conditioning(labels, condition)))
    assert torch.equal(levels, sampler.sample(3, labels, condition=condition, noise=u, runtime="eager").int())


def test_a_draw_of_more_colours_than_a_warp_has_lanes_is_refused():
    model = GatedPixelCNN(33, 33, (1,), levels=2).eval()
    with pytest.raises(RuntimeUnavailable, match="more than 32 distributions"):
        runtime(Sampler(model, (33, 1, 2)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_are_rounded_as_pytorch_rounds_them(precision):
    """Those between two numbers, to the even one; and what is too small, or too large, for such numbers."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    step = torch.finfo(dtype).eps
    between = [1.25 + step / 2, 1.25 + 3 * step / 2, -1.5 - 5.1 * step]
    weights = torch.tensor([*between, 65519, 65521, 3.1e-6, -5.97e-8, 6e-5])
    model = pixelcnn(channels=1, hidden=8, blocks=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.conv_out.weight.flatten()[: len(weights)] = weights
    engine = runtime(Sampler(model, (1, 1, 2)), precision=precision)
    found = torch.frombuffer(bytearray(engine.sampler(Shape(1)).constants()), dtype=torch.int16)
    assert set(weights.to(dtype).view(torch.int16).tolist()) <= set(found.tolist())


def test_the_pixel_whose_logits_are_not_finite_is_named():
    """Of an image that is not square, by a map that is NaN there. Other images' pixels come later."""
    sampler = Sampler(gated(6, input_channels=1, condition_channels=2), (1, 4, 5))
    _, u, _ = inputs((1, 4, 5), 3)
    engine, condition = runtime(sampler), torch.zeros(3, 2, 4, 5)
    condition[1, 0, 2, 3] = condition[0, 0, 3, 0] = condition[2, 1, 3, 4] = torch.nan
    original = sampler._engine.require_compiled().conditions

    class Broken(ConditionProgram):
        def __call__(
            self, operands: Sequence[ConditionOperand], given: Conditioning, n: int
        ) -> dict[ConditionOperand, torch.Tensor]:
            return original(operands, Conditioning(condition=condition), n)

    engine._conditions = Broken([])
    with pytest.raises(NonFiniteLogits) as found:
        run(engine, sampler, u)
    with pytest.raises(NonFiniteLogits) as expected:
        sampler.sample(3, noise=u, condition=condition, runtime="eager")
    # It is read from two columns away.
    assert found.value.location == expected.value.location == (1, 0, 2, 1)


@pytest.mark.parametrize(("order", "precision"), [(None, "same"), (None, "bf16"), ("thirds", "same")])
def test_the_colour_whose_logits_are_not_finite_is_named(order, precision):
    """Of a draw of all colours, one by one or some at once, or of one draw for each."""
    model = enlivened(GatedPixelCNN(3, 6, (1,), channel_order=order))
    sampler = Sampler(model, (3, 1, 1))
    model.get_parameter("conv_out.bias").view(3, -1).data[1, 7] = torch.inf
    sampler.refresh()  # building a sampler would refuse it
    _, u, _ = inputs((3, 1, 1), 2)
    with pytest.raises(NonFiniteLogits) as found:
        run(runtime(sampler, precision=precision), sampler, u)
    assert found.value.location == (0, 1, 0, 0)


def test_noise_that_there_is_not_counts_as_logits_that_are_not_finite():
    sampler = Sampler(pixelcnn(channels=2, hidden=5, blocks=0), (2, 1, 2))
    _, u, _ = inputs((2, 1, 2), 3)
    u[1, 1, 0, 1] = -1
    with pytest.raises(NonFiniteLogits) as found:
        run(runtime(sampler), sampler, u)
    assert found.value.location == (1, 1, 0, 1)


@pytest.mark.parametrize("precision", ["same", "bf16"])
def test_relu_keeps_nan(precision):
    sampler = Sampler(model := pixelcnn(hidden=5), (1, 1, 2))
    model.get_parameter("conv_in.bias").data[3] = torch.nan
    sampler.refresh()  # building a sampler would refuse it
    with pytest.raises(NonFiniteLogits):
        run(runtime(sampler, precision=precision), sampler, torch.rand(1, 1, 1, 2, dtype=torch.float64))


def test_the_image_whose_colour_is_drawn_first_is_named():
    """Though an image before it has none in a colour that is drawn later."""
    shape = (2, 2, 3)
    sampler = Sampler(
        ChannelByChannel(), shape, condition_shape=shape, image_form="unit", head=Categorical(4)
    )
    _, u, _ = inputs(shape, 3)
    condition = torch.zeros(3, *shape)
    condition[0, 1, 0, 1] = condition[2, 0, 0, 1] = torch.nan
    with pytest.raises(NonFiniteLogits) as found:
        runtime(sampler).run(Job(values=u.int(), noise=u, given=Conditioning(condition=condition)))
    assert found.value.location == (2, 0, 0, 1)


@pytest.mark.parametrize(
    ("name", "tiles"),
    tiered(itertools.product(("7x5", "small gates"), range(1, 9)), lambda case: case == ("small gates", 8)),
)
def test_every_number_of_tiles(name, tiles):
    """As many images in a block as fill so many tiles of 8 sites, and one less."""
    model, shape = CASES["7x5"]() if name == "7x5" else (gated(6, input_channels=1), (1, 2, 3))
    sampler = Sampler(model, shape)
    rows = runtime(sampler).facts(1)["rows"]
    for images in {8 * tiles // rows, 8 * tiles // rows - 1} - {0}:
        _, u, _ = inputs(shape, images)
        engine = runtime(sampler, "as many as it holds", "bf16")
        assert engine.facts(images)["images"] == images
        levels, _ = run(engine, sampler, u)
        expected, _ = run(runtime(sampler, "one image a block", "bf16"), sampler, u)
        assert torch.equal(levels, expected)


@pytest.mark.parametrize(
    ("name", "precision"),
    tiered(
        itertools.product(
            (
                "nearly the same products",
                "nearly LSTMs",
                "small row lstm",
                "row lstm",
                "row lstm without labels",
                "diagonal bilstm",
            ),
            ("bf16", "fp16"),
        ),
        lambda case: case[1] == "bf16" and case[0].startswith(("nearly", "small")),
    ),
)
def test_gates_at_once_are_as_gates_one_after_the_other(name, precision):
    """A warp has all gates of a unit at once, where it has registers for that; images don't depend on it."""
    model, shape = CASES[name]()
    sampler = Sampler(model, shape)
    together, apart = (
        runtime(sampler, blocks, precision) for blocks in ("one image a block", "as many as it holds")
    )
    n, few = apart.facts(1)["most_images"], 5
    _, u, labels = inputs(shape, n)
    assert together.facts(1)["records"] < apart.facts(n)["records"]
    levels, logits = run(together, sampler, u[:few], labels=labels[:few])
    expected = run(apart, sampler, u, labels=labels)
    assert torch.equal(levels, expected[0][:few]) and torch.equal(logits, expected[1][:few])


def test_what_reads_nothing_of_each_other_shares_a_record():
    """With one tile of sites, as far as there are warps for it. The images are the same."""
    torch.manual_seed(2)
    model, shape = gated(32, input_channels=1), (1, 4, 5)
    sampler = Sampler(model, shape)
    _, u, _ = inputs(shape)
    apart = runtime(sampler, "as many as it holds")
    assert apart.facts(IMAGES)["tiles"] == 2
    levels, logits = run(apart, sampler, u)
    for blocks in ("one image a block", "clusters"):
        n = images_with(blocks)
        together = runtime(sampler, blocks)
        assert together.facts(n)["tiles"] == 1
        assert together.facts(n)["records"] < apart.facts(IMAGES)["records"]
        found = run(together, sampler, u[:n])
        assert torch.equal(found[0], levels[:n]) and torch.equal(found[1], logits[:n])


def test_a_graph_captures_no_call_that_waits(monkeypatch):
    engine = runtime(sampler := Sampler(*CASES["7x5"]()))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"can't capture .*enqueue\(batch\), as docs/cuda.md shows"):
        run(engine, sampler, torch.rand(1, 1, 7, 5, dtype=torch.float64))


def test_no_memory_for_the_weights_is_no_runtime(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = runtime(Sampler(*CASES["7x5"]()))
    monkeypatch.setattr(engine, "_constants_of", full)
    with pytest.raises(RuntimeUnavailable, match="no memory for the weights: CUDA out of memory"):
        engine.prepare(1)


@pytest.mark.parametrize("shared", [48 << 10, 227 << 10])
def test_the_largest_batch_is_as_large_as_blocks_hold(shared):
    """Whatever was asked before."""
    engine = runtime(Sampler(*CASES["7x5"]()), "some", "fp16", shared)

    def fits(images: int) -> bool:
        try:
            return bool(engine._planned(Shape(images)))
        except ValueError:
            return False

    most = max(images for images in range(1, engine.facts(1)["most_images"] + 1) if fits(images))
    assert (shared < 100 << 10) == (most < engine.facts(1)["most_images"])
    for _ in range(3):
        assert engine.largest_batch() == 3 * most
        engine.shape(1000)


def test_a_batch_of_no_images():
    sampler = Sampler(*CASES["1x1 image"]())
    engine = runtime(sampler)
    engine.cost = cycles
    assert engine.shape(0) == (1, 1) and engine.workspace_bytes(0) == 0


def test_few_plans_are_kept():
    """Each has a copy of the weights. What was forgotten is planned again, to the same images."""
    model, shape = CASES["1x1 image"]()
    sampler = Sampler(model, shape)
    engine = runtime(sampler, "as many as it holds")
    _, u, _ = inputs(shape, 12)
    first = run(engine, sampler, u[:3])[0]
    for n in range(1, 13):
        engine.prepare(n)
    assert len(engine._samplers) == len(engine._constants) == 1 + MOST_KEPT
    assert Shape(1) in engine._samplers and Shape(3) not in engine._samplers
    assert torch.equal(run(engine, sampler, u[:3])[0], first)


@pytest.mark.parametrize("at_once, clusters", [(0, [1, 1, 1]), (1, [4, 4, 1]), (2, [4, 4, 4])])
def test_images_have_clusters_if_so_many_run_at_once(monkeypatch, at_once, clusters):
    """A cluster has four images at most."""
    engine = runtime(Sampler(*CASES["7x5"]()), "clusters")
    monkeypatch.setattr(EmulatedKernel, "clusters_at_once", lambda kernel, how: at_once)
    assert [engine.shape(images).cluster for images in (1, 4, 5)] == clusters


@pytest.mark.parametrize("blocks", ["some", "clusters"])
@thorough
def test_who_waits_in_vain_gives_up(blocks: str) -> None:
    sampler, u, labels = set_up("two stacks", images_with(blocks))
    engine = runtime(sampler, blocks, "same")
    emulated().forget()
    run(engine, sampler, u, labels=labels)
    arrivals = [(name, line) for name, line in emulated().synchronisations() if name == "arrive"]
    assert len(arrivals) == (2 if blocks == "clusters" else 1)  # at one's own block, and at the others
    for name, line in arrivals:
        emulated().leave_out(name, line)
        try:
            with pytest.raises(RuntimeError, match="waited in vain"):
                run(engine, sampler, u, labels=labels)
        finally:
            emulated().leave_out("nothing", 0)


@pytest.mark.parametrize(
    "images, cluster, why", [(0, 1, "one image"), (1, 3, "2, 4 or 8"), (500, 1, "fewer sites")]
)
def test_shapes_that_there_can_t_be_are_refused(images: int, cluster: int, why: str) -> None:
    engine = runtime(Sampler(*CASES["two stacks"]()))
    with pytest.raises(ValueError, match=why):
        engine.sampler(Shape(images, cluster))


OUTCOMES = ["noticed", "missed", "it failed"]  # by exit status
AT_ONCE = 2  # processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@thorough
def test_every_synchronisation_is_needed():
    """If any one barrier or wait is left out, the images change or the emulation notices."""
    emulated().forget()
    networks = []
    cases = CASES["two stacks"](), CASES["diagonal bilstm"](), (FarSighted().eval(), (1, 3, 5))
    for model, shape in cases:
        sampler = Sampler(model, shape)
        engines: list[tuple[str, Precision]] = [
            ("some", "same"),
            ("as many as it holds", "bf16"),
            ("clusters", "same"),
        ]
        for blocks, precision in engines:
            engine = runtime(sampler, blocks, precision)
            # In bf16, with so many tiles that copies begin behind a record's barrier.
            n = engine.facts(1)["most_images"] if precision == "bf16" else images_with(blocks)
            _, u, labels = inputs(shape, n)
            networks.append((engine, sampler, u, labels, run(engine, sampler, u, labels=labels)))

    def noticed(seeds: int) -> bool:
        for seed in range(seeds):
            for engine, sampler, u, labels, (levels, logits) in networks:
                try:
                    found = run(engine, sampler, u, labels=labels, seed=seed)
                except (RuntimeError, NonFiniteLogits):
                    return True
                if not (torch.equal(found[0], levels) and torch.equal(found[1], logits)):
                    return True
        return False

    def begun_without(name: str, line: int, seeds: int = 8) -> int:
        """A process of its own: what races may also follow a wild pointer, or never end."""
        child = os.fork()
        if child == 0:
            outcome = "it failed"
            try:
                faulthandler.disable()
                torch.set_num_threads(1)  # OpenMP's have not come along
                signal.alarm(240)
                emulated().leave_out(name, line)
                outcome = "noticed" if noticed(seeds) else "missed"
            finally:
                os._exit(OUTCOMES.index(outcome))
        return child

    def ended(child: int) -> bool:
        """Whether it was noticed."""
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status != OUTCOMES.index("it failed")
        return status != OUTCOMES.index("missed")

    assert not ended(begun_without("nothing", 0, seeds=2))
    left_out = emulated().synchronisations()
    missed = []
    for first in range(0, len(left_out), AT_ONCE):
        some = left_out[first : first + AT_ONCE]
        children = [begun_without(*at) for at in some]
        missed += [at for at, child in zip(some, children, strict=True) if not ended(child)]
    assert not missed
