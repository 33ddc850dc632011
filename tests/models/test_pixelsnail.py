from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, likelihood
from pixelcnn_fast.models import PixelSNAIL, reference
from pixelcnn_fast.nn import ShiftedConv2d
from tests.models.training import assert_losses_agree
from tests.system.agreement import assert_runtimes_agree
from tests.tiers import few, thorough
from tests.tolerances import assert_identical_up_to_rounding

SMALL: dict[str, Any] = dict(channels=8, n_blocks=2, n_res_blocks=1, n_heads=2, dropout=0.0)
LEVELS, COARSE, CLASSES = 5, 6, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {},
    "all": dict(condition_levels=COARSE, n_cond_res_blocks=1, n_classes=CLASSES, n_out_res_blocks=1),
    "bottom": dict(condition_levels=COARSE, attention=False),
    "labels": dict(n_classes=CLASSES, n_res_blocks=2, kernel_size=3),
    "wide": dict(kernel_size=7, n_blocks=1),
}


def small(name: str = "attention", **settings: Any) -> PixelSNAIL:
    """With lively weights."""
    torch.manual_seed(0)
    model = PixelSNAIL(LEVELS, **SMALL | SETTINGS[name] | settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double()


def plain(model: PixelSNAIL) -> reference.PixelSNAIL:
    found = reference.PixelSNAIL(**model.config).to(model.above.weight_v.dtype)
    found.load_state_dict(model.state_dict())
    model.load_state_dict(found.state_dict())
    return found


def given(
    model: PixelSNAIL, n: int = 2, size: tuple[int, int] = (6, 4)
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images, and labels and a condition that is half as large, as far as it takes them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(LEVELS, (n, 1, *size), generator=generator)
    coarse = torch.randint(COARSE, (n, size[0] // 2, size[1] // 2), generator=generator)
    labels = None if model.n_classes is None else 2 - torch.arange(n) % CLASSES
    return images, labels, None if model.condition_levels is None else coarse


def results(model: nn.Module, *given: Tensor | None) -> list[Tensor]:
    """The output, and the gradient of each parameter."""
    y = model(*given)
    along = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [*model.parameters()], along)]


# The last one has pixels enough for the library's convolutions.
@pytest.mark.parametrize(
    ("size", "name"), few([*product([(6, 4), (28, 20), (2, 10), (10, 2)], SETTINGS)], len(SETTINGS) + 2)
)
def test_equals_the_reference(size: tuple[int, int], name: str) -> None:
    model = small(name)
    taken = given(model, 2, size)
    for got, expected in zip(results(model, *taken), results(plain(model), *taken), strict=True):
        assert_identical_up_to_rounding(got, expected)
    assert model(*taken).shape == (2, 1, *size, LEVELS)


def test_as_many_parameters_as_the_public_priors() -> None:
    with torch.device("meta"):
        top, bottom = PixelSNAIL(512), PixelSNAIL(512, attention=False, condition_levels=512)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (top, bottom)]
    assert counts == [84_873_280, 89_762_816]


def test_forms_of_images_and_conditions_and_a_single_pixel() -> None:
    model = small("all")
    images, labels, condition = given(model)
    assert condition is not None
    expected = model(images, labels, condition)
    for x in (images[:, 0], images.to(torch.uint8), images[:, 0].int()):
        assert torch.equal(model(x, labels, condition[:, None].to(torch.uint8)), expected)
    assert model(images[:0], torch.tensor([]).long(), condition[:0]).shape == (0, 1, 6, 4, LEVELS)
    one = small()
    assert_identical_up_to_rounding(
        one(images[:, :, :1, :1]).detach(), plain(one)(images[:, :, :1, :1]).detach()
    )


@pytest.mark.parametrize("name", ["attention", "bottom", "wide"])
def test_a_pixel_sees_what_comes_before_it_and_nothing_else(name: str) -> None:
    model, pixels = small(name), 24
    images, labels, condition = given(model, pixels)
    images = images[:1].expand(pixels, -1, -1, -1).clone()
    expected = model(images, labels, None if condition is None else condition[:1].expand(pixels, -1, -1))
    images.flatten(1).diagonal().add_(1).remainder_(LEVELS)
    found = model(images, labels, None if condition is None else condition[:1].expand(pixels, -1, -1))
    seen = (found != expected).any(-1).flatten(1).T  # what each pixel sees
    before = torch.ones(pixels, pixels).tril(-1).bool()
    if name == "attention":  # keys at a pixel are of what comes before it
        before[range(4, pixels, 4), range(3, pixels - 1, 4)] = False
    if name == "bottom":  # what is far away is not seen
        assert not (seen & ~before).any() and seen.sum() > 0.7 * before.sum()
    else:
        assert torch.equal(seen, before)


def test_labels_and_the_condition_matter_for_their_own_image_and_are_not_kept() -> None:
    model = small("all")
    images, labels, condition = given(model)
    assert labels is not None and condition is not None
    expected = model(images, labels, condition)
    other = condition.clone()
    other[1, 0, 0] = (other[1, 0, 0] + 1) % COARSE
    found = model(images, labels, other)
    assert torch.equal(found[0], expected[0]) and (found[1] != expected[1]).any(-1)[0, :2, :2].all()
    assert torch.equal(model(images, labels, condition), expected)
    assert (model(images, labels.flip(0), condition) != expected).all()


@pytest.mark.parametrize("name", ["attention", "all"])
def test_initialised_from_images(name: str) -> None:
    model = small(name)
    taken = given(model, 6)
    model.initialise_from(*taken)
    outputs: list[tuple[ShiftedConv2d, Tensor]] = []
    for module in model.modules():
        if isinstance(module, ShiftedConv2d):
            module.register_forward_hook(lambda layer, args, y: outputs.append((layer, y)))
    model(*taken)
    assert len(outputs) == sum(isinstance(module, ShiftedConv2d) for module in model.modules())
    for layer, y in outputs:
        deviation, mean = torch.std_mean(y, (0, 2, 3), correction=0)
        assert_identical_up_to_rounding(deviation, torch.full_like(mean, layer.scale))
        if layer.bias is not None:
            assert_identical_up_to_rounding(mean, torch.zeros_like(mean))


def test_dropout_takes_part_in_training_only() -> None:
    model = small("all", dropout=0.5)
    taken = given(model)
    assert not torch.equal(model(*taken), model(*taken))
    model.eval()
    assert_identical_up_to_rounding(model(*taken).detach(), plain(model).eval()(*taken).detach())


def test_training_follows_the_reference() -> None:
    fast = small("all")
    taken = given(fast)

    def loss_of(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(*taken).flatten(0, -2), taken[0].flatten())

    assert_losses_agree(fast, plain(fast), loss_of, 4)


def test_under_autocast() -> None:
    model = small("all").float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*given(model)).isfinite().all()


