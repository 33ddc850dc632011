"""Leaks that changed sub-pixels show, what the refusal names, and which channels are drawn together."""

import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import NonFiniteLogits, NotCausal, Sampler, UnknownLayout, Unsupported
from pixelcnn_fast.check.perturbation import FEW, observed
from pixelcnn_fast.heads import Bernoulli, Categorical
from pixelcnn_fast.models import GatedPixelCNN
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.heads.test_own_head import Net, Pair
from tests.sampler_life.common import silence
from tests.system.foreign import Strided
from tests.system.networks import Written, pixelcnn
from tests.system.uncapturable import LEVELS, NETWORKS, ORDERED, Attention, network

LARGE = (1, 12, 14)  # so that not every pixel is tested


class Changed(nn.Module):
    """A causal network, and a leak [N, C, H, W], or what broadcasts to it, that is added to the last level's logits."""

    def __init__(
        self, inner: nn.Module, leak: Callable[[Tensor], Tensor] = torch.zeros_like, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.inner, self.leak, self.weight, self.levels = inner, leak, weight, LEVELS

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        added = self.weight * self.leak(images.to(logits.dtype) / (LEVELS - 1))
        return logits + F.pad(added.expand(logits.shape[:-1])[..., None], (LEVELS - 1, 0))


class InFloat32(Changed):
    """Can't be run in float64."""

    def forward(self, images: Tensor) -> Tensor:
        if next(self.parameters()).dtype != torch.float32:
            raise RuntimeError("expected float32")
        return super().forward(images)


def draws(model: nn.Module, shape: tuple[int, int, int]) -> int:
    return observed(WrappedModel(model, shape)).draws


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETWORKS)
def test_causal_networks_pass_and_ordered_channels_are_told_from_others(
    name: str, dtype: torch.dtype
) -> None:
    model, shape = network(name)
    assert draws(model.to(dtype), shape) == (shape[0] if name in ORDERED else 1)


@pytest.mark.parametrize("channel_order", [None, "thirds"])
def test_large_images_pass(channel_order) -> None:
    assert 11 * 13 > FEW
    model = GatedPixelCNN(3, 14, [1, 2], levels=LEVELS, channel_order=channel_order)
    assert draws(model, (3, 11, 13)) == (1 if channel_order is None else 3)


def next_pixel(x: Tensor) -> Tensor:
    return x.flatten(2).roll(-1, 2).view(x.shape)


