"""PixelCNN++ at its published size, 3x32x32. Every image is checked, and gradients are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import Cases, Found, Settings, building, faster, speed
from torch import Tensor, nn

from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.heads import LogisticMixture
from pixelcnn_fast.models import PixelCNNpp, reference
from pixelcnn_fast.ops import logistic_mixture_nll

TITLE = "Targets of PixelCNN++"
TINY: dict[str, Any] = dict(n_filters=6, n_resnets=1, n_mixtures=2)
NAIVE_PIXELS = 8


def cases(how: Settings) -> Cases:
    config, side, batch = (TINY, 8, 2) if how.quick else ({}, 32, 16)
    model = lively(PixelCNNpp(**config))
    of_images: dict[str, Any] = dict(head=LogisticMixture(model.config["n_mixtures"]), image_form="centred")

    def one() -> Found:
        wanted = [(NAIVE, "cpu", 400.0, 600.0)]
        return speed(model, side, 1, wanted, how.repeats, NAIVE_PIXELS, **of_images)

    def many() -> Found:
        wanted = [(NAIVE, "cpu", 1000.0, 1250.0)]
        return speed(model, side, batch, wanted, how.repeats, NAIVE_PIXELS, **of_images)

    def built() -> Found:
        yield building(model, side, 8.0, 6.0, how.repeats, **of_images)

    def training() -> Found:
        small = {**(TINY if how.quick else {"n_filters": 80}), "dropout": 0.0}
        ours = lively(PixelCNNpp(**small)).train()
        plain = reference.PixelCNNpp(**small).train()
        plain.load_state_dict(ours.state_dict())
        images = torch.randint(256, (4, 3, side, side), generator=torch.Generator().manual_seed(0))
        components = ours.config["n_mixtures"]

        def loss(backend: str) -> Callable[[Tensor], Tensor]:
            return lambda y: logistic_mixture_nll(y, images, components, backend=backend).sum()

        contestants = {
            "plain": step(plain, images, loss("reference")),
            "ours": step(ours, images, loss("auto")),
        }
        name = f"a training step, batch 4, n_filters={small['n_filters']}, Adam, dropout 0, against the plain reference"
        yield faster(name, contestants, 1.15, 1.4, how.repeats)

    return {"one at once": one, "many at once": many, "building": built, "training": training}


def lively(model: PixelCNNpp) -> PixelCNNpp:
    """With random weights under which pixels differ, and depend on each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("weight_v"):
                parameter.normal_(0, 0.05, generator=generator)
            elif name.endswith("weight_g"):
                parameter.mul_(1.5)
            else:
                parameter.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def step(
    model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]
) -> Callable[[], Sequence[Tensor]]:
    """A training step whose learning rate is 0, so that all rounds do the same -> loss and gradients."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    x = images / 127.5 - 1

    def work() -> Sequence[Tensor]:
        optimizer.zero_grad()
        found = loss(model(x))
        found.backward()
        optimizer.step()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return [found.detach(), *(gradients[name] for name in sorted(gradients))]

    return work
