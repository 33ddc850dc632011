"""``Sampler(…, runtime='reference')``: networks that can't be captured are sampled by their own forwards."""

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, SamplingInterrupted, Unsupported, likelihood
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from tests.heads.test_own_head import Net, Pair
from tests.heads.test_own_head import noise as pair_noise
from tests.system.networks import pixelcnn
from tests.system.uncapturable import LEVELS, NETWORKS, ORDERED, Attention, network
from tests.tolerances import assert_identical_up_to_rounding


def sampler(model: nn.Module, shape: tuple[int, int, int], **arguments) -> Sampler:
    return Sampler(model, shape, runtime="reference", **arguments)


def noise(n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def by_a_plain_loop(model: nn.Module, noise: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
    """-> the images, and their log-probabilities."""
    images, log_p = torch.zeros(noise.shape, dtype=torch.uint8), torch.zeros(noise.shape)
    n, channels, height, width = noise.shape
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                p = model(images, *given)[:, c, y, x].softmax(-1)
                drawn = (p.cumsum(-1) <= noise[:, c, y, x, None]).sum(-1)
                images[:, c, y, x] = drawn.to(torch.uint8)
                log_p[:, c, y, x] = p[torch.arange(n), drawn].log()
    return images, log_p.sum((1, 2, 3))


class Counted(nn.Module):
    """Counts the forwards of all its copies."""

    forwards = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.levels = model, LEVELS

    def forward(self, images: Tensor) -> Tensor:
        type(self).forwards += 1
        return self.model(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_are_those_of_a_plain_loop(name: str) -> None:
    model, shape = network(name)
    u = noise(5, shape)
    expected, log_p = by_a_plain_loop(model, u)
    assert expected.unique().numel() >= 4  # lively
    counted = Counted(model)
    built = sampler(counted, shape)
    assert built.shape == shape and built.head == Categorical(LEVELS, "N,C,H,W,L")
    Counted.forwards = 0
    assert torch.equal(built.sample(5, noise=u, batch_size=5), expected)
    _, height, width = shape
    assert Counted.forwards == height * width * (shape[0] if name in ORDERED else 1)
    for runtime in ("auto", "reference"):
        images, found = built.sample(5, noise=u, batch_size=2, runtime=runtime, log_probability=True)
        assert torch.equal(images, expected)
        torch.testing.assert_close(found.float(), log_p)


@pytest.mark.parametrize("name", NETWORKS)
def test_known_pixels_are_kept_and_logits_are_the_models(name: str) -> None:
    model, shape = network(name)
    built, u = sampler(model, shape), noise(3, shape)
    images = built.sample(3, noise=u)
    known = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(built.complete(images, known, noise=u), images)
    kept = LEVELS - 1 - images
    completed = built.complete(kept, known, noise=u)
    assert torch.equal(completed[:, known], kept[:, known]) and not torch.equal(completed, images)
    with torch.no_grad():
        assert_identical_up_to_rounding(built.logits(images), model(images))


def test_labels_choose_the_distribution() -> None:
    shape, labels = (1, 3, 4), torch.tensor([0, 1, 2, 2])
    model = Attention(shape, ordered=False, n_classes=3).double()
    u = noise(1, shape).expand(4, -1, -1, -1)
    images = sampler(model, shape).sample(4, labels, noise=u)
    assert torch.equal(images, by_a_plain_loop(model, u, labels)[0])
    assert not torch.equal(images[0], images[1]) and torch.equal(images[2], images[3])
    with pytest.raises(ValueError, match="labels span"):
        sampler(model, shape).sample(1, torch.tensor([3]))
    with pytest.raises(ValueError, match="pass labels"):
        sampler(model, shape).sample(1)


class Scaled(nn.Module):
    """Takes images in 0...1, and a condition [N, 1]."""

    levels = LEVELS

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        assert images.dtype == condition.dtype and images.max() <= 1
        return self.model(images) * condition[..., None, None, None]


def test_a_condition_and_a_floating_point_form() -> None:
    inner, shape = network("pooling")
    condition = torch.tensor([[-3.0], [3.0]], dtype=torch.float64)
    built = sampler(Scaled(inner), shape, conditional=False, condition_shape=(1,), image_form="unit")
    images = built.sample(2, noise=noise(1, shape).expand(2, -1, -1, -1), condition=condition)
    assert not torch.equal(images[0], images[1])
    with torch.no_grad():
        expected = inner(images.double() / (LEVELS - 1)) * condition[..., None, None, None]
    assert_identical_up_to_rounding(built.logits(images, condition=condition), expected)


def test_log_probabilities_are_the_likelihood() -> None:
    model, shape = network("pooling")
    images, log_p = sampler(model, shape).sample(3, log_probability=True)
    assert_identical_up_to_rounding(
        -log_p, likelihood.nll(model, images, head=Categorical(LEVELS)).double().detach()
    )


def test_a_head_of_ones_own() -> None:
    captured = Sampler(Net(), (2, 4, 5), head=Pair(), image_form="levels")
    own = sampler(Net(), (2, 4, 5), head=Pair(), image_form="levels")
    expected = captured.sample(3, noise=pair_noise(3), runtime="reference")
    assert torch.equal(own.sample(3, noise=pair_noise(3)), expected)
    values = expected.double()
    assert torch.equal(own.logits(values), captured.logits(values, runtime="reference"))


def test_an_interrupt_keeps_finished_images() -> None:
    class Impatient(Counted):
        last = 10**9

        def forward(self, images: Tensor) -> Tensor:
            if self.forwards == self.last:
                raise KeyboardInterrupt
            return super().forward(images)

    model, shape = network("pooling")
    impatient = Impatient(model)
    built, u = sampler(impatient, shape), noise(5, shape)
    expected = built.sample(5, noise=u)
    Impatient.last = Impatient.forwards + 2 * shape[1] * shape[2] + 1  # in the third batch
    with pytest.raises(SamplingInterrupted, match="4 of 5 images") as caught:
        built.sample(5, noise=u, batch_size=2)
    assert torch.equal(caught.value.images, expected[:4])


# -- what is refused, and what the refusal says


@pytest.mark.parametrize("name", ["attention over sub-pixels", "pooling"])
def test_capture_names_the_way_out_and_other_runtimes_say_what_capture_says(name: str) -> None:
    model, shape = network(name)
    with pytest.raises(Unsupported) as caught:
        Sampler(model, shape)
    message = str(caught.value)
    assert message.endswith("; runtime='reference' samples any causal model, with one full forward per draw")
    reason = message.rpartition("; ")[0]
    built = sampler(model, shape)
    others: tuple[RuntimeName, ...] = ("eager", "cpu", "cuda")
    for runtime in others:
        with pytest.raises(RuntimeError) as refused:
            built.sample(1, runtime=runtime)
        assert str(refused.value) == (
            f"runtime {runtime!r} is not available: the sampler was built with runtime='reference', and the model "
            f"can't be captured: {reason}"
        )
    with pytest.raises(
        RuntimeError, match="^there is no program: the sampler was built with runtime='reference'"
    ):
        _ = built.program


def test_a_model_that_can_be_captured_is_said_to() -> None:
    built = sampler(pixelcnn(), (1, 4, 4))
    with pytest.raises(
        RuntimeError, match="runtime 'eager' is not available.*can be captured, so leave that out"
    ):
        built.sample(1, runtime="eager")
    assert built.sample(2).shape == (2, 1, 4, 4)


def test_weights_can_not_be_narrowed() -> None:
    with pytest.raises(ValueError, match="runs the model itself, whose weights are not bf16"):
        sampler(pixelcnn(), (1, 4, 4), precision="bf16")
    narrow = Sampler(pixelcnn(), (1, 4, 4), precision="bf16")
    with pytest.raises(ValueError, match="runs the model itself, whose weights are not bf16"):
        narrow.sample(1, runtime="reference")


def test_a_precision_of_the_gpu_is_refused_on_the_cpu() -> None:
    narrow = Sampler(pixelcnn(), (1, 4, 4), precision="fp16")
    with pytest.raises(ValueError, match="precision='fp16' is for runtime 'cuda', not for 'cpu'"):
        narrow.sample(1, runtime="cpu")
    u = noise(2, (1, 4, 4))
    assert torch.equal(narrow.sample(2, noise=u), narrow.sample(2, noise=u, runtime="eager"))


def test_another_runtime_becomes_the_default() -> None:
    u = noise(2, (1, 4, 4))
    eager = Sampler(pixelcnn(), (1, 4, 4), runtime="eager")
    assert type(eager.runtime("auto")) is EagerRuntime
    assert type(eager.runtime("reference")) is ReferenceRuntime
    assert torch.equal(eager.sample(2, noise=u), eager.sample(2, noise=u, runtime="reference"))
    with pytest.raises(ValueError, match="runtime is 'gpu', expected one of 'auto'"):
        Sampler(pixelcnn(), (1, 4, 4), runtime="gpu")  # type: ignore[arg-type]  # there is no such runtime
    with pytest.raises(
        RuntimeError, match="runtime 'cpu' is not available: the model is torch.bfloat16|compiled"
    ):
        Sampler(pixelcnn().bfloat16(), (1, 4, 4), runtime="cpu")  # at once
