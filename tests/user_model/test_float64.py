"""A model whose code names its dtype computes in float64 all the same, and the check uses that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.check.against_model import check_program, expectations
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.errors import CaptureMismatch, Unsupported
from pixelcnn_fast.user_model.float64 import InFloat64, computing
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.networks import ABOVE, LEFT, Masked

LEVELS, SHAPE = 5, (1, 4, 5)
X = torch.arange(20).view(1, 1, 4, 5)
EXACT = X.double() / 7
CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float()": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to, by name": lambda x: x.to(dtype=torch.float32),
    "to the device, too": lambda x: x.to("cpu", torch.float32),
    "to be like": lambda x: x.to(torch.ones(1)),
    "type": lambda x: x.type(torch.float32),
    "type, the old way": lambda x: x.type(torch.FloatTensor),  # type: ignore[call-overload]  # as old code writes it
    "type, by its name": lambda x: x.type("torch.FloatTensor"),
    "type_as": lambda x: x.type_as(torch.zeros(2)),
    "wider, and back": lambda x: x.double().float(),
    "sum": lambda x: x.sum(1, keepdim=True, dtype=torch.float32),
    "beside ones": lambda x: torch.cat([x, torch.ones(1, 1, 4, 5)], 1)[:, :1],
    "filled": lambda x: x.new_zeros(x.shape, dtype=torch.float32) + x,
    "the default dtype": lambda x: x.to(torch.get_default_dtype()),
}


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "ceil": lambda x: (x * 7).ceil(),
    "whole parts": lambda x: x * 5 // 1,
    "remainders": lambda x: x * 11 % 1,
    "whole parts of quotients": lambda x: (x * 0.3 / 0.1).floor(),
}


@pytest.mark.parametrize("name", ROUNDING)
def test_constants_beside_features_fall_on_the_model_s_side_of_a_step(name: str) -> None:
    """They are rounded as the model rounds them."""

    class Coordinates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = Masked(3, 6, [*ABOVE, *LEFT]), nn.Conv2d(8, LEVELS, 1)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.stack(
                torch.meshgrid(torch.linspace(0, 1, 11), torch.linspace(0, 1, 12), indexing="ij")
            )
            together = torch.cat([x.float(), places.expand(len(x), 2, 11, 12)], 1)
            return self.last(
                torch.cat([torch.relu(self.first(together)), ROUNDING[name](together[:, 1:])], 1)
            )

    model, images = Coordinates(), torch.randint(0, LEVELS, (2, 1, 11, 12), dtype=torch.uint8)
    made = Sampler(model, (1, 11, 12), levels=LEVELS)
    torch.testing.assert_close(made.logits(images)[:, 0].movedim(-1, 1), model(images).detach())


@pytest.mark.parametrize("name", CASTS)
def test_what_a_call_is_in_float64(name: str) -> None:
    with InFloat64(torch.float32):
        assert torch.equal(CASTS[name](EXACT), EXACT)
    assert CASTS[name](EXACT.float()).dtype == torch.float32


@pytest.mark.parametrize(
    "call",
    [lambda x: x / 7, lambda x: x.float() / 7, lambda x: (x * 1.0) / 7, lambda x: torch.true_divide(x, 7)],
)
def test_integers_become_float64(call) -> None:
    for dtype in (torch.uint8, torch.long):
        with InFloat64(torch.float32):
            assert torch.equal(call(X.to(dtype)), EXACT)
    with InFloat64(torch.float32):
        assert (X + 1).dtype == torch.long and torch.ones(3).dtype == torch.float64


def test_what_is_narrower_than_the_model_still_rounds() -> None:
    with InFloat64(torch.float32):
        assert EXACT.half().dtype == torch.float16 and EXACT.bfloat16().dtype == torch.bfloat16
    with InFloat64(torch.bfloat16):
        assert EXACT.bfloat16().dtype == torch.float64 and EXACT.float().dtype == torch.float64
        assert EXACT.half().dtype == torch.float16  # its range is smaller
    with InFloat64(torch.float16):
        assert EXACT.half().dtype == torch.float64 and EXACT.bfloat16().dtype == torch.bfloat16
        assert EXACT.view(torch.float16).dtype == torch.float16  # the same bits, and not a conversion
    with computing(torch.float32, torch.float32):
        assert EXACT.float().dtype == torch.float32


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, LEVELS, 1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.to(self.first.weight.dtype))
        return 5 * self.last(torch.relu(self.body(self, h)))


def in_float32(net: Net, h: Tensor) -> Tensor:
    """Refuses anything else."""
    assert h.dtype == net.first.weight.dtype == torch.float32
    return h


def wrapped(body: Any, dtype: torch.dtype = torch.float32) -> WrappedModel:
    return WrappedModel(Net(body).to(dtype), SHAPE, levels=LEVELS, image_form="unit")


def compared_in_float64(model: WrappedModel) -> bool:
    """Whether the model is captured, and its program compared in float64."""
    program, conditions, *_ = found = capture_model(model)
    expected = expectations(model, found.replay)
    check_program(program, conditions, model, expected)
    return expected.exact is not None and all(x.dtype == torch.float64 for x in expected.exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_programs_are_compared_in_float64_where_they_can_be(dtype: torch.dtype) -> None:
    def in_its_own_dtype(net: Net, h: Tensor) -> Tensor:
        assert h.dtype == dtype
        h = nn.functional.layer_norm(h.permute(0, 2, 3, 1).float(), (6,)).permute(0, 3, 1, 2).to(h)
        return h * torch.nn.functional.normalize(net.last.weight[0], dim=0) + torch.ones(6, 1, 1).to(h)

    if dtype == torch.float64:
        with pytest.raises(Unsupported, match="it rounds to torch.float32"):
            compared_in_float64(wrapped(in_its_own_dtype, dtype))
    else:
        assert compared_in_float64(wrapped(in_its_own_dtype, dtype))
    assert compared_in_float64(wrapped(lambda net, h: h, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_models_that_read_bits_are_compared_as_they_are(dtype: torch.dtype) -> None:
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]

    def of_weights(net: Net, h: Tensor) -> Tensor:
        return h * torch.where(net.first.weight[0, 0, 0, 0].view(integers) < 0, 1.0, 2.0).to(h)

    assert compared_in_float64(wrapped(of_weights, dtype))
    with pytest.raises(Unsupported, match="reads the bits|not a function of one level"):
        compared_in_float64(wrapped(lambda net, h: (h.view(integers) & 1).to(h), dtype))


def shifted_down(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 0, 1, 0))[:, :, :-1]


def normed(x: Tensor) -> Tensor:
    mean, variance = torch.tensor([0.1307]).to(x), torch.tensor([0.3081**2]).to(x)
    return nn.functional.batch_norm(x, mean, variance)


STEPS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "shifted, then compared": lambda net, x: (
        (shifted_down(x) - 0.1307) / 0.3081 >= (0.6 - 0.1307) / 0.3081
    ).to(x),
    "normed, then compared": lambda net, x: (normed(x) >= normed(torch.full_like(x, 0.6))).to(x),
    "hardswish, then compared": lambda net, x: (nn.functional.hardswish(4 * x) >= 2.0).to(x),
    "levels above a number": lambda net, x: (2 * x - 1 > 0.2).to(x),
    "levels in bins": lambda net, x: torch.floor((2 * x - 1) * 5),
    "rounded levels": lambda net, x: torch.round(x * 25.5) / 3,
    "bins as numbers": lambda net, x: (x * 4).clamp(max=3).long().to(x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_functions_of_levels_jump_where_the_model_s_do(name: str, dtype: torch.dtype) -> None:
    """Where they round in the model's dtype, a level may lie on the other side of a jump."""

    class Jumping(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return 5 * self.last(torch.relu(h + self.first(STEPS[name](self, x))))

    model = Jumping().to(dtype)
    model.last = nn.Conv2d(6, 256, 1).to(dtype)
    sampler = Sampler(model, SHAPE, image_form="unit")
    images = torch.arange(256 * 20).remainder(256).view(256, *SHAPE)
    found, expected = (sampler.logits(images, runtime=r).double().softmax(-1) for r in ("eager", "reference"))
    assert (found - expected).abs().sum(-1).max() < 40 * torch.finfo(dtype).eps


def test_functions_of_conditions_jump_where_the_model_s_do() -> None:
    """0.7 * 10 is 7 in float32, and less in float64, if 0.7 is what float32 has of it."""

    class Binned(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 6)

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            assert condition is not None
            bins = (condition[:, 0] * 10).long().clamp(0, 10)
            return 5 * self.last(torch.relu(self.first(x) + self.embedding(bins)[:, :, None, None]))

    sampler = Sampler(Binned(), SHAPE, levels=LEVELS, image_form="unit", condition_shape=(1,))
    condition, images = torch.arange(11.0)[:, None] / 10, torch.randint(LEVELS, (11, *SHAPE))
    assert (condition[:, 0] * 10).tolist() == [*range(11)]
    assert not (condition[:, 0].double() * 10 >= torch.arange(11)).all()
    found, expected = (
        sampler.logits(images, condition=condition, runtime=r).softmax(-1) for r in ("eager", "reference")
    )
    assert (found - expected).abs().max() < 1e-6


def test_what_was_recorded_must_be_what_the_model_does_on_other_images() -> None:
    """In half precision, too, whose rounding would hide much."""
    for dtype, factor in (
        (torch.float64, 1.0001),
        (torch.float32, 1.0001),
        (torch.bfloat16, 1.2),
        (torch.float16, 1.02),
    ):
        scale = iter([1.0] * 2 + [factor] * 99)
        with pytest.raises(CaptureMismatch, match="total variation"):
            compared_in_float64(wrapped(lambda net, h, scale=scale: h * next(scale), dtype))


def test_rounding_to_less_than_the_model_s_dtype_is_refused() -> None:
    for body in (lambda net, h: h.half().float(), lambda net, h: h.bfloat16().to(h)):
        with pytest.raises(Unsupported, match="it rounds to torch.b?float16"):
            Sampler(Net(body), SHAPE, levels=LEVELS, image_form="unit")


def test_autocast_inside_of_a_model_is_refused() -> None:
    def in_bfloat16(net: Net, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.conv2d(h, torch.eye(6)[..., None, None]).float()

    with pytest.raises(Unsupported, match="autocast within forward"):
        Sampler(Net(in_bfloat16), SHAPE, levels=LEVELS, image_form="unit")


OF_ITS_DTYPE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "tiny": lambda net, h: -torch.tanh(torch.log(torch.relu(h) + torch.finfo(h.dtype).tiny) / 1000),
    "eps": lambda net, h: -torch.tanh(torch.log(torch.relu(h) + torch.finfo(h.dtype).eps) / 100),
    "a branch": lambda net, h: h * (1.5 if h.dtype == torch.float64 else 1.0),
    "a number read off a weight": lambda net, h: 9 * h * float(net.last.weight.detach().norm()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OF_ITS_DTYPE)
def test_a_model_is_captured_as_it_is_in_its_own_dtype(name: str, dtype: torch.dtype) -> None:
    """A copy in float64 would be another model."""
    assert compared_in_float64(wrapped(OF_ITS_DTYPE[name], dtype))
    sampler = Sampler(Net(OF_ITS_DTYPE[name]).to(dtype), SHAPE, levels=LEVELS, image_form="unit")
    images = torch.randint(LEVELS, (50, *SHAPE), generator=torch.Generator().manual_seed(0))
    expected = sampler.logits(images, runtime="reference").double().softmax(-1)
    found = sampler.logits(images, runtime="eager").double().softmax(-1)
    assert (found - expected).abs().sum(-1).mean() < 4 * torch.finfo(dtype).eps


def test_constants_that_the_dtype_does_not_hold_become_the_nearest() -> None:

    class Forbids(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            last = torch.full_like(logits[:, -1:], torch.finfo(logits.dtype).min)
            return torch.cat([logits[:, :-1], last], 1)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = WrappedModel(Forbids().to(dtype), SHAPE, levels=LEVELS, image_form="unit")
        assert compared_in_float64(model)
        sampler = Sampler(Forbids().to(dtype), SHAPE, levels=LEVELS, image_form="unit")
        assert sampler.sample(200).unique().tolist() == list(range(LEVELS - 1))


def test_conditions_are_computed_in_the_model_s_dtype() -> None:
    class Conditioned(Net):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(2, 6, 1)

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            assert condition is not None
            h = self.first(x.float()) + self.map(condition.float() / 3)
            return 5 * self.last(torch.relu(h))

    arguments: dict[str, Any] = dict(
        levels=LEVELS, image_form="levels", conditional=False, condition_shape=(2, 4, 5)
    )
    assert compared_in_float64(WrappedModel(Conditioned(), SHAPE, **arguments))
    sampler, condition = Sampler(Conditioned(), SHAPE, **arguments), torch.randn(3, 2, 4, 5)
    u = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = [
        sampler.sample(3, noise=u, condition=condition, runtime=runtime)
        for runtime in ("reference", "eager", "auto")
    ]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


@pytest.mark.parametrize("batch_axis", ["expanded", "repeated", "within an axis"])
def test_a_constant_for_each_image_may_be_rounded_as_batches_are(batch_axis: str) -> None:
    """PyTorch rounds a convolution otherwise in a batch of another size; the program has what was recorded."""

    class Placed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.randn(1, 16, 12, 12))
            self.of_place = nn.Conv2d(16, 6, 3, padding=1)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.3)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            place = (
                self.place.expand(n, -1, -1, -1)
                if batch_axis == "expanded"
                else self.place.repeat(n, 1, 1, 1)
            )
            of_place = self.of_place(place)
            if batch_axis == "within an axis":
                of_place = of_place.flatten(0, 1).tanh().view(n, 6, 12, 12)
            return self.last(self.first(x.float()) + of_place)

    for seed in range(2):
        torch.manual_seed(seed)
        Sampler(Placed(), (1, 12, 12), levels=LEVELS, image_form="levels")
