"""All runtimes against the naive one: identical images in float64, logits as exact as plain torch in float32."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits, SamplingInterrupted
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.models import GatedPixelCNN
from pixelcnn_fast.native import required
from tests.needs import EACH_ISA, RUNTIMES, instruction_set, needs_native, on_each_isa
from tests.system.agreement import assert_runtimes_agree, noise
from tests.system.networks import (
    ABOVE,
    LEFT,
    ChannelByChannel,
    Filtered,
    Masked,
    Written,
    attending,
    enlivened,
    pixelcnn,
    streamed,
    two_stacks,
)
from tests.tolerances import assert_as_exact_as_plain, assert_identical_up_to_rounding

# (model, shape, has labels)
CASES = {
    "1x1 image": (dict(channels=1, hidden=5, blocks=1, kernel=5), (1, 1, 1)),
    "7x5": (dict(channels=1, hidden=33, blocks=2, kernel=7), (1, 7, 5)),
    "one column": (dict(channels=3, hidden=8, blocks=1, kernel=3), (3, 6, 1)),
    "one row": (dict(channels=3, hidden=8, blocks=1, kernel=3), (3, 1, 6)),
    "labels": (dict(channels=3, hidden=17, blocks=1, kernel=5, classes=4), (3, 5, 6)),
    "4 channels": (dict(channels=4, hidden=16, blocks=0, kernel=3), (4, 4, 4)),
    "wide": (dict(channels=1, hidden=70, blocks=1, kernel=3, classes=2), (1, 4, 5)),
    "whole blocks": (dict(channels=1, hidden=64, blocks=2, kernel=3), (1, 4, 5)),  # of every micro-kernel
}


def case(name: str):
    kwargs, shape = CASES[name]
    model = pixelcnn(**kwargs, seed=len(name)).double()
    labels = torch.arange(5) % kwargs["classes"] if kwargs.get("classes") else None
    return model, shape, labels


@cache
def built(name: str) -> tuple[Sampler, Any, Tensor | None]:
    """-> a case's sampler, its model, and labels: no test changes them"""
    model, shape, labels = case(name)
    return Sampler(model, shape), model, labels


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_same_noise_same_images_as_naive(name, runtime):
    sampler, _, labels = built(name)
    naive = assert_runtimes_agree(sampler, 5, runtimes=[runtime], labels=labels)
    assert naive.dtype == torch.uint8 and naive.shape == (5, *sampler.shape)
    assert naive.numel() < 50 or naive.unique().numel() > 10  # the check is not about constant images


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("temperature", [0, 0.3, 2.0])
def test_temperature(runtime, temperature):
    sampler, _, labels = built("labels")
    u = noise(5, sampler.shape)
    naive = assert_runtimes_agree(sampler, 5, runtimes=[runtime], u=u, labels=labels, temperature=temperature)
    assert not torch.equal(sampler.sample(5, labels, noise=u, runtime=runtime), naive)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_teacher_forced_logits_are_the_models_forward(name, runtime):
    sampler, model, labels = built(name)
    images = torch.randint(0, 256, (5, *sampler.shape), dtype=torch.uint8)
    expected = model(images) if labels is None else model(images, labels)
    assert_identical_up_to_rounding(sampler.logits(images, labels, runtime), expected.detach())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("classes", [None, 4])
def test_a_network_that_uses_every_phase(runtime, classes):
    model = two_stacks(n_classes=classes).double()
    sampler, labels = Sampler(model, (2, 6, 7)), torch.tensor([0, 3, 1, 2, 2]) if classes else None
    assert_runtimes_agree(sampler, 5, runtimes=[runtime], labels=labels)
    listing = str(sampler.program)
    assert (
        "row phase: a whole row" in listing
        and "pixel phase" in listing
        and "after the pixel is drawn" in listing
    )