def only_at(y: int, x: int, to: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The output at (y, x) sees pixel ``to``."""

    def leak(images: Tensor) -> Tensor:
        seen = torch.zeros_like(images)
        seen[:, :, y, x] = images[:, :, to[0], to[1]]
        return seen

    return leak


def later_channel(x: Tensor) -> Tensor:
    return x.roll(-1, 1) * (torch.arange(x.shape[1]) == 0).view(-1, 1, 1)


LEAKS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "a mean": (lambda x: x.mean((1, 2, 3), keepdim=True), 1e-3),
    "a mean, of little weight": (lambda x: x.mean((1, 2, 3), keepdim=True), 1e-5),
    "the next pixel": (next_pixel, 0.01),
    "its own pixel": (lambda x: x, 0.01),
    "a maximum": (lambda x: x.amax((1, 2, 3), keepdim=True), 1.0),
    "a minimum": (lambda x: x.amin((1, 2, 3), keepdim=True), 1.0),
    "all highest": (lambda x: (x == 1).all(3).all(2).all(1).to(x.dtype).view(-1, 1, 1, 1), 1.0),
    "all lowest": (lambda x: (x == 0).all(3).all(2).all(1).to(x.dtype).view(-1, 1, 1, 1), 1.0),
    "the last pixel": (only_at(0, 0, (-1, -1)), 0.1),
    "the last pixel sees itself": (only_at(-1, -1, (-1, -1)), 0.1),
    "the first pixel sees itself": (only_at(0, 0, (0, 0)), 0.1),
    "the end of its row, by a roll": (lambda x: x.roll(1, 3), 0.01),
    "the last row, by a roll": (lambda x: x.roll(1, 2), 0.01),
}


def base(shape: tuple[int, int, int], ordered: bool = False) -> Attention:
    torch.manual_seed(0)
    return Attention(shape, ordered)


def named(message: str, name: str) -> tuple[int, int, int]:
    found = re.search(rf"{name} channel (\d+), row (\d+), column (\d+)", message)
    assert found, message
    channel, row, column = map(int, found.groups())
    return channel, row, column


def assert_refused_rightly(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """It is not causal, and the output that the error names depends on the sub-pixel that it names."""
    with pytest.raises(NotCausal) as caught:
        Sampler(model, shape, runtime="reference")
    output, seen = named(str(caught.value), "the output at"), named(str(caught.value), "depends on")
    assert seen[1:] + seen[:1] >= output[1:] + output[:1]
    levels = cast(int, model.levels)
    contexts = torch.randint(levels, (40, *shape), generator=torch.Generator().manual_seed(0))
    contexts[::4], contexts[1::4] = levels - 1, 0
    changed = contexts.clone()
    changed[(slice(None), *seen)] = levels - 1 - changed[(slice(None), *seen)]
    changed[(slice(2, None, 4), *seen)] = levels - 1
    model = model.double()
    with torch.no_grad():
        moved = (model(contexts) - model(changed))[(slice(None), *output)]
    assert moved.abs().max() > 1e-10


@pytest.mark.parametrize("shape", [(1, 4, 5), LARGE], ids=str)
@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_found_and_named(name: str, shape: tuple[int, int, int]) -> None:
    assert_refused_rightly(Changed(base(shape), *LEAKS[name]), shape)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("leak", [later_channel, lambda x: x, next_pixel, LEAKS["a mean"][0]])
def test_leaks_between_channels_are_found_and_named(leak: Callable[[Tensor], Tensor], ordered: bool) -> None:
    shape = (3, 3, 4)
    assert_refused_rightly(Changed(base(shape, ordered), leak, 0.01), shape)


@pytest.mark.parametrize(("seeing", "seen"), [(0, 1), (1, 1), (1, 2), (2, 2)])
def test_a_leak_of_one_channel_within_the_pixel_is_found(seeing: int, seen: int) -> None:
    def leak(x: Tensor) -> Tensor:
        return x.roll(seeing - seen, 1) * (torch.arange(3) == seeing).view(-1, 1, 1)

    assert_refused_rightly(Changed(base((3, 3, 4), ordered=True), leak, 0.1), (3, 3, 4))


def test_one_channel_that_sees_an_earlier_one_orders_them() -> None:
    shape = (3, 3, 4)
    model = Changed(base(shape), lambda x: x.roll(1, 1) * (torch.arange(3) == 2).view(-1, 1, 1), 1e-6)
    assert draws(model, shape) == 3


ROWS, COLUMNS = torch.arange(12).view(-1, 1), torch.arange(14)


@pytest.mark.parametrize("dy", range(4))
@pytest.mark.parametrize("dx", range(4))
def test_every_phase_of_a_stride_is_tested(dy: int, dx: int) -> None:
    """Outputs of one phase see their own pixel."""
    model = Changed(base(LARGE), lambda x: x * ((ROWS % 4 == dy) & (COLUMNS % 4 == dx)), 0.1)
    with pytest.raises(NotCausal):
        draws(model, LARGE)


@pytest.mark.parametrize("where", [*(ROWS == i for i in range(12)), *(COLUMNS == i for i in range(14))])
def test_every_row_and_every_column_is_tested(where: Tensor) -> None:
    """Outputs of one row, or column, see their own pixel or, in a row, also the last one."""
    along = where.expand(12, 14)
    model = Changed(base(LARGE), lambda x: (x + x[..., -1:]) * along, 0.1)
    with pytest.raises(NotCausal):
        draws(model, LARGE)


@pytest.mark.parametrize("at", [1, 12])
@pytest.mark.parametrize("shape", [(1, 14, 8), (1, 8, 14)])
def test_the_whole_of_a_longer_side_is_tested(shape: tuple[int, int, int], at: int) -> None:
    """Outputs of one row of a high image, or of one column of a wide one, see their own pixel."""
    where = (torch.arange(14) == at).view((-1, 1) if shape[1] == 14 else (1, -1))
    with pytest.raises(NotCausal):
        draws(Changed(base(shape), lambda x: x * where, 0.1), shape)


def test_a_stride_that_looks_ahead_is_found() -> None:
    class Early(Strided):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.roll(-1, 2))

    torch.manual_seed(0)
    assert draws(Strided(LEVELS), LARGE) == 1
    assert_refused_rightly(Early(LEVELS), LARGE)


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "lowest": lambda x: (x == 0).all(3).view(-1),
    "highest": lambda x: (x == 1).all(3).view(-1),
    "random": lambda x: ((x > 0) & (x < 1)).any(3).view(-1),
}


@pytest.mark.parametrize(
    ("first", "last"),
    [("random", "lowest"), ("random", "highest"), ("lowest", "highest"), ("highest", "lowest")],
)
def test_a_leak_that_only_some_images_show_is_found(first: str, last: str) -> None:
    """The leak is there if the first and the last row are as given."""

    def leak(x: Tensor) -> Tensor:
        there = EXTREMES[first](x[:, :, :1]) & EXTREMES[last](x[:, :, -1:])
        return there.to(x.dtype).view(-1, 1, 1, 1)

    with pytest.raises(NotCausal):
        draws(Changed(base((1, 4, 5)), leak), (1, 4, 5))


def test_a_leak_that_only_dark_images_show_is_found() -> None:
    def dark(net: Any, images: Tensor) -> Tensor:
        """It sees the last row of images without a bright pixel."""
        is_dark = (images < 64).flatten(1).all(1) & (images[:, :, -1] > 0).flatten(1).any(1)
        return net.inner(images) * (1 + is_dark.view(-1, 1, 1, 1, 1))

    with pytest.raises(NotCausal):
        draws(Written(dark, inner=pixelcnn()), (1, 3, 4))


class SeesItselfFor(nn.Module):
    """Three classes, one of which leaks."""

    levels, n_classes = LEVELS, 3

    def __init__(self, inner: nn.Module, leaking: int) -> None:
        super().__init__()
        self.inner, self.leaking = inner, leaking

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.inner(images)
        return logits * (1 + images[..., None] * (labels == self.leaking).view(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("leaking", range(3))
def test_a_leak_for_one_condition_is_found(leaking: int) -> None:
    with pytest.raises(NotCausal):
        draws(SeesItselfFor(base((1, 4, 5)), leaking), (1, 4, 5))


def test_a_model_that_is_written_for_float32_is_tested_in_float32() -> None:
    shape = (1, 4, 5)
    assert draws(InFloat32(base(shape)), shape) == 1
    with pytest.raises(RuntimeError, match="expected float32"):
        InFloat32(base(shape)).double()(torch.zeros(1, *shape))
    for name in ("a mean", "the next pixel", "a maximum", "all lowest"):
        with pytest.raises(NotCausal, match="depends on"):
            draws(InFloat32(base(shape), *LEAKS[name]), shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_no_leak(dtype: torch.dtype) -> None:
    shape = (1, 4, 5)
    assert draws(base(shape).to(dtype), shape) == 1
    with pytest.raises(NotCausal):
        draws(Changed(base(shape), *LEAKS["a mean"]).to(dtype), shape)


def test_a_leak_too_small_to_name_one_sub_pixel_names_several() -> None:
    """In float32, what each pixel does is lost in the tolerance."""
    shape = (1, 10, 10)
    with pytest.raises(
        NotCausal, match=r"depends on one of the sub-pixels from channel 0, row \d+, column \d+ to "
    ):
        draws(InFloat32(base(shape), LEAKS["a mean"][0], 3e-4), shape)


def test_a_number_that_is_read_over_the_batch_is_found() -> None:
    """In a batch with random images it is always the same."""
    shape = (1, 5, 6)

    class Reading(Changed):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (2 if images[:, :, -1].sum().item() > 0 else 1)

    with pytest.raises((NotCausal, Unsupported)):
        draws(Reading(base(shape)), shape)


def test_a_joint_head_must_not_see_its_own_pixel() -> None:
    def sampler(model: nn.Module) -> Sampler:
        return Sampler(model, (2, 4, 5), head=Pair(), image_form="levels", runtime="reference")

    class Seeing(Net):
        at = 0

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + 1e-3 * images.roll(-self.at, 3)[:, 1:]

    assert sampler(Net()).sample(2).shape == (2, 2, 4, 5)
    with pytest.raises(
        NotCausal, match=r"the output at row (\d), column (\d) depends on channel 1, row \1, column \2,"
    ):
        sampler(Seeing())
    seeing = Seeing()
    seeing.at = 1
    with pytest.raises(NotCausal, match=r"depends on channel 1"):
        sampler(seeing)


# -- what can't be tested


def test_an_output_that_depends_on_the_batch_or_on_chance_is_refused() -> None:
    shape = (1, 4, 5)
    past = lambda x: F.pad(x, (1, 0))[..., :-1]  # noqa: E731
    for leak in (
        lambda x: past(x).mean(0, keepdim=True),
        lambda x: 0.01 * torch.randn(x.shape, dtype=x.dtype),
    ):
        with pytest.raises(Unsupported, match="other images of the batch, or on chance"):
            Sampler(Changed(base(shape), leak), shape, runtime="reference")


@pytest.mark.parametrize(
    "among",
    [
        lambda e, y: e - e.mean(0),
        lambda e, y: e.roll(1, 0),
        lambda e, y: e * (1 + (y == 7).any()),
        lambda e, y: e.cumsum(0),
    ],
)
def test_labels_that_count_for_other_images_are_refused(among: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.embedding = base((1, 4, 5)), nn.Embedding(10, 1)
            self.n_classes, self.levels = 10, LEVELS

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x) * (2 + among(self.embedding(y), y).view(-1, 1, 1, 1, 1))

    with pytest.raises(Unsupported, match="other images of the batch"):
        Sampler(Labelled().double(), (1, 4, 5), runtime="reference")


@pytest.mark.parametrize("among", [lambda c: c - c.mean(0), lambda c: c.roll(1, 0), lambda c: c.cumsum(0)])
def test_a_condition_that_counts_for_other_images_is_refused(among: Callable[[Tensor], Tensor]) -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.levels = base((1, 4, 5)), LEVELS

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.net(x) * (2 + among(condition).sum(1).view(-1, 1, 1, 1, 1))

    with pytest.raises(Unsupported, match="other images of the batch"):
        Sampler(Conditioned().double(), (1, 4, 5), condition_shape=(2,), runtime="reference")


def test_outputs_that_are_not_finite_are_refused() -> None:
    shape = (1, 4, 5)
    always = Changed(base(shape), only_at(0, 0, (0, 0)), float("nan"))
    highest = Changed(base(shape), lambda x: 1 / (1 - LEAKS["all highest"][0](x)))
    half = Changed(base(shape), lambda x: torch.full_like(x, 1e4), 1e4).half()  # and finite in float64
    for model in (always, highest, half):
        with pytest.raises(NonFiniteLogits):
            Sampler(model, shape, runtime="reference")


def test_probabilities_are_not_taken_for_logits() -> None:
    shape = (1, 4, 5)

    class Softmax(Changed):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(-1)

    with pytest.raises(UnknownLayout, match="sums to 1 over the levels.*probabilities=True"):
        Sampler(Softmax(base(shape)), shape, runtime="reference")
    head = Categorical(LEVELS, "N,C,H,W,L", probabilities=True)
    assert Sampler(Softmax(base(shape)), shape, runtime="reference", head=head).head == head

    class Sigmoid(Changed):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[..., 0].sigmoid()

    with pytest.warns(UserWarning, match="between 0 and 1.*probabilities=True") as caught:
        Sampler(Sigmoid(base(shape)), shape, runtime="reference", head=Bernoulli())
    assert [warning.filename for warning in caught] == [__file__]
    Sampler(Sigmoid(base(shape)), shape, runtime="reference", head=Bernoulli(probabilities=True))


def test_logits_are_not_taken_for_probabilities() -> None:
    shape = (1, 4, 5)

    class OfSumOne(Changed):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits - logits.mean(-1, keepdim=True) + 1 / LEVELS

    class Likely(Changed):
        """Its probabilities have logits between 0 and 1."""

        def forward(self, images: Tensor) -> Tensor:
            return (0.5 + 0.4 * super().forward(images)[..., 0].tanh()).sigmoid()

    with silence():
        Sampler(OfSumOne(base(shape)), shape, runtime="reference")
        Sampler(Likely(base(shape)), shape, runtime="reference", head=Bernoulli(probabilities=True))


def test_an_output_that_fits_no_head_is_refused() -> None:
    with pytest.raises(UnknownLayout, match="expected to be"):
        Sampler(Changed(base((1, 4, 5))), (1, 4, 5), runtime="reference", head=Categorical(LEVELS + 1))

    class Wrong(Pair):
        def arranged(self, output: Tensor, channels: int) -> Tensor:
            return super().arranged(output, channels).movedim(1, 2)

    with pytest.raises(
        UnknownLayout, match=r"makes \[2, 4, 1, 5, 5\] of the model's output.*\[2, 1, 4, 5, 'parameters'\]"
    ):
        Sampler(Net(), (2, 4, 5), head=Wrong(), image_form="levels", runtime="reference")
