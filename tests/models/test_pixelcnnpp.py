from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads import LogisticMixture
from pixelcnn_fast.models import PixelCNNpp, reference
from pixelcnn_fast.nn import ShiftedConv2d
from tests.models.training import assert_losses_agree
from tests.system.agreement import assert_runtimes_agree
from tests.tiers import thorough
from tests.tolerances import assert_as_exact_as_plain, assert_identical_up_to_rounding

SMALL: dict[str, Any] = dict(n_filters=5, n_resnets=1, n_mixtures=2, dropout=0.0)


def small(**settings: Any) -> PixelCNNpp:
    """With lively weights."""
    torch.manual_seed(0)
    model = PixelCNNpp(**SMALL | settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double()


def plain(model: PixelCNNpp) -> reference.PixelCNNpp:
    found = reference.PixelCNNpp(**model.config).to(model.nin_out.weight_v.dtype)
    found.load_state_dict(model.state_dict())
    model.load_state_dict(found.state_dict())
    return found


def levels(n: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def results(model: torch.nn.Module, *given: Tensor) -> list[Tensor]:
    """The output, and the gradient of each parameter."""
    y = model(*given)
    along = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [*model.parameters()], along)]


# The last one has pixels enough for the library's convolutions.
@pytest.mark.parametrize("size", [(7, 5), (1, 1), (4, 12), (2, 9), (40, 28)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_reference(channels: int, size: tuple[int, int]) -> None:
    model = small(input_channels=channels, n_resnets=2)
    images = levels(2, channels, *size)
    for x in (images, images.double() / 127.5 - 1):
        for got, expected in zip(results(model, x), results(plain(model), x), strict=True):
            assert_identical_up_to_rounding(got, expected)
    assert model(images).shape == (2, 2 * (10 if channels == 3 else 3), *size)


def test_labels_enter_as_in_the_reference() -> None:
    model, images, labels = small(n_classes=3), levels(3, 3, 7, 5), torch.tensor([2, 0, 1])
    for got, expected in zip(
        results(model, images, labels), results(plain(model), images, labels), strict=True
    ):
        assert_identical_up_to_rounding(got, expected)
    assert (model(images, labels) != model(images, labels.flip(0)))[[0, 2]].all()


def test_in_float32() -> None:
    model, images = small(n_resnets=2), levels(2, 3, 40, 28)
    exact = results(plain(model), images)
    found = zip(results(model.float(), images), results(plain(model), images), exact, strict=True)
    output, *gradients = ([x.flatten() for x in each] for each in found)
    assert_as_exact_as_plain(*output)
    assert_as_exact_as_plain(*map(torch.cat, zip(*gradients, strict=True)))


def test_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PixelCNNpp().parameters()) == 53_659_080


def test_a_pixel_sees_all_that_comes_before_it_and_nothing_else() -> None:
    model, (height, width) = small(n_resnets=2), (6, 9)
    images = torch.rand(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    output = model(images)
    number = torch.arange(height * width).view(height, width)
    for y in range(height):
        for x in range(width):
            seen = torch.autograd.grad(output[0, :, y, x].sum(), images, retain_graph=True)[0][0] != 0
            assert torch.equal(seen, (number < number[y, x]).expand_as(seen)), (y, x)


@pytest.mark.parametrize("n_classes", [None, 2])
def test_initialised_from_images(n_classes: int | None) -> None:
    model, images = small(n_classes=n_classes), levels(4, 3, 8, 8)
    given = [images] if n_classes is None else [images, torch.tensor([0, 1, 1, 0])]
    model.initialise_from(*given)
    outputs: list[tuple[ShiftedConv2d, Tensor]] = []
    for module in model.modules():
        if isinstance(module, ShiftedConv2d):
            assert not module._forward_hooks
            module.register_forward_hook(lambda layer, args, y: outputs.append((layer, y)))
    model(*given)
    assert len(outputs) > 30
    for layer, y in outputs:
        deviation, mean = torch.std_mean(y, (0, 2, 3), correction=0)
        assert_identical_up_to_rounding(mean, torch.zeros_like(mean))
        assert_identical_up_to_rounding(deviation, torch.full_like(mean, layer.scale))
    before = model(*given).detach()
    model.initialise_from(*given)
    assert_identical_up_to_rounding(model(*given).detach(), before)


def test_dropout_takes_part_in_training_only() -> None:
    model, images = small(dropout=0.5), levels(2, 3, 4, 4)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert_identical_up_to_rounding(model(images).detach(), plain(model).eval()(images).detach())


def test_training_follows_the_reference() -> None:
    fast = small()
    assert_losses_agree(fast, plain(fast), lambda model: model(levels(2, 3, 8, 8)).square().mean(), 4)


def test_under_autocast_and_without_images() -> None:
    model, images, labels = small(n_classes=2).float(), levels(2, 3, 32, 32), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images, labels).isfinite().all()
    assert model(images[:0], labels[:0]).shape == (0, 20, 32, 32)


@thorough
def test_compiled() -> None:
    model, images, labels = small(n_classes=2), levels(2, 3, 32, 32), torch.tensor([0, 1])
    expected_ones = results(model, images, labels)
    model.compile(fullgraph=True, backend="aot_eager")
    for got, expected in zip(results(model, images, labels), expected_ones, strict=True):
        assert_identical_up_to_rounding(got, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(input_channels=2), "input_channels is 2, expected 1 or 3"),
        (dict(n_filters=0), "n_filters is 0, expected an integer of 1 or more"),
        (dict(n_resnets="5"), "n_resnets is '5'"),
        (dict(n_mixtures=0), "n_mixtures is 0"),
        (dict(n_classes=0), "n_classes is 0"),
    ],
)
def test_bad_construction_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCNNpp(**SMALL | settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([levels(2, 1, 4, 4)], r"expected \[N, 3, H, W\]"),
        ([levels(2, 3, 4, 4).long()], "floating point in -1...1"),
        ([levels(2, 3, 4, 4), torch.tensor([0, 1])], "without classes"),
    ],
)
def test_bad_input_is_refused(given: list[Tensor], message: str) -> None:
    model = small()
    for function in (model, model.initialise_from):
        with pytest.raises(ValueError, match=message):
            function(*given)
    with pytest.raises(ValueError, match="there are no images to initialise from"):
        model.initialise_from(levels(0, 3, 4, 4))


def test_the_head_of_another_s_module_is_not_guessed() -> None:
    class WithMixtures(nn.Conv2d):
        n_mixtures = 2

    with pytest.raises(UnknownLayout, match=r"mixtures.*head=LogisticMixture\(components\)"):
        Sampler(WithMixtures(1, 6, (3, 3), padding=1), (1, 4, 5), image_form="centred")
    assert isinstance(Sampler(nn.DataParallel(small(input_channels=1)), (1, 4, 5)).head, LogisticMixture)


@pytest.mark.parametrize(("channels", "size", "n_classes"), [(3, (6, 8), None), (1, (7, 5), 3)])
def test_every_runtime_draws_the_same_images(
    channels: int, size: tuple[int, int], n_classes: int | None
) -> None:
    torch.manual_seed(0)
    net = PixelCNNpp(channels, 6, 1, 2, n_classes=n_classes).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("weight_g"):
                parameter.mul_(1.5)  # else pixels hardly depend on each other
    sampler = Sampler(net, (channels, *size), conditional=n_classes is not None)  # which knows the head
    labels = None if n_classes is None else torch.arange(2) % n_classes
    assert assert_runtimes_agree(sampler, 2, labels=labels).unique().numel() > 20