class Sums(nn.Module):
    """Whole blocks of every micro-kernel, and what may follow their products: a sum, one with a factor, relu; taps
    that do not lie side by side, which take a product each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        before = [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
        self.first, self.second = Masked(1, 64, before), Masked(64, 64, [(-1, 0), (0, -2), (0, 0)], size=5)
        self.third, self.last = Masked(64, 64, [*before, (0, 0)]), nn.Conv2d(64, 256, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.to(self.last.weight) / 255).relu()
        y = self.second(x) + x
        return self.last(torch.add(self.third(y), x, alpha=2).relu())[:, None].movedim(2, -1)


FIVE_IMAGES = [
    "7x5",
    "labels",
    "wide",
    "whole blocks",
    "sums",
    "two stacks 35",
    "attention",
    "streamed",
    "filtered",
    "cells",
]


def five_images(name):
    """A model and its shape, labels, images, and arguments."""
    model: nn.Module
    if name.startswith("two stacks"):
        width = int(name.removeprefix("two stacks "))
        model, shape, labels = two_stacks(width).double(), (2, 6, 7), torch.arange(5) % 4
    elif name == "attention":
        model, shape, labels = attending(2).double(), (2, 9, 8), None
    elif name == "sums":
        model, shape, labels = Sums().double(), (1, 5, 6), None
    elif name == "streamed":
        model, shape, labels = streamed().double(), (1, 3, 7), None
    elif name in ("filtered", "cells"):
        filtered = Filtered(has_cells=name == "cells")
        model, shape, labels = enlivened(filtered).double(), (1, 6, 8), None
    else:
        model, shape, labels = case(name)
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    return model, shape, labels, images, ((images,) if labels is None else (images, labels))


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("name", FIVE_IMAGES)
def test_float32_logits_per_instruction_set(isa, name):
    model, shape, labels, images, arguments = five_images(name)
    exact = model(*arguments).detach()
    single = copy.deepcopy(model).float()
    with instruction_set(isa):
        sampler = Sampler(single, shape)
        for n in (1, 2, 3, 5):  # each takes another path through the micro-kernels
            got = sampler.logits(images[:n], None if labels is None else labels[:n], "cpu")
            assert_as_exact_as_plain(got, single(*arguments).detach()[:n], exact[:n])


@pytest.mark.parametrize(("runtime", "isa"), [("eager", ""), *on_each_isa("cpu")])
def test_bf16_weights(runtime, isa):
    """Runtimes agree on the same rounded weights, but for what else is rounded where the processor multiplies bf16;
    rounding moves the logits by about a bf16 step."""
    model, shape, labels = case("labels")
    single, images = model.float(), torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    with instruction_set(isa):
        rounds_all = runtime == "cpu" and required().multiplies_bf16()
        narrow, same = Sampler(single, shape, precision="bf16"), Sampler(single, shape)
        difference = (
            (narrow.logits(images, labels, runtime) - same.logits(images, labels, runtime)).abs().max()
        )
        scale = same.logits(images, labels, runtime).abs().max()
        assert 1e-5 * scale < difference < 0.05 * scale
        agree = torch.allclose(
            narrow.logits(images, labels, runtime), narrow.logits(images, labels, "eager"), atol=1e-4
        )
        assert agree != rounds_all
    with pytest.raises(ValueError, match="reference"):
        narrow.sample(1, labels[:1], runtime="reference")
    with pytest.raises(ValueError, match="float32"):
        Sampler(model.double(), shape, precision="bf16")


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("name", FIVE_IMAGES)
def test_bf16_logits_are_as_exact_as_plain_torch_in_bf16(isa, name):
    model, shape, labels, images, arguments = five_images(name)
    exact = model(*arguments).detach()
    plain = copy.deepcopy(model).bfloat16()(*arguments).detach().float()
    with instruction_set(isa):
        got = Sampler(model.float(), shape, precision="bf16").logits(images, labels, "cpu")
    assert_as_exact_as_plain(got, plain, exact)


class IntegerNetwork(nn.Module):
    """All that it computes are integers below 2^24, so that no sum rounds in float32, whatever its order."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        before, here = [(-1, -1), (-1, 0), (-1, 1), (0, -1)], [(0, 0)]
        self.layers = nn.ModuleList(
            [Masked(1, hidden, before), Masked(hidden, hidden, before + here), Masked(hidden, 256, here)]
        )
        generator = torch.Generator().manual_seed(hidden)
        for parameter in self.parameters():
            parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).float()

    def forward(self, x: Tensor, rounded: bool = False) -> Tensor:
        x = x.to(next(self.parameters()))
        for layer in self.layers:
            x = layer(x.bfloat16().to(x.dtype) if rounded else x).relu()
        return (x / 4096)[:, None].movedim(2, -1)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("hidden", [3, 31, 45, 64, 180])  # the last in several parts of its depth
def test_what_is_multiplied_in_bf16_is_rounded_to_nearest_even(isa, hidden):
    net, shape = IntegerNetwork(hidden), (1, 5, 6)
    images = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(1))
    with instruction_set(isa):
        expected = net.double()(images, rounded=required().multiplies_bf16()).detach()
        sampler = Sampler(net.float(), shape, precision="bf16")
        for n in (1, 2, 5, 17, 40):  # each takes another path through the micro-kernels
            assert torch.equal(sampler.logits(images[:n], runtime="cpu").double(), expected[:n])
    assert not torch.equal(net(images, rounded=True), net(images))


