"""Results, noise and generators on a GPU: the images are those that come by way of the host. ``make gpu-check`` runs
this file."""

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.runtimes.cuda.pinned import on_device, on_host
from tests.copies import Copies
from tests.csrc import test_gpu
from tests.csrc.test_gpu import DEVICE, RUNTIME, network, noise_for, sampler_of
from tests.test_interrupted import Conditioned
from tests.triton_device import exact_float32  # noqa: F401

pytestmark = test_gpu.pytestmark
N, BATCH = 40, 9
LABELS = torch.arange(N) % 4


def test_images_are_drawn_where_they_are_to_be() -> None:
    sampler, (_, shape) = sampler_of("labels"), network("labels")
    noise = noise_for(shape, N)
    expected, log_p = sampler.sample(
        N, LABELS, noise=noise, runtime=RUNTIME, batch_size=BATCH, log_probability=True
    )
    noise, labels = noise.to(DEVICE), LABELS.to(DEVICE)
    with Copies() as copies:
        images, found = sampler.sample(
            N, labels, noise=noise, runtime=RUNTIME, batch_size=BATCH, log_probability=True, device=DEVICE
        )
    assert images.device == found.device == noise.device
    assert torch.equal(images.cpu(), expected)
    torch.testing.assert_close(found.cpu(), log_p)
    assert {copy.elements for copy in copies.made if copy.source == "cuda"} == {1}  # error words


def test_given_images_may_be_there_too() -> None:
    sampler, (_, shape) = sampler_of("labels"), network("labels")
    noise, generator = noise_for(shape, N), torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (N, *shape), dtype=torch.uint8, generator=generator)
    known = torch.rand(N, 1, *shape[1:], generator=generator) < 0.5
    expected = sampler.complete(images, known, LABELS, noise=noise, runtime=RUNTIME)
    logits = sampler.logits(expected, LABELS, RUNTIME)
    completed = sampler.complete(
        images.to(DEVICE), known.to(DEVICE), LABELS, noise=noise, runtime=RUNTIME, device=DEVICE
    )
    assert completed.is_cuda and torch.equal(completed.cpu(), expected)
    there = sampler.logits(completed, LABELS, RUNTIME, device=DEVICE)
    assert there.is_cuda and torch.equal(there.cpu(), logits)


@pytest.mark.parametrize("runtime", ["eager", "reference"])
def test_python_draws_there_too(runtime: test_gpu.RuntimeName) -> None:
    model, shape = network("7x5")
    noise = noise_for(shape, 5)
    images = sampler_of("7x5").sample(5, noise=noise, runtime=runtime, device=DEVICE)
    assert images.is_cuda
    found = test_gpu.judged(model, images.cpu(), noise, None, "same")
    assert found.is_right, found


@pytest.mark.parametrize("runtime", ["cuda", "eager"])
@pytest.mark.parametrize("batch_size", [N, BATCH])
def test_a_generator_there_draws_the_noise_of_all_images(runtime, batch_size):
    sampler, (model, shape) = sampler_of("7x5"), network("7x5")
    noise = torch.rand(
        N, *shape, dtype=torch.float64, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(3)
    )
    expected = sampler.sample(N, noise=noise.cpu(), runtime=runtime)
    generator = torch.Generator(DEVICE).manual_seed(3)
    images = sampler.sample(N, generator=generator, runtime=runtime, batch_size=batch_size)
    if runtime == "cuda" or torch.equal(images, expected):
        assert torch.equal(images, expected)
    else:  # PyTorch's sums depend on the batch
        found = test_gpu.judged(model, images, noise.cpu())
        assert found.is_right, found


@pytest.mark.parametrize("device", [None, DEVICE])
def test_nan_while_the_next_batch_is_at_work(device: str | None) -> None:
    model, shape = Conditioned().to(DEVICE), (1, 5, 6)
    sampler, noise = Sampler(model, shape), noise_for(shape, N)
    labels = torch.zeros(N, dtype=torch.long)
    expected = sampler.sample(N, labels, noise=noise, runtime=RUNTIME)
    model.embedding.weight.data[1] = torch.nan
    labels[2 * BATCH + 1] = 1
    with pytest.raises(NonFiniteLogits, match=f"image {2 * BATCH + 1}, channel 0, row 0, column 0") as failed:
        sampler.refresh().sample(N, labels, noise=noise, runtime=RUNTIME, batch_size=BATCH, device=device)
    kept = vars(failed.value)["images"]
    assert kept.is_cuda == (device is not None) and torch.equal(kept.cpu(), expected[: 2 * BATCH])


def test_pinned_copies() -> None:
    x = torch.rand(1000, 1000)
    there = on_device(x, torch.device(DEVICE, torch.cuda.current_device()), torch.float64)
    back = on_host(there)
    torch.cuda.synchronize()
    assert there.is_cuda and back.is_pinned() and torch.equal(back, x.double())
