"""A user's own head: two real-valued channels of which the second depends on the first, drawn jointly.

The runtimes know nothing about it; the head tells them all that they need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import CaptureMismatch, Sampler, UnknownLayout, Unsupported, check_causal, likelihood
from pixelcnn_fast.heads import Categorical, Head, SamplingOptions
from pixelcnn_fast.models import PixelCNN
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.native_program import why_no_native_program
from tests.needs import needs_native
from tests.tolerances import assert_identical_up_to_rounding

SHAPE = (2, 4, 5)
RUNTIMES: tuple[RuntimeName, ...] = ("reference", "eager")


@dataclass(frozen=True)
class Pair(Head):
    """a ~ N(m, exp(s)), then b ~ N(n + k a, exp(t)); the model's output is [N, 5, H, W]: m, s, n, t, k.

    It takes a uniform more than it needs.
    """

    joint = True
    uniforms = 3
    value_dtype = torch.float64

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Pair:
        if list(output.shape) != [shape[0], 5, *shape[2:]]:
            raise UnknownLayout(f"{list(output.shape)} is not [N, 5, H, W]")
        return self

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        return output.permute(0, 2, 3, 1)[:, None]

    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        m, s, n, t, k = parameters.double().unbind(-1)
        z = torch.special.ndtri(noise.clamp(1e-12, 1 - 1e-12)) * options.temperature
        a = torch.where(known[..., 0], values[..., 0], m + s.exp() * z[..., 0])
        return torch.stack([a, n + k * a + t.exp() * z[..., 1]], -1)

    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        m, s, n, t, k = parameters.double().unbind(-1)
        a, b = values.double().unbind(-1)

        def normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            return -0.5 * ((x - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)

        return torch.stack([normal(a, m, s), normal(b, n + k * a, t)], -1)

    def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def checked(self, values: Tensor) -> Tensor:
        if not values.is_floating_point():
            raise ValueError(f"images are {values.dtype}: expected real numbers")
        return values.to(self.value_dtype, copy=True)

    def as_images(self, values: Tensor) -> Tensor:
        return values.float()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = MaskedConv2d(2, 6, 3, "A")
        self.second = MaskedConv2d(6, 6, 3, "B")
        self.out = nn.Conv2d(6, 5, 1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return 0.5 * self.out(torch.tanh(self.second(torch.relu(self.first(images)))))


@cache
def sampler() -> Sampler:
    return Sampler(Net(), SHAPE, head=Pair(), image_form="levels")


def noise(n: int) -> Tensor:
    return torch.rand(n, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_same_noise_same_images() -> None:
    reference, eager = (sampler().sample(3, noise=noise(3), runtime=runtime) for runtime in RUNTIMES)
    assert reference.dtype == torch.float32 and len(reference.unique()) > 100
    torch.testing.assert_close(eager, reference)
    torch.testing.assert_close(sampler().sample(3, noise=noise(3), batch_size=2), reference)


def test_the_second_channel_depends_on_the_first() -> None:
    """On the known first channel, not on one that was drawn in its place."""
    values = torch.randn(1, *SHAPE, dtype=torch.float64)
    known = torch.tensor([True, False])[:, None, None].expand(SHAPE)
    one, other = (
        sampler().complete(images, known, noise=noise(1), runtime="eager") for images in (values, values + 1)
    )
    assert torch.equal(one[:, 0], values[:, 0].float())
    assert (one[:, 1, 0, 0] != other[:, 1, 0, 0]).all()
    for runtime in RUNTIMES:
        torch.testing.assert_close(sampler().complete(values, known, noise=noise(1), runtime=runtime), one)


def test_log_probabilities_are_the_likelihood() -> None:
    for runtime in RUNTIMES:
        images, log_p = sampler().sample(3, noise=noise(3), log_probability=True, runtime=runtime)
        nats = likelihood.nll(Net(), images.double(), image_form="levels", head=Pair())
        torch.testing.assert_close(-log_p, nats, rtol=1e-5, atol=1e-4)  # images are float32


def test_every_runtime_gives_the_same_parameters() -> None:
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = sampler().logits(images, runtime="reference")
    assert expected.shape == (2, 1, 4, 5, 5)
    assert_identical_up_to_rounding(sampler().logits(images, runtime="eager"), expected)


def test_the_head_applies_the_temperature() -> None:
    cold = sampler().sample(2, temperature=0.0, noise=noise(2))
    assert torch.equal(cold, sampler().sample(2, temperature=0.0, noise=1 - noise(2)))


@needs_native
def test_the_compiled_runtime_refuses_it_and_names_another() -> None:
    assert isinstance(sampler().runtime("auto"), type(sampler().runtime("eager")))
    with pytest.raises(RuntimeError, match="Pair.*eager"):
        sampler().sample(1, runtime="cpu")


def test_its_distance_is_that_of_log_densities() -> None:
    parameters = Net()(torch.zeros(2, *SHAPE, dtype=torch.float64)).detach().permute(0, 2, 3, 1)[:, None]
    assert Pair().distance(parameters, parameters, 2).eq(0).all()
    for number in range(5):
        other = parameters.clone()
        other[1, 0, 2, 3, number] += 1e-6
        found = Pair().distance(parameters, other, 2)
        assert found.shape == (2, 1, 4, 5) and found.nonzero().tolist() == [[1, 0, 2, 3]]
        assert 1e-8 < found.max() < 1e-4
    assert Pair().distance(parameters, parameters * torch.nan, 2).isnan().all()


@pytest.mark.parametrize(("log_density", "expected"), [(0.5, 0.1), (-1, 0.1), (4, 0.025), (-4, 0.025)])
def test_its_distance_is_the_greatest_and_relative_to_large_log_densities(log_density, expected):
    """Here, one example and one of its two values tell the distributions apart."""
    calls = iter(range(99))

    class Simple(Pair):
        def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            return torch.full(shape, float(next(calls) == 2), dtype=torch.float64)

        def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
            assert parameters.dtype == torch.float64  # whatever the model's
            return parameters[..., :2] * values

    one, other = (torch.full((1, 1, 1, 1, 5), log_density, dtype=torch.float32) for _ in range(2))
    one[..., 1] += 0.1
    assert Simple().distance(one, other, 2).item() == pytest.approx(expected)


def test_examples_that_neither_gives_tell_nothing() -> None:
    class Impossible(Pair):
        def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
            return torch.full_like(values, -torch.inf)

    parameters = torch.zeros(1, 1, 2, 3, 5)
    assert Impossible().distance(parameters, parameters + 1, 2).eq(0).all()


def test_a_program_that_differs_from_the_model_is_found() -> None:
    calls = iter(range(99))

    class Drifting(Net):
        """After it was captured, that is."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + (1e-8 if next(calls) > 1 else 0.0)

    with pytest.raises(CaptureMismatch, match="relative difference of log-densities; 1e-09 is allowed"):
        Sampler(Drifting(), SHAPE, head=Pair(), image_form="levels")