class SumOfPixels(nn.Module):
    """Integers below 2^24 that are summed over all pixels before, by weights that are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 301.0))  # 301, 602 and 903 are no numbers of bf16

    def forward(self, x: Tensor, rounded: bool = False) -> Tensor:
        values = self.scale.to(x.dtype) * x.flatten(2) * torch.arange(4, dtype=x.dtype)[:, None]
        before = torch.ones(values.shape[2], values.shape[2], dtype=values.dtype).tril(-1)
        total = (values.bfloat16().to(x.dtype) if rounded else values) @ before.mT.to(x.dtype)
        return total.view(-1, 1, 4, *x.shape[2:]).movedim(2, -1) / 4096


@pytest.mark.parametrize("isa", EACH_ISA)
def test_what_attention_reads_is_kept_in_bf16(isa):
    net, shape = SumOfPixels(), (1, 5, 6)
    images = torch.randint(0, 4, (40, *shape), generator=torch.Generator().manual_seed(1))
    expected = net(images.double(), rounded=True).detach()
    assert not torch.equal(expected, net(images.double()))
    form: dict[str, Any] = {"image_form": "levels", "levels": 4}
    with instruction_set(isa):
        narrow, same = Sampler(net, shape, precision="bf16", **form), Sampler(net, shape, **form)
        for n in (1, 5, 40):
            assert torch.equal(narrow.logits(images[:n], runtime="cpu").double(), expected[:n])
    assert torch.equal(same.logits(images).double(), net(images.double()))
    attended = 5 * 6 * 4  # values of 4 channels
    saved = same.program.workspace_bytes - narrow.program.workspace_bytes
    assert saved == attended * 2


SPLIT = {
    "hidden 40": (lambda: pixelcnn(channels=3, hidden=40), (3, 5, 4)),
    "hidden 64": (lambda: pixelcnn(channels=3, hidden=64), (3, 5, 4)),
    "attention": (lambda: attending(2), (2, 9, 8)),
}


@needs_native
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "same"), (torch.float32, "bf16"), (torch.float64, "same")]
)
@pytest.mark.parametrize("name", SPLIT)
def test_the_batch_split_changes_no_bit(name, dtype, precision):
    model, shape = SPLIT[name]
    sampler, u = Sampler(model().to(dtype), shape, precision=precision), noise(13, shape)
    drawn = sampler.sample(13, noise=u, batch_size=13)
    images = torch.randint(0, 256, (7, *shape))
    whole = sampler.logits(images)
    for size in (1, 2, 3, 4, 7):
        assert torch.equal(sampler.sample(13, noise=u, batch_size=size), drawn), size
        for start in range(0, 7, size):
            part = slice(start, start + size)
            assert torch.equal(sampler.logits(images[part]), whole[part]), size


@needs_native
@pytest.mark.parametrize("precision", ["same", "bf16"])
@pytest.mark.parametrize("name", ["hidden 64", "attention"])
def test_the_number_of_threads_changes_no_bit(name, precision):
    model, shape = SPLIT[name]
    sampler = Sampler(model(), shape, precision=precision)
    images = torch.randint(0, 256, (3, *shape))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(sampler.logits(images))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_complete_keeps_the_known_and_samples_the_rest(runtime):
    sampler, _, labels = built("labels")
    shape, u = sampler.shape, noise(5, sampler.shape)
    images = sampler.sample(5, labels, noise=u)
    known = torch.rand(5, *shape) < 0.5
    known[:, :, 0] = True
    assert torch.equal(sampler.complete(images, known, labels, noise=u, runtime=runtime), images)
    changed = images.clone()
    changed[:, :, 0] = 255 - changed[:, :, 0]
    other = sampler.complete(changed, known, labels, noise=u, runtime=runtime)
    assert torch.equal(other[known], changed[known]) and not torch.equal(other[~known], images[~known])
    assert torch.equal(other, sampler.complete(changed, known, labels, noise=u, runtime="reference"))
    upper = torch.zeros(shape[1:], dtype=torch.bool)
    upper[:2] = True
    assert torch.equal(sampler.complete(images, upper, labels, noise=u, runtime=runtime), images)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_unknown_pixels_are_not_looked_at(runtime):
    sampler, u = Sampler(pixelcnn().double(), (1, 4, 4)), noise(2, (1, 4, 4))
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    garbage = torch.randint(0, 256, (2, 1, 4, 4))
    assert torch.equal(
        sampler.complete(garbage, nothing, noise=u, runtime=runtime), sampler.sample(2, noise=u)
    )


def in_whole_blocks(net: Any, x: Tensor) -> Tensor:
    """Products end with a sum and relu where that is all: here it is less half of the sum, or something follows."""
    h = net.first(x)
    h = (net.less(h) - 0.5 * h).relu()
    return 9 * net.last((net.more(h) + h).relu().tanh())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_products_end_with_nothing_but_a_sum_and_relu(runtime):
    first, last = Masked(1, 64, [*ABOVE, *LEFT]), torch.nn.Conv2d(64, 9, 1)
    less, more = (Masked(64, 64, [(0, 0)]) for _ in range(2))
    model = Written(in_whole_blocks, first=first, less=less, more=more, last=last).double()
    sampler = Sampler(model, (1, 3, 4), levels=9, image_form="unit")
    assert_runtimes_agree(sampler, runtimes=[runtime])


@pytest.mark.parametrize(("levels", "level"), [(256, 7), (11, 10), (3, 1)])
@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_logits_that_are_not_finite(runtime, levels, level):
    """Whatever fills a vector of the processor's, and whatever doesn't."""
    model = enlivened(GatedPixelCNN(1, 8, (1,), levels=levels))
    sampler = Sampler(model, (1, 4, 4))
    for bad in (float("nan"), float("inf"), -float("inf")):
        model.get_parameter("conv_out.bias").data[level] = bad
        sampler.refresh()  # building a sampler would refuse them
        with pytest.raises(NonFiniteLogits, match="image 0, channel 0, row 0, column 0"):
            sampler.sample(2, runtime=runtime)


@pytest.mark.parametrize("column", [2, 3, 8])
@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_the_first_of_two_is_named(runtime, column):
    """The first in raster order. With several rows in flight, that of the second row is met first, or with it, or long
    before."""
    model = enlivened(GatedPixelCNN(1, 8, (1,), condition_channels=1, levels=4))
    sampler, condition = Sampler(model, (1, 3, 9)), torch.zeros(1, 1, 3, 9)
    condition[0, 0, 0, column] = condition[0, 0, 1, 0] = torch.nan
    with pytest.raises(NonFiniteLogits, match=f"image 0, channel 0, row 0, column {column}:"):
        sampler.sample(1, condition=condition, runtime=runtime)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_the_image_whose_pixel_is_drawn_first_is_named(runtime):
    """Though others have one without finite logits, too: in a row below, and further to the right. Threads have images
    of their own."""
    model = enlivened(GatedPixelCNN(1, 8, (1,), condition_channels=1, levels=4))
    sampler, condition = Sampler(model, (1, 3, 5)), torch.zeros(6, 1, 3, 5)
    condition[1, 0, 1, 0] = condition[4, 0, 0, 3] = condition[0, 0, 0, 4] = torch.nan
    with pytest.raises(NonFiniteLogits, match="image 4, channel 0, row 0, column 3:"):
        sampler.sample(6, condition=condition, runtime=runtime)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_the_channel_that_is_drawn_first_is_named(runtime):
    """Though an image before it has none in a channel that is drawn later."""
    condition = torch.zeros(3, 2, 2, 3)
    model, shape = ChannelByChannel(), (2, 2, 3)
    sampler = Sampler(model, shape, condition_shape=shape, image_form="unit", head=Categorical(4))
    condition[0, 1, 0, 1] = condition[2, 0, 0, 1] = torch.nan
    with pytest.raises(NonFiniteLogits, match="image 2, channel 0, row 0, column 1:"):
        sampler.sample(3, condition=condition, runtime=runtime)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_ctrl_c_keeps_the_finished_images(runtime, monkeypatch):
    sampler, u = Sampler(pixelcnn().double(), (1, 4, 4)), noise(6, (1, 4, 4))
    whole = sampler.sample(6, noise=u)
    rows = 0

    class Bar:
        def __init__(self, **_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def update(self, _):
            nonlocal rows
            rows += 1
            if rows == 11:  # in the third batch; a batch makes 5 updates
                raise KeyboardInterrupt

    monkeypatch.setattr("pixelcnn_fast.call.progress_bar", Bar)
    with pytest.raises(SamplingInterrupted, match="4 of 6") as stopped:
        sampler.sample(6, noise=u, batch_size=2, runtime=runtime)
    assert torch.equal(stopped.value.images, whole[:4])


def test_one_sampler_in_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    sampler = Sampler(pixelcnn(hidden=32), (1, 6, 6))
    noises = [noise(3, (1, 6, 6), seed) for seed in range(6)]
    expected = [sampler.sample(3, noise=u) for u in noises]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda u: sampler.sample(3, noise=u), noises))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.long])
def test_the_images_that_are_completed_stay_the_caller_s(dtype, runtime):
    images = torch.full((2, 1, 3, 4), 7, dtype=dtype)
    found = Sampler(pixelcnn(), (1, 3, 4)).complete(images, torch.eye(3, 4).bool(), runtime=runtime)
    assert (images == 7).all() and not (found == 7).all()
