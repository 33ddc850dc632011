"""The judge of images: right ones pass in every precision, and each kind of wrong one is found."""

import pytest
import torch
from gpu.draws import judged

from pixelcnn_fast import Sampler
from pixelcnn_fast.runtimes import Precision
from tests.system.networks import pixelcnn

SHAPE, N = (2, 5, 6), 9


def drawn(precision: Precision = "same", **arguments):
    """-> model, images, noise, labels"""
    model = pixelcnn(channels=2, hidden=12, classes=3)
    noise = torch.rand(N, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(N) % 3
    sampler = Sampler(model, SHAPE, precision=precision)
    return model, sampler.sample(N, labels, noise=noise, runtime="eager", **arguments), noise, labels


@pytest.mark.parametrize("precision", ["same", "bf16"])
def test_right_images_pass(precision):
    model, images, noise, labels = drawn(precision)
    assert judged(model, images, noise, labels, precision).is_right


def test_images_of_rounded_weights_are_not_exact():
    model, images, noise, labels = drawn("bf16")
    assert not judged(model, images, noise, labels).is_right


@pytest.mark.parametrize("precision", ["same", "bf16", "fp16"])
def test_wrong_images_are_found(precision):
    model, images, noise, labels = drawn()
    one_off = images.clone()
    one_off[8, 1, 4, 5] ^= 16
    for wrong in (one_off, images.roll(1, 0), images.transpose(2, 3).reshape(images.shape)):
        assert not judged(model, wrong, noise, labels, precision).is_right
    assert not judged(model, images, noise, labels.roll(1), precision).is_right
    assert not judged(model, images, noise.flip(0), labels, precision).is_right


def test_logits_that_are_not_finite_are_not_right():
    model, images, noise, labels = drawn()
    next(model.conv_out.parameters()).data.fill_(torch.nan)
    assert not judged(model, images, noise, labels).is_right