def test_its_own_checks() -> None:
    with pytest.raises(ValueError, match="expected real numbers"):
        sampler().logits(torch.zeros(1, *SHAPE, dtype=torch.long))
    for form in ("uint8", "unit"):
        with pytest.raises(ValueError, match="image_form='levels'"):
            Sampler(Net(), SHAPE, head=Pair(), image_form=form)
    with pytest.raises(ValueError, match="expected floating point"):
        sampler().sample(1, noise=torch.rand(1, 2, 4, 5, dtype=torch.float64))


def test_what_a_class_says_of_itself_must_go_together() -> None:
    class Truncated(Pair):
        value_dtype = torch.int32

    class Certain(Pair):
        uniforms = 0

    class Rounded(Categorical):
        value_dtype = torch.float64

    for head, why in [
        (Truncated(), r"Truncated.* draws real numbers, which value_dtype torch\.int32 can't hold"),
        (Certain(), "with 0 uniforms"),
        (Rounded(7), r"draws 7 levels, which value_dtype torch\.float64 can't hold"),
    ]:
        with pytest.raises(ValueError, match=why):
            Sampler(Net(), SHAPE, head=head, image_form="levels")


def test_a_leak_is_found() -> None:
    """One draw gives both channels, so neither may be seen at its own pixel."""
    check_causal(Net(), SHAPE, head=Pair(), image_form="levels")
    net = Net()
    net.first.mask.data[0, 1, 1, 1] = 1
    with pytest.raises(ValueError, match="first: .*own pixel"):
        Sampler(net, SHAPE, head=Pair(), image_form="levels")


