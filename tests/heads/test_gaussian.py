"""Heads of real numbers: densities and masses against the formulas, draws against the inverse of the cumulative
distribution, and images of floats through a sampler."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import Sampler, UnknownLayout, check_causal, likelihood
from pixelcnn_fast.heads import DiscretizedGaussian, GaussianMixture, Head, SamplingOptions
from tests.heads.test_logistic_mixture import Net
from tests.system.agreement import assert_runtimes_agree, noise
from tests.tolerances import assert_identical_up_to_rounding

K = 3
STANDARD = NormalDist()
HEADS: dict[str, tuple[Head, int]] = {  # with the numbers of a channel's distribution
    "mixture": (GaussianMixture(K), 3 * K),
    "clipped mixture": (GaussianMixture(K, "p|c|k", (-0.5, 0.5), (-2.0, 0.0)), 3 * K),
    "discretized": (DiscretizedGaussian(), 2),
    "means first": (DiscretizedGaussian(0.5, means_first=True), 2),
}


def parameters(name: str, n: int) -> Tensor:
    return torch.randn(n, HEADS[name][1], dtype=torch.float64)


def cumulative(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def mixture(head: GaussianMixture, p: list[float]) -> list[tuple[float, NormalDist]]:
    """(weight, component)."""
    each = [math.exp(x) for x in p[:K]]
    means = [min(max(x, head.means_within[0]), head.means_within[1]) for x in p[K : 2 * K]]
    scales = [min(max(x, head.log_scales_within[0]), head.log_scales_within[1]) for x in p[2 * K :]]
    return [(w / sum(each), NormalDist(m, math.exp(s))) for w, m, s in zip(each, means, scales, strict=True)]


def log_probability(head: Head, p: list[float], y: float) -> float:
    if isinstance(head, GaussianMixture):
        return math.log(sum(w * of.pdf(y) for w, of in mixture(head, p)))
    assert isinstance(head, DiscretizedGaussian)
    mean, scale = p[0], max(p[1], head.least_scale)
    n = abs(round(y - mean))
    return math.log(cumulative((0.5 - n) / scale) - cumulative((-0.5 - n) / scale))


def drawn(head: Head, p: list[float], u: list[float], temperature: float) -> float:
    if isinstance(head, GaussianMixture):
        weights = [w for w, _ in mixture(head, p)]
        hot = [w ** (1 / temperature) if temperature else float(w == max(weights)) for w in weights]
        total = [sum(hot[: k + 1]) for k in range(K)]
        k = next(k for k in range(K) if u[0] * total[-1] < total[k])
        of = mixture(head, p)[k][1]
        return of.mean + of.stdev * temperature * STANDARD.inv_cdf(u[1])
    assert isinstance(head, DiscretizedGaussian)
    return p[0] + round(max(p[1], head.least_scale) * temperature * STANDARD.inv_cdf(u[0]))


@pytest.mark.parametrize("name", HEADS)
def test_the_log_probability_is_the_formula(name: str) -> None:
    head, p, y = HEADS[name][0], parameters(name, 50), torch.randn(50)
    expected = [log_probability(head, *each) for each in zip(p.tolist(), y.tolist(), strict=True)]
    found = head.log_probability(p, y[:, None])
    assert_identical_up_to_rounding(found[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("name", HEADS)
def test_a_draw_is_the_formula(name: str, temperature: float) -> None:
    head, p = HEADS[name][0], parameters(name, 50)
    u = torch.rand(50, head.uniforms, dtype=torch.float64)
    none = torch.zeros(50, 1, dtype=head.value_dtype)
    found = head.draw(p, u, SamplingOptions(temperature=temperature), none, none.bool())[:, 0]
    pixels = zip(p.tolist(), u.tolist(), strict=True)
    expected = torch.tensor([drawn(head, *pixel, temperature) for pixel in pixels], dtype=torch.float64)
    torch.testing.assert_close(found.float(), expected.float())
    u[:25], u[25:] = 0, math.nextafter(1, 0)
    assert head.draw(p, u, SamplingOptions(), none, none.bool()).isfinite().all()


def test_an_infinite_scale_times_zero_gives_the_mean() -> None:
    p, u = torch.tensor([0, 0.2, 720], dtype=torch.float64), torch.tensor([0.5, 0.7], dtype=torch.float64)
    none = torch.zeros(1)
    drawn = GaussianMixture(1).draw(p, u, SamplingOptions(temperature=0), none, none.bool())
    torch.testing.assert_close(drawn, torch.tensor([0.2]))


def test_masses_of_whole_distances_sum_to_one() -> None:
    """However narrow or wide, also far out, where a difference of cumulative probabilities would be 0."""
    p = torch.tensor([[0.3, -1.0], [0.3, 0.2], [-4.7, 3.0]], dtype=torch.float64)
    y = p[:, :1] + torch.arange(-40, 41)
    each = DiscretizedGaussian().log_probability(p[:, None, :].expand(-1, 81, -1), y[..., None])
    assert each.isfinite().all() and each.exp().sum((1, 2)).sub(1).abs().max() < 1e-12
    assert torch.equal(
        each, DiscretizedGaussian().log_probability(p[:, None].expand(-1, 81, -1), y[..., None] + 0.4)
    )


def network(name: str) -> Net:
    """Of lively scales."""
    return Net(2, 2 * HEADS[name][1], lambda x: x + 1.5)


def sampler_of(name: str) -> Sampler:
    return Sampler(network(name), (2, 7, 5), head=HEADS[name][0], image_form="levels")


@pytest.mark.parametrize("name", HEADS)
def test_images_are_floats_and_the_same_on_every_runtime(name: str) -> None:
    head, sampler = HEADS[name][0], sampler_of(name)
    images = assert_runtimes_agree(sampler, 3, batch_sizes=(None, 2))
    assert images.dtype == torch.float32 and images.unique().numel() > 30
    drawn, log_p = sampler.sample(3, noise=noise(3, sampler.noise_shape), log_probability=True)
    assert torch.equal(drawn, images)
    assert_identical_up_to_rounding(log_p, sampler.log_prob(images).detach())
    known = torch.rand(2, 7, 5) < 0.4
    completed = sampler.complete(images, known, noise=noise(3, sampler.noise_shape, seed=1))
    assert torch.equal(completed[:, known], images[:, known]) and not torch.equal(completed, images)
    check_causal(network(name), (2, 7, 5), head=head, image_form="levels")
    bits = likelihood.bits_per_dim(network(name), [images.double()], head=head, image_form="levels")
    assert bits == pytest.approx(-log_p.sum().item() / images.numel() / math.log(2))


@pytest.mark.parametrize("layout", ["c|p|k", "c|k|p", "p|c|k", "p|k|c", "k|c|p", "k|p|c"])
def test_every_layout_is_read(layout: str) -> None:
    each = torch.randn(4, 2, 3, K, 5, 6)  # [N, c, p, k, H, W]
    output = torch.einsum(f"n{'cpk'}hw->n{layout.replace('|', '')}hw", each).flatten(1, 3)
    head = GaussianMixture(K, layout).resolved(output, (4, 2, 5, 6))
    assert torch.equal(head.arranged(output, 2), each.flatten(2, 3).permute(0, 1, 3, 4, 2))


def test_means_may_come_first() -> None:
    net = Net(2, 4, lambda x: torch.cat((x + 1.5).chunk(2, 1)[::-1], 1))
    swapped = Sampler(net, (2, 7, 5), head=DiscretizedGaussian(means_first=True), image_form="levels")
    plain = sampler_of("discretized")
    u = noise(2, plain.noise_shape)
    assert torch.equal(swapped.sample(2, noise=u), plain.sample(2, noise=u))


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_the_likelihood(name: str) -> None:
    head, y = HEADS[name][0], torch.randn(3, 2, 1, 2)
    p = (3 * torch.rand(3, 2, 1, 2, HEADS[name][1], dtype=torch.float64) - 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: head.nll(p, y), p)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_that_matters_is_noticed(name: str) -> None:
    """What is clipped away is not."""
    head, outputs = HEADS[name]
    one = torch.full((1, 2, 2, 3, outputs), 0.3, dtype=torch.float64)
    one[..., 2 * K :] = one[..., 1] = -0.8 if "mixture" in name else 0.9
    assert head.distance(one, one, 2).eq(0).all()
    for number in range(outputs):
        other = one.clone()
        other[0, 1, 1, 2, number] += 1e-6
        found = head.distance(one, other, 2)
        assert found.nonzero().tolist() == [[0, 1, 1, 2]] and 1e-8 < found.max() < 1e-4
    clipped = {"clipped mixture": (K, 5.0), "discretized": (1, 0.05), "means first": (1, 0.4)}.get(name)
    if clipped is not None:
        number, beyond = clipped
        one[..., number], other = beyond, one.clone()
        other[..., number] = beyond / 2 if name != "clipped mixture" else 2 * beyond
        assert head.distance(one, other, 2).eq(0).all()
    assert head.distance(one, one * torch.nan, 2).isnan().all()


@pytest.mark.parametrize("name", HEADS)
def test_noise_lies_where_what_is_drawn_with_it_comes_from(name: str) -> None:
    head, p = HEADS[name][0], parameters(name, 200)
    u = torch.rand(200, head.uniforms, dtype=torch.float64)
    none = torch.zeros(200, 1, dtype=head.value_dtype)
    values = head.draw(p, u, SamplingOptions(), none, none.bool()).float()
    assert head.excess(p, values, u).max() < 1e-5
    assert (head.excess(p, values + 1, u) > 1e-4).float().mean() > 0.5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="components is 0"):
        GaussianMixture(0)
    with pytest.raises(ValueError, match="components is 2.5: expected an integer"):
        GaussianMixture(2.5)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="layout is 'cpk'"):
        GaussianMixture(2, "cpk")
    with pytest.raises(ValueError, match="least_scale is 0"):
        DiscretizedGaussian(0)
    with pytest.raises(
        UnknownLayout, match=r"\[4, 17, 5, 6\], but GaussianMixture.* expects \[4, 18, 5, 6\]"
    ):
        GaussianMixture(K).resolved(torch.zeros(4, 17, 5, 6), (4, 2, 5, 6))
    sampler = sampler_of("mixture")
    with pytest.raises(ValueError, match="top_k is not used by GaussianMixture"):
        sampler.sample(1, top_k=3)
    with pytest.raises(ValueError, match="expected floating point"):
        sampler.log_prob(torch.zeros(1, 2, 7, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected finite numbers"):
        sampler.log_prob(torch.full((1, 2, 7, 5), torch.inf))
    with pytest.raises(ValueError, match="pass image_form='levels'"):
        Sampler(network("mixture"), (2, 7, 5), head=GaussianMixture(K), image_form="centred")
