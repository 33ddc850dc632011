"""Values that are read in halves, even where that splits an embedded level or the logits of one image channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads

LEVELS = 8


class Halves(nn.Module):
    mask: Tensor

    def __init__(self, colours: int, ordered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(LEVELS, 4)
        self.conv = nn.Conv2d(2 * colours, LEVELS * colours, 3, padding=1)
        mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(colours, LEVELS, 2 * colours, 1, 1)
        for colour in range(colours if ordered else 0):
            mask[colour, :, : 2 * colour, 1, 1] = 1
        self.register_buffer("mask", mask.flatten(0, 1))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embedding(images.long()).permute(0, 1, 4, 2, 3)
        gated = (rows[:, :, :2] * torch.sigmoid(rows[:, :, 2:])).flatten(1, 2)
        logits = 9 * F.conv2d(gated, self.conv.weight * self.mask, self.conv.bias, padding=1)
        logits = logits.unflatten(1, (-1, LEVELS))
        few, others = logits[:, :, :3], logits[:, :, 3:]
        return torch.cat([2 * few.tanh(), others * others.sigmoid()], 2).flatten(1, 2)


@pytest.mark.parametrize("colours", [1, 2, 3])
@pytest.mark.parametrize("ordered", [False, True])
def test_same_noise_same_images_as_naive(colours, ordered):
    shape = (colours, 4, 5)
    sampler = Sampler(Halves(colours, ordered), shape, head=heads.Categorical(LEVELS, "N,C*L,H,W"))
    u = torch.rand(3, *shape, dtype=torch.float64)
    naive = sampler.sample(3, noise=u, runtime="reference")
    assert len(naive.unique()) > 2
    for runtime in ("eager", "auto"):
        assert torch.equal(sampler.sample(3, noise=u, runtime=runtime), naive)
