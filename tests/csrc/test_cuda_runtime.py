"""The CUDA kernels, run on the host: every variant and number format against the model and the CPU runtime."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads.drawing import draw
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.program.conditions import Conditions, Given
from pixelcnn_fast.program.program import ConditionOperand
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda import CudaRuntime, Limits
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.emulated import emulated
from tests.csrc.test_flags import FLAGS
from tests.heads.test_drawing import OPTIONS
from tests.system.foreign import NETWORKS
from tests.system.networks import ABOVE, Masked, enlivened, pixelcnn, two_stacks
from tests.tolerances import assert_as_exact_as_plain

needs_compiler = pytest.mark.skipif(
    native() is None or not shutil.which("g++"),
    reason=f"the host's emulation is not built: {why_not_native() or 'no g++'}",
)
pytestmark = needs_compiler

# (variant, blocks of the largest cluster)
VARIANTS = {"block": ("block", 1), "through global memory": ("pipeline", 1), "cluster": ("pipeline", 16)}
# (model, shape, has labels). Odd sizes, several tiles of channels and of images, every phase.
CASES = {
    "1x1 image": lambda: (pixelcnn(channels=1, hidden=5, kernel=5), (1, 1, 1)),
    "7x5": lambda: (pixelcnn(channels=1, hidden=33, blocks=1, kernel=7), (1, 7, 5)),
    "one column": lambda: (pixelcnn(channels=3, hidden=8), (3, 6, 1)),
    "one row": lambda: (pixelcnn(channels=3, hidden=8), (3, 1, 6)),
    "labels": lambda: (pixelcnn(channels=3, hidden=17, kernel=5, classes=4), (3, 3, 9)),
    "two stacks": lambda: (two_stacks(), (2, 4, 5)),
    "gated": lambda: (gated(input_channels=2, n_classes=4), (2, 4, 5)),
    "gated thirds": lambda: (gated(channel_order="thirds"), (3, 4, 5)),
    "interleaved": lambda: (
        enlivened(PixelCNN(3, 9, 1, channel_order="interleaved", kernel_size=3)),
        (3, 4, 5),
    ),
}
IMAGES = 11


def gated(**kwargs) -> GatedPixelCNN:
    torch.manual_seed(1)
    return enlivened(GatedPixelCNN(hidden_channels=8, dilations=(1, 2), **kwargs))


def runtime(
    sampler: Sampler,
    variant: str,
    precision: Precision = "same",
    shared: int | None = None,
    multiprocessors: int = 20,
) -> CudaRuntime:
    """With ``shared`` bytes of shared memory; by default with the least that will do, which gives many stages."""
    name, cluster = VARIANTS[variant]
    for size in [shared] if shared else range(16 << 10, 228 << 10, 4 << 10):
        try:
            return CudaRuntime(
                sampler._engine.captured.program,
                sampler._engine.captured.conditions,
                sampler.head,
                precision,
                name,
                emulated(),
                Limits(size, multiprocessors, cluster),
            )
        except RuntimeError:
            if shared:
                raise
    raise AssertionError("the network does not fit")


def inputs(shape, n=IMAGES):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.int32)
    return images, torch.rand(n, *shape, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def run(
    engine, sampler, u, *, levels=None, known=None, labels=None, options=None, seed=0, log_probability=None
):
    """-> (levels, logits). Logits that are not written stay NaN."""
    emulated().set_seed(seed)
    n = u.shape[0]
    levels = torch.full(u.shape, -7, dtype=torch.int32) if levels is None else levels.clone()
    logits = torch.full((*u.shape, sampler.head.levels), float("nan"))
    rows: list[int] = []
    given = Given(labels if sampler._engine.model.conditional else None)
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_same_noise_same_images_as_the_cpu_runtime(name, variant):
    model, shape = CASES[name]()
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape)
    got, _ = run(runtime(sampler, variant), sampler, u, labels=labels)
    expected = sampler.sample(
        IMAGES, labels if sampler._engine.model.conditional else None, noise=u, runtime="cpu"
    )
    assert torch.equal(got, expected.int())
    assert got.numel() < 50 or got.unique().numel() > 10


@pytest.mark.parametrize("precision", ["same", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["7x5", "two stacks"])
def test_teacher_forced_logits_are_as_exact_as_plain_torch(name, variant, precision):
    model, shape = CASES[name]()
    images, u, labels = inputs(shape, 9)
    arguments = (images.to(torch.uint8), labels) if model.n_classes else (images.to(torch.uint8),)
    exact = copy.deepcopy(model).double()(*arguments).detach()
    # tf32 keeps as many bits as fp16.
    dtype = {"same": torch.float32, "bf16": torch.bfloat16}.get(precision, torch.float16)
    plain = copy.deepcopy(model).to(dtype)(*arguments).detach()
    sampler = Sampler(model, shape)
    engine = runtime(sampler, variant, precision)
    known = torch.ones_like(images, dtype=torch.bool)
    levels, logits = run(engine, sampler, u, levels=images, known=known, labels=labels)
    assert torch.equal(levels, images)
    again = run(engine, sampler, u, levels=images, known=known, labels=labels, seed=1)
    assert torch.equal(again[1], logits), "the schedule changes nothing"
    if precision == "tf32":
        plain = plain.float()
    assert_as_exact_as_plain(logits.to(plain.dtype), plain, exact)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_batch_split_changes_no_bit(variant):
    model, shape = CASES["labels"]()
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape, 18)
    engine = runtime(sampler, variant)
    whole = run(engine, sampler, u, labels=labels)
    for part in (slice(0, 1), slice(3, 11), slice(1, 18)):
        levels, logits = run(engine, sampler, u[part], labels=labels[part])
        assert torch.equal(levels, whole[0][part]) and torch.equal(logits, whole[1][part])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [0, 0.3, 2.0])
def test_temperature_and_known_pixels(variant, temperature):
    model, shape = CASES["two stacks"]()
    sampler = Sampler(model, shape)
    images, u, labels = inputs(shape)
    known = torch.rand(u.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    got, _ = run(
        runtime(sampler, variant),
        sampler,
        u,
        levels=images.masked_fill(~known, 0),
        known=known,
        labels=labels,
        options=SamplingOptions(temperature=temperature),
    )
    expected = sampler.complete(images, known, labels, temperature, noise=u, runtime="cpu")
    assert torch.equal(got, expected.int())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_top_k_and_top_p(options, variant):
    """Many logits are equal, some pixels are known, and log-probabilities count all levels."""
    model, shape = CASES["two stacks"]()
    with torch.no_grad():
        for parameter in model.get_submodule("conv_out").parameters():
            parameter.mul_(2).round_().div_(2)
    sampler = Sampler(model, shape)
    images, u, labels = inputs(shape)
    u[:3], u[3:6] = 0, math.nextafter(1, 0)
    known = torch.rand(u.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    images, found = images.masked_fill(~known, 0), torch.zeros(u.shape, dtype=torch.float64)
    got, _ = run(
        runtime(sampler, variant),
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
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
            got, _ = run(runtime(sampler, "block"), sampler, u, options=SamplingOptions(**options))
            assert torch.equal(
                got.flatten(), draw(logits.expand(24, 256), u.flatten(), SamplingOptions(**options)).int()
            )


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_other_people_could_have_written(name):
    """Layer norms, embeddings, feature maps as conditions, draws per sub-pixel: images and log-probabilities."""
    variant = list(VARIANTS)[len(name) % len(VARIANTS)]
    network = NETWORKS[name]
    model = network.model().float()
    sampler, labels = network.sampler(model), network.labels(3)
    _, u, _ = inputs(network.shape, 3)
    found = torch.zeros(u.shape, dtype=torch.float64)
    levels, _ = run(runtime(sampler, variant), sampler, u, labels=labels, log_probability=found)
    images, expected = sampler.sample(3, labels, noise=u, runtime="eager", log_probability=True)
    assert torch.equal(levels, images.int())
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_that_do_not_fit_shared_memory_are_read_from_the_workspace(variant):
    """The same bits in the least shared memory and in plenty of it."""
    model, shape = CASES["two stacks"]()
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape)
    least, most = runtime(sampler, variant), runtime(sampler, variant, shared=227 << 10)
    assert facts(least)["shared_bytes"] < facts(most)["shared_bytes"]
    results = [run(engine, sampler, u, labels=labels) for engine in (least, most)]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_name_their_position(variant, bad):
    model, shape = CASES["labels"]()
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape)
    engine = runtime(sampler, variant)
    original = sampler._engine.captured.conditions

    class Broken(Conditions):  # image 9 alone has a condition that is not finite
        def __call__(
            self, operands: Sequence[ConditionOperand], given: Given, n: int
        ) -> dict[ConditionOperand, torch.Tensor]:
            conditions = original(operands, given, n)
            conditions[operands[0]][9] = bad
            return conditions

    engine._conditions = Broken([])
    with pytest.raises(NonFiniteLogits) as found:
        run(engine, sampler, u, labels=labels)
    image, _, row, column = found.value.location
    assert (image, row, column) == (9, 0, 0)


@pytest.mark.parametrize("name", ["two stacks", "gated"])
def test_a_vertical_stack_takes_one_launch_per_row(name):
    """Few blocks that take several instructions and tiles in turn, many blocks, a launch per depth: the same bits."""
    model, shape = CASES[name]()
    shape = (*shape[:2], 9)  # three columns' worth of blocks
    sampler = Sampler(model, shape)
    _, u, labels = inputs(shape, 18)
    results = {}
    for multiprocessors in (1, 2, 3, 6, 100):
        engine = runtime(sampler, "block", multiprocessors=multiprocessors)
        depths = facts(engine)["row_depths"]
        assert depths >= 3 and facts(engine)["row_launches"] == (depths if multiprocessors == 1 else 1)
        results[multiprocessors] = [run(engine, sampler, u, labels=labels, seed=seed) for seed in range(3)]
    expected = sampler.sample(18, labels if sampler._engine.model.conditional else None, noise=u, runtime="cpu")
    for of_seeds in results.values():
        for levels, logits in of_seeds:
            assert torch.equal(levels, expected.int()) and torch.equal(logits, results[1][0][1])


def facts(engine: CudaRuntime) -> dict:
    (sampler,) = engine._samplers.values()
    return sampler.facts


H100, A100 = Limits(227 << 10, 132, 16), Limits(163 << 10, 108, 1)
# hidden, blocks, device -> stages of the pipeline in bf16
SPLITS = {
    "narrow and shallow": (32, 3, H100, 1),
    "the default": (128, 15, H100, 12),
    "the default, its last layer too large for a block": (128, 15, A100, 18),
    "narrow and deep": (64, 40, H100, 8),
    "wide": (256, 4, H100, 12),
}


@pytest.mark.parametrize("name", SPLITS)
def test_how_layers_are_split_over_blocks(name):
    hidden, blocks, limits, stages = SPLITS[name]
    sampler = Sampler(PixelCNN(3, hidden, blocks).eval(), (3, 4, 4))

    def built(variant, limits=limits):
        return CudaRuntime(
            sampler._engine.captured.program,
            sampler._engine.captured.conditions,
            sampler.head,
            "bf16",
            variant,
            emulated(),
            limits,
        )

    engine = built("auto")
    block, pipeline = engine.facts("block"), engine.facts("pipeline")
    assert block["shared_bytes"] <= limits.shared_bytes and pipeline["shared_bytes"] <= limits.shared_bytes
    assert pipeline["stages"] == stages
    assert sum(pipeline["stage_weight_bytes"]) == block["pixel_weight_bytes"]
    assert engine.choose(1)[0] == "pipeline" and "us a pixel for 1 images, block" in engine.explain(1)
    if stages > 1:
        with pytest.raises(RuntimeError, match=f"its layers need {stages} blocks"):
            built("pipeline", Limits(limits.shared_bytes, stages - 1, 1))
        why = built("auto", Limits(limits.shared_bytes, stages - 1, 1)).explain(8)
        assert why.startswith("block (bf16): no variant 'pipeline': its layers need")


class FarSighted(torch.nn.Module):
    """The first layer reads two columns to the left: zeros at the left edge, before anything has been computed."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = Masked(1, 20, [*ABOVE, (0, -2)], size=5)
        self.last = Masked(20, 256, [(0, -1), (0, 0)])

    def forward(self, images):
        x = torch.nn.functional.elu(self.first(images.to(self.first.weight.dtype) / 99))
        return (20 * self.last(x)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_synchronisation_is_needed(variant):
    """If any one barrier, wait or warp barrier is left out, the images change or the emulation notices.

    No schedule can show that a flag's memory order is wrong: test_flags.py leaves that to the thread sanitizer."""
    emulated().forget()
    networks = []
    engines: list[tuple[Precision, int | None]] = [("same", 227 << 10), ("same", None), ("bf16", None)]
    for model, shape in (CASES["two stacks"](), (FarSighted().eval(), (1, 3, 5))):
        sampler = Sampler(model, shape)
        _, u, labels = inputs(shape)
        for precision, shared in engines:
            engine = runtime(sampler, variant, precision, shared)
            networks.append((engine, sampler, u, labels, run(engine, sampler, u, labels=labels)))

    def noticed(seeds: int = 8) -> bool:
        for seed in range(seeds):
            for engine, sampler, u, labels, (levels, logits) in networks:
                try:
                    found = run(engine, sampler, u, labels=labels, seed=seed)
                except (RuntimeError, NonFiniteLogits):
                    return True
                if not (torch.equal(found[0], levels) and torch.equal(found[1], logits)):
                    return True
        return False

    assert not noticed(seeds=2)
    missed = []
    for name, line in emulated().synchronisations():
        if name in FLAGS:
            continue
        emulated().leave_out(name, line)
        try:
            if not noticed():
                missed.append((name, line))
        finally:
            emulated().leave_out("", 0)
    assert not missed