@thorough
def test_compiled() -> None:
    model = small("all")
    taken = given(model, 2, (28, 20))
    expected_ones = results(model, *taken)
    model.compile(fullgraph=True, backend="aot_eager")
    for got, expected in zip(results(model, *taken), expected_ones, strict=True):
        assert_identical_up_to_rounding(got, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(levels=1), "levels is 1, expected an integer of 2 or more"),
        (dict(channels=0), "channels is 0"),
        (dict(channels=6), "divided among n_heads = 2 heads, so take a multiple of 4"),
        (dict(kernel_size=4), "kernel_size is 4, expected an odd number"),
        (dict(kernel_size=1), "kernel_size is 1, expected an integer of 3 or more"),
        (dict(n_out_res_blocks=-1), "n_out_res_blocks is -1"),
        (dict(attention="no"), "attention is 'no', expected True or False"),
        (dict(condition_levels=0), "condition_levels is 0"),
        (dict(n_classes=0), "n_classes is 0"),
    ],
)
def test_bad_construction_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelSNAIL(**dict(levels=LEVELS) | SMALL | settings)


CODES = torch.zeros(2, 1, 6, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("name", "taken", "message"),
    [
        ("attention", [CODES.float()], r"images are torch.float32 \[2, 1, 6, 4\], expected integers 0...4, \[N, 1"),
        ("attention", [CODES.expand(2, 3, 6, 4)], r"expected integers 0...4, \[N, 1, H, W\]"),
        ("attention", [[0]], "images are a list"),
        ("attention", [CODES, torch.tensor([0, 1])], "without classes"),
        ("attention", [CODES, None, CODES], "without one"),
        ("labels", [CODES], "class-conditional"),
        ("labels", [CODES, torch.tensor([0, 3])], "labels span 0...3"),
        ("bottom", [CODES], r"pass condition \[2, h, w\]"),
        ("bottom", [CODES, None, CODES[:1]], "h and w divisors of 6 and 4"),
        ("bottom", [CODES, None, CODES[:, :, :4]], "h and w divisors of 6 and 4"),
        ("bottom", [CODES, None, CODES.double()], "the condition's codes are torch.float64"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(name: str, taken: list[Any], message: str) -> None:
    model = small(name)
    for function in (model, model.initialise_from):
        with pytest.raises(ValueError, match=message):
            function(*taken)


def test_there_must_be_images_to_initialise_from() -> None:
    with pytest.raises(ValueError, match="there are no images to initialise from"):
        small().initialise_from(CODES[:0])


@pytest.mark.parametrize("name", few(["all", "attention", "bottom", "labels", "wide"], 1))
def test_every_runtime_draws_the_same_codes_and_completes_them(name: str) -> None:
    model = small(name).eval()
    images, labels, condition = given(model, 3)
    shape = None if condition is None else tuple(condition.shape[1:])
    sampler = Sampler(model, (1, 6, 4), image_form="codes", condition_shape=shape)  # which knows the levels
    codes = assert_runtimes_agree(sampler, 3, labels=labels, condition=condition)
    assert codes.shape == (3, 6, 4) and codes.unique().numel() > 2
    known = torch.arange(6)[:, None].expand(6, 4) < 3
    noise = torch.rand(3, *sampler.noise_shape, dtype=torch.float64)
    completed = [
        sampler.complete(codes, known, labels, condition=condition, noise=noise, runtime=runtime)
        for runtime in ("reference", "eager", "auto")
    ]
    assert all(torch.equal(found, completed[0]) for found in completed)
    _, log_p = sampler.sample(3, labels, condition=condition, noise=noise, log_probability=True)
    drawn = sampler.sample(3, labels, condition=condition, noise=noise)
    assert_identical_up_to_rounding(log_p, sampler.log_prob(drawn, labels, condition=condition).detach())
    coarse: Any = {} if condition is None else {"condition": condition}
    nll = likelihood.nll(model, drawn, labels, image_form="codes", **coarse)
    assert_identical_up_to_rounding(log_p, -nll.detach().double())
