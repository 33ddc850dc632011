from typing import Any

import pytest
import torch

from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, reference
from tests.system.networks import positive
from tests.tolerances import assert_identical_up_to_rounding

SIZES: dict[str, Any] = dict(
    input_channels=3,
    hidden_channels=7,
    dilations=[1, 2, 1],
    n_classes=4,
    condition_channels=2,
    kernel_size=5,
    levels=8,
)


def inputs(n: int = 3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 8, (n, 3, 7, 5), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 4, torch.randn(n, 2, 7, 5, generator=generator)


@pytest.mark.parametrize("channel_order", [None, "thirds", "interleaved"])
def test_equals_the_reference(channel_order):
    fast = GatedPixelCNN(**SIZES, channel_order=channel_order)
    plain = reference.GatedPixelCNN(**SIZES, channel_order=channel_order)
    for (key, a), b in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        assert not key.endswith("mask") or torch.equal(a, b), key
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    images, labels, condition = inputs()
    fast, plain, condition = fast.double(), plain.double(), condition.double()
    for x in (images, images.double() / 7, images.double()):
        got, expected = fast(x, labels, condition).detach(), plain(x, labels, condition).detach()
        assert_identical_up_to_rounding(got, expected)
    assert fast(images, labels, condition).shape == (3, 3, 7, 5, 8)


@pytest.mark.parametrize(
    ("channel_order", "hidden"), [(None, 7), ("thirds", 7), ("interleaved", 7), ("thirds", 9)]
)
@pytest.mark.parametrize("family", ["gated", "convolutional"])
def test_each_colour_sees_all_that_comes_before_it_and_nothing_else(family, channel_order, hidden):
    model: GatedPixelCNN | PixelCNN
    if family == "gated":
        model = GatedPixelCNN(3, hidden, [1, 2, 1, 4], channel_order=channel_order, levels=4)
    else:
        model = PixelCNN(3, hidden, n_residual=2, kernel_size=3, channel_order=channel_order)
    images = torch.rand(1, 3, 7, 9, requires_grad=True)
    logits = positive(model.eval())(images)
    row, column = torch.arange(7)[:, None], torch.arange(9)
    for y, x in [(0, 0), (3, 4)]:
        for colour in range(3):
            seen = torch.autograd.grad(logits[0, colour, y, x].sum(), images, retain_graph=True)[0][0] != 0
            earlier = (row < y) | ((row == y) & (column < x))
            assert not seen[:, ~earlier & ~((row == y) & (column == x))].any()
            assert seen[:, y, x].tolist() == [channel_order is not None and c < colour for c in range(3)]
            if family == "gated":  # no blind spot
                assert seen[:, earlier].all()


def test_gradients_reach_the_live_weights_and_only_those():
    model = GatedPixelCNN(**SIZES, channel_order=True)
    images, labels, condition = inputs()
    model(images, labels, condition).square().mean().backward()
    for name, module in model.named_modules():
        if hasattr(module, "mask"):
            assert (module.weight.grad[module.mask == 0] == 0).all(), name
            assert (module.weight.grad[module.mask == 1] != 0).any(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=torch.zeros(3, 1, 7, 5)), "expected"),
        (dict(labels=None), "class-conditional"),
        (dict(labels=torch.tensor([0, 1, 4])), "labels span"),
        (dict(condition=None), "spatial condition"),
        (dict(condition=torch.zeros(3, 2, 7, 4)), "the condition is"),
        (dict(condition=torch.zeros(3, 2, 7, 5, dtype=torch.long)), "the condition is torch.int64"),
        (dict(labels=[0, 1, 2]), r"labels are a list, expected a tensor of integers \[3\]"),
        (dict(labels=torch.tensor([0, -1, 2])), "labels span"),
        (dict(images=[0]), r"images are a list, expected a tensor \[N, 3, H, W\]"),
        (dict(images=torch.zeros(3, 7, 5)), r"images have shape \[3, 7, 5\]"),
    ],
)
def test_bad_input_is_refused(change, message):
    images, labels, condition = inputs()
    with pytest.raises(ValueError, match=message):
        GatedPixelCNN(**SIZES)(**dict(dict(images=images, labels=labels, condition=condition), **change))


def test_a_condition_for_a_model_without_one_is_refused():
    images, labels, condition = inputs()
    with pytest.raises(ValueError, match="a condition was given to a model without one"):
        GatedPixelCNN(**{**SIZES, "condition_channels": None})(images, labels, condition)


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 7, 5), torch.zeros(0, 3, 7, 5, dtype=torch.uint8)])
def test_no_images(images):
    logits = GatedPixelCNN(**SIZES)(images, torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, 7, 5))
    assert logits.shape == (0, 3, 7, 5, 8)


def test_bad_construction_is_refused():
    with pytest.raises(ValueError, match="channel_order"):
        GatedPixelCNN(channel_order="bgr")  # type: ignore[arg-type]  # there is no such order
    with pytest.raises(ValueError, match="more channels"):
        GatedPixelCNN(3, 2, channel_order="thirds")
