"""Gated PixelCNNs and ordered colours: same noise, same images in every runtime, and the right phases."""

from functools import cache

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from pixelcnn_fast.models.pixel_rnn import Kind
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.nn.channel_order import ChannelOrder
from pixelcnn_fast.program.phased import Phase
from tests.needs import needs_native
from tests.system.agreement import assert_runtimes_agree, noise
from tests.system.networks import enlivened
from tests.tolerances import assert_identical_up_to_rounding


def gated(**kwargs) -> GatedPixelCNN:
    torch.manual_seed(1)
    return enlivened(GatedPixelCNN(**{"hidden_channels": 8, "dilations": (1, 2, 1), **kwargs})).double()


def ordered(order: ChannelOrder, **kwargs) -> PixelCNN:
    torch.manual_seed(2)
    return enlivened(PixelCNN(3, 8, 1, channel_order=order, **kwargs)).double()


def recurrent(kind: Kind, **kwargs) -> PixelRNN:
    torch.manual_seed(4)
    settings = {"hidden_channels": 5, "n_layers": 2, "kernel_size": 3, "learn_initial_state": True, **kwargs}
    return enlivened(PixelRNN(kind, **settings)).double()


def with_zero_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Zeroes the norms' weights, as residual blocks are often initialised."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.zero_()
    return model