class DrawsGreatest:
    """Draws the greatest level that is possible."""

    levels: int

    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        return (parameters > -5).int().mul(torch.arange(self.levels)).amax(-1, keepdim=True)


class Greatest(Categorical):
    draw = DrawsGreatest.draw


class AlsoGreatest(DrawsGreatest, Categorical):
    levels: int


class ScoresInItsOwnWay(Categorical):
    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        return super().log_probability(parameters, values) - 1


class OfBoth(Categorical):
    joint = True


class OfTwoUniforms(Categorical):
    uniforms = 2


@needs_native
@pytest.mark.parametrize("head", [Greatest(256), AlsoGreatest(256)], ids=["its own draw", "another class's"])
def test_a_head_that_draws_in_its_own_way_is_not_taken_for_its_parent(head: Head) -> None:
    assert not head.of_logits
    own = Sampler(PixelCNN(1, 8, 1).eval(), (1, 3, 3), head=head)
    assert (own.sample(2) == 255).all()
    with pytest.raises(RuntimeError, match=r"Greatest.*is drawn in Python only"):
        own.sample(2, runtime="cpu")


def test_a_head_that_scores_in_its_own_way_is_not_taken_for_its_parent() -> None:
    model, u = PixelCNN(1, 8, 1).eval(), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    (images, own), (same, parent) = (
        Sampler(model, (1, 3, 3), head=head).sample(2, noise=u, log_probability=True)
        for head in (ScoresInItsOwnWay(256), Categorical(256))
    )
    assert torch.equal(images, same)
    torch.testing.assert_close(own, parent - 9, rtol=1e-5, atol=1e-4)
    scored = Sampler(model, (1, 3, 3), head=ScoresInItsOwnWay(256)).log_prob(images)
    torch.testing.assert_close(scored, own, rtol=1e-5, atol=1e-4)


@needs_native
def test_the_compiled_runtimes_refuse_a_kind_of_theirs_that_is_drawn_otherwise() -> None:
    program = Sampler(PixelCNN(1, 8, 1).eval(), (1, 3, 3))._engine.require_compiled().program
    for head in (OfBoth(5), OfTwoUniforms(5)):
        assert "several values or with several uniforms" in str(why_no_native_program(program, head))
    assert why_no_native_program(program, Categorical(5)) is None


@pytest.mark.parametrize(
    ("native", "value_dtype", "why"),
    [
        ("mixture", torch.int32, "drawn as 'mixture', which the compiled module does not know"),
        ("categorical", torch.int64, r"values of torch\.int64, the compiled runtimes draw torch\.int32"),
    ],
)
@needs_native
def test_a_head_that_the_compiled_runtimes_would_misread_is_left_to_eager(native, value_dtype, why):
    class Other(Categorical):
        pass

    Other.native, Other.value_dtype = native, value_dtype
    model = PixelCNN(1, 8, 1).eval()
    noise = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    expected = Sampler(model, (1, 3, 3)).sample(2, noise=noise)
    other = Sampler(model, (1, 3, 3), head=Other(256))
    assert torch.equal(other.sample(2, noise=noise), expected)
    with pytest.raises(RuntimeError, match=why):
        other.sample(2, runtime="cpu")


def test_real_numbers_are_scored_as_a_model_of_fewer_digits_sees_them() -> None:
    sampler = Sampler(Net().bfloat16(), SHAPE, head=Pair(), image_form="levels")
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampler.log_prob(images), sampler.log_prob(images.bfloat16().float()))


class Normalised(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).log_softmax(1)


def test_a_softmax_of_parameters_that_are_not_logits_is_refused() -> None:
    with pytest.raises(Unsupported, match="softmax: a program has none, and Pair.* does not read logits"):
        Sampler(Normalised(), SHAPE, head=Pair(), image_form="levels")
