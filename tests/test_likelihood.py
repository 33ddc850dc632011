from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pixelcnn_fast.likelihood import bits_per_dim, nll, to_levels
from tests.networks import pixelcnn


class Uniform(nn.Module):
    def forward(self, images):
        return torch.zeros(*images.shape, 256)


def test_uniform_logits_cost_eight_bits():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert bits_per_dim(Uniform(), [images]) == pytest.approx(8)
    assert nll(Uniform(), images).tolist() == pytest.approx([3 * 16 * math.log(256)] * 5)


def test_equals_a_loop_over_sub_pixels():
    model, images = pixelcnn(channels=2, classes=3), torch.randint(0, 256, (2, 2, 3, 4), dtype=torch.uint8)
    labels = torch.tensor([2, 0])
    probabilities = model(images, labels).softmax(-1).detach()
    for n in range(2):
        expected = -sum(
            math.log(probabilities[n, c, y, x, int(images[n, c, y, x])])
            for c in range(2)
            for y in range(3)
            for x in range(4)
        )
        assert nll(model, images, labels)[n].item() == pytest.approx(expected, rel=1e-4)


def test_batches_of_unequal_size_do_not_change_the_mean():
    model, images = pixelcnn(), torch.randint(0, 256, (7, 1, 5, 5), dtype=torch.uint8)
    whole = bits_per_dim(model, [images])
    assert bits_per_dim(model, [images[:4], images[4:6], images[6:]]) == pytest.approx(whole, rel=1e-6)
    assert bits_per_dim(model, [images[:1], images[1:]]) == pytest.approx(whole, rel=1e-6)


def test_the_model_is_evaluated_in_eval_mode_and_put_back():
    model, images = pixelcnn(), torch.randint(0, 256, (3, 1, 5, 5), dtype=torch.uint8)
    expected = bits_per_dim(model, [images])
    model.train()
    assert bits_per_dim(model, [images]) == expected and model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_levels_are_rounded(dtype):
    levels = torch.arange(256)
    assert torch.equal(to_levels((levels / 255).to(dtype)), levels)
    assert torch.equal(to_levels(levels.to(dtype)), levels)
    assert torch.equal(to_levels(levels.to(torch.uint8)), levels)


@pytest.mark.parametrize("bad", [torch.tensor([0.5, math.nan]), torch.tensor([-0.1]), torch.tensor([300.0])])
def test_bad_images_are_refused(bad):
    with pytest.raises(ValueError):
        to_levels(bad)


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        bits_per_dim(pixelcnn(), [])