class TwoLayers(torch.nn.Module):
    """Two 3x3 convolutions on rows above and the left; centre[o, i]: whether output o sees input i at its pixel."""

    n_classes = None

    def __init__(self, colours: int, centre1: list[list[int]], centre2: list[list[int]]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convs, self.masks = torch.nn.ModuleList(), []
        for width, centre in ((colours, torch.tensor(centre1)), (len(centre1), torch.tensor(centre2))):
            self.convs.append(torch.nn.Conv2d(width, len(centre), 3, padding=1))
            mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(len(centre), width, 1, 1)
            mask[:, :, 1, 1] = centre
            self.masks.append(mask)
        self.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.double() / 128 - 1
        for conv, mask in zip(self.convs, self.masks, strict=True):
            assert isinstance(conv, torch.nn.Conv2d)
            x = torch.nn.functional.conv2d(torch.tanh(x), conv.weight * mask, conv.bias, padding=1)
        return (8 * x).unflatten(1, (images.shape[1], -1)).permute(0, 1, 3, 4, 2)


SEES_IT, DOES_NOT = [1], [0]
CASES = {
    # Green and blue can be computed at the same time, but are drawn one after the other.
    "green and blue see red": (
        TwoLayers(3, [[0, 0, 0], [1, 0, 0]] * 2, [[1, 0] * 2] * 256 + [[1, 1] * 2] * 512),
        (3, 4, 5),
    ),
    # At their own pixel the logits may read only those features that do not see it.
    "some features see their pixel": (TwoLayers(1, [SEES_IT, DOES_NOT] * 3, [[0, 1] * 3] * 256), (1, 5, 5)),
    "gated": (gated(input_channels=1), (1, 7, 6)),
    "gated with labels": (gated(input_channels=2, n_classes=4), (2, 5, 6)),
    "gated, 5x5": (gated(input_channels=1, kernel_size=5, dilations=(1, 1)), (1, 6, 6)),
    "thirds": (ordered("thirds"), (3, 4, 5)),
    "thirds, with zero norms": (with_zero_norms(ordered("thirds")), (3, 4, 4)),
    "interleaved with labels": (ordered("interleaved", n_classes=4, kernel_size=3), (3, 5, 4)),
    "gated thirds": (gated(channel_order="thirds"), (3, 4, 5)),
    "gated interleaved with labels": (gated(channel_order="interleaved", n_classes=4), (3, 5, 4)),
    "rows": (recurrent("row_lstm", input_channels=1), (1, 6, 7)),
    "rows, thirds, with labels": (recurrent("row_lstm", channel_order="thirds", n_classes=4), (3, 4, 5)),
    "diagonals": (recurrent("diagonal_bilstm", input_channels=2, n_classes=4), (2, 6, 5)),
    "diagonals, interleaved": (recurrent("diagonal_bilstm", channel_order="interleaved"), (3, 4, 4)),
    "gated of two colours": (gated(input_channels=2, channel_order="thirds"), (2, 5, 5)),
}


@cache
def sampler_of(name: str) -> Sampler:
    return Sampler(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_same_noise_same_images_as_naive(name):
    model, shape = CASES[name]
    labels = torch.tensor([0, 3, 1]) if model.n_classes else None
    sampler, u = sampler_of(name), noise(3, shape)
    naive = assert_runtimes_agree(sampler, 3, u=u, labels=labels)
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    expected = (model(images) if labels is None else model(images, labels)).detach()
    for runtime in ("eager", "auto"):
        assert_identical_up_to_rounding(sampler.logits(images, labels, runtime), expected)
    known = torch.rand(3, *shape) < 0.5
    kept = sampler.complete(naive, known, labels, noise=u)
    assert torch.equal(kept, naive)


@needs_native
@pytest.mark.parametrize(
    "name",
    ["gated", "thirds", "gated interleaved with labels", "rows", "rows, thirds, with labels", "diagonals"],
)
def test_waves_and_single_rows_give_the_same_bits(name):
    model, shape = CASES[name]
    sampler, images = sampler_of(name), torch.randint(0, 256, (15, *shape))
    labels = torch.arange(15) % 4 if model.n_classes else None
    whole = sampler.logits(images, labels)
    for n in (1, 2, 5):
        few = None if labels is None else labels[:n]
        assert torch.equal(sampler.logits(images[:n], few), whole[:n])


def test_a_vertical_stack_is_all_row_phase():
    program = sampler_of("gated")._engine.require_compiled().program
    vertical = [i for i in program.instructions if i.name.endswith((".vertical", ".link"))]
    assert vertical and all(i.phase is Phase.ROW for i in vertical)


def test_each_weight_of_an_ordered_model_is_applied_once_for_a_pixel():
    """The features of each colour are separate, so that those that see one more colour are computed after its draw, and
    only once."""
    model, _ = CASES["thirds"]
    program = sampler_of("thirds")._engine.require_compiled().program
    assert len(program.outputs) == 3
    live = sum(int(m.mask.sum()) for m in model.modules() if isinstance(m, MaskedConv2d))
    listed = sum(
        int((run.weight != 0).sum()) for i in program.instructions for run in i.row_runs + i.pixel_runs
    )
    assert listed == live
    for draw in range(3):
        assert any(i.after == draw and i.phase is Phase.PIXEL for i in program.instructions)


class Foreign(torch.nn.Module):
    """Takes its condition, a vector, as the last argument, under a name of its own."""

    def __init__(self):
        super().__init__()
        self.inner = gated(input_channels=1, condition_channels=2, n_classes=4)

    def forward(self, x, y, z):
        return self.inner(x, y, z[:, :, None, None].expand(-1, -1, *x.shape[2:]).sin())


@pytest.mark.parametrize("name", ["a map", "a map and labels", "colours in order", "a vector, last"])
def test_conditions_that_are_given(name):
    cases: dict[str, tuple[torch.nn.Module, tuple[int, ...] | None, tuple[int, ...]]] = {
        "a map": (gated(input_channels=1, condition_channels=3), None, (3, 3, 4)),
        "a map and labels": (gated(input_channels=1, condition_channels=2, n_classes=4), None, (2, 3, 4)),
        "colours in order": (gated(condition_channels=2, channel_order=True), None, (2, 3, 4)),
        "a vector, last": (Foreign(), (2,), (2,)),
    }
    model, given_shape, shape = cases[name]
    channels = 3 if name == "colours in order" else 1
    labels = torch.tensor([0, 3, 1]) if "labels" in name or "vector" in name else None
    sampler = Sampler(model, (channels, 3, 4), condition_shape=given_shape)
    condition, u = torch.randn(3, *shape), torch.rand(3, channels, 3, 4, dtype=torch.float64)
    naive = assert_runtimes_agree(sampler, 3, batch_sizes=(2,), u=u, labels=labels, condition=condition)
    assert not torch.equal(
        naive, sampler.sample(3, labels, condition=-condition, noise=u, runtime="reference")
    )
    known = torch.eye(3, 4).bool()
    for runtime in ("eager", "auto"):
        kept = sampler.complete(naive, known, labels, noise=u, runtime=runtime, condition=condition)
        assert torch.equal(kept, naive)
        logits = sampler.logits(naive, labels, runtime, condition)
        assert_identical_up_to_rounding(logits, sampler.logits(naive, labels, "reference", condition))
    for wrong in (None, condition[:2], condition.to(torch.complex64)):
        with pytest.raises(ValueError, match="the condition is"):
            sampler.sample(3, labels, condition=wrong)


@needs_native
def test_images_that_share_threads_have_their_own_arguments() -> None:
    """Each thread draws some of the images."""
    sampler = Sampler(
        gated(input_channels=2, condition_channels=3, n_classes=4, channel_order=True), (2, 5, 6)
    )
    u, labels, condition = (
        torch.rand(9, 2, 5, 6, dtype=torch.float64),
        torch.arange(9) % 4,
        torch.randn(9, 3, 5, 6),
    )
    known = torch.rand(9, 2, 5, 6) < 0.3
    threads = torch.get_num_threads()
    results: list[list[torch.Tensor]] = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            drawn, found = sampler.sample(9, labels, noise=u, condition=condition, log_probability=True)
            kept = sampler.complete(255 - drawn, known, labels, noise=u, condition=condition)
            results.append([drawn, found, kept, sampler.logits(drawn, labels, "cpu", condition)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_an_unexpected_condition_is_refused():
    with pytest.raises(ValueError, match="condition_shape="):
        sampler_of("gated").sample(1, condition=torch.zeros(1, 1, 7, 6))


def test_a_leak_between_colours_is_refused():
    from pixelcnn_fast.errors import NotCausal

    model = ordered("thirds")
    layer = model.get_submodule("blocks.0.conv1")
    assert isinstance(layer, MaskedConv2d)
    layer.mask[0, -1, 1, 1] = 1  # a feature of the first colour sees one of the last
    with pytest.raises(NotCausal, match=r"conv1.*channels' masks"):
        Sampler(model, (3, 5, 6))
