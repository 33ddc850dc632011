"""PixelCNN++ at its published size, 3x32x32. Every image is checked, and gradients are compared.

Other people's code is run from checkouts that are named (--port, --public), and not measured without.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from checkouts import CLASSES, COMPONENTS, PORT, PUBLIC, Port, Public
from measuring import Cases, Found, Settings, Target, building, factor, faster, speed
from torch import Tensor, nn

from pixelcnn_fast import Sampler, accelerate
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.workload import Workload, workload
from pixelcnn_fast.heads import LogisticMixture
from pixelcnn_fast.models import PixelCNNpp, reference
from pixelcnn_fast.ops import logistic_mixture_nll

TITLE = "Targets of PixelCNN++"
TINY: dict[str, Any] = dict(n_filters=6, n_resnets=1, n_mixtures=2)
NAIVE_PIXELS = 8
BATCH = 4  # of a training step
# Of values in -1...1, in which a level is 0.008. In float32, both its own code and this package draw values up to 9e-6
# from those that its own draws in float64.
IN_FLOAT32, SHOWN = 1e-4, "{:.2g}".format


def cases(how: Settings) -> Cases:
    config, side, batch = (TINY, 8, 2) if how.quick else ({}, 32, 16)
    model = lively(PixelCNNpp(**config))

    def of(images: int) -> Workload:
        head = LogisticMixture(model.config["n_mixtures"])
        return workload(model, images, side, side, head=head, image_form="centred")

    def one() -> Found:
        wanted = [(NAIVE, "cpu", 400.0, 600.0)]
        return speed(of(1), wanted, how.repeats, NAIVE_PIXELS)

    def many() -> Found:
        wanted = [(NAIVE, "cpu", 1000.0, 1250.0)]
        return speed(of(batch), wanted, how.repeats, NAIVE_PIXELS)

    def built() -> Found:
        yield building(of(1), 8.0, 6.0, how.repeats)

    def training() -> Found:
        small = {**(TINY if how.quick else {"n_filters": 80}), "dropout": 0.0}
        ours = lively(PixelCNNpp(**small)).train()
        plain = reference.PixelCNNpp(**small).train()
        plain.load_state_dict(ours.state_dict())
        images = training_images(side)
        components = ours.config["n_mixtures"]

        def loss(backend: str) -> Callable[[Tensor], Tensor]:
            return lambda y: logistic_mixture_nll(y, images, components, backend=backend).sum()

        contestants = {
            "plain": step(plain, images, loss("reference")),
            "ours": step(ours, images, loss("auto")),
        }
        name = f"a training step, batch 4, n_filters={small['n_filters']}, Adam, dropout 0, against the plain reference"
        yield faster(name, contestants, 1.15, 1.4, how.repeats)

    return {
        "one at once": one,
        "many at once": many,
        "building": built,
        "training": training,
        "port": partial(port, how),
        "public": partial(public, how),
    }


def port(how: Settings) -> Found:
    """The common PyTorch port with ``accelerate`` and without."""
    sizes = {"nr_resnet": 1, "nr_filters": 6} if how.quick else {"nr_resnet": 5, "nr_filters": 80}
    size = f"batch {BATCH}, nr_filters={sizes['nr_filters']}"
    name, bounds = (
        f"a training step of the common PyTorch port, accelerated, {size}, its loss, Adam, dropout 0",
        (1.1, 1.4),
    )
    if how.port is None:
        yield Target(name, *bounds, None, [], factor, needs=f"--port FOLDER ({PORT})")
        return
    theirs, images = Port(how.port), training_images(8 if how.quick else 32)
    torch.manual_seed(0)
    plain, ours = theirs.model(**sizes), theirs.model(**sizes)
    ours.load_state_dict(plain.state_dict())
    with torch.no_grad():
        ours(centred(images))  # keeps a tensor, which later calls read
    accelerate(ours)

    def loss(output: Tensor) -> Tensor:
        found: Tensor = theirs.loss(centred(images), output)
        return found

    contestants = {"plain": step(plain, images, loss), "accelerated": step(ours, images, loss)}
    yield faster(name, contestants, *bounds, how.repeats)


def public(how: Settings) -> Found:
    """A Sampler on a public checkpoint's own module against its own loop, an image of each class."""
    side = 8 if how.quick else 32
    name = f"a public checkpoint, {CLASSES} images {side}x{side}: the largest difference from what its own code draws"
    wanted = name, IN_FLOAT32, 0.0
    if how.public is None:
        yield Target(*wanted, None, [], SHOWN, at_most=True, needs=f"--public FOLDER ({PUBLIC})")
        return
    theirs, head = Public(how.public), LogisticMixture(COMPONENTS, rounding="never")
    generator = torch.Generator().manual_seed(0)
    # Of float32, and within both codes' clamps, so that both draw by the same numbers.
    noise = torch.empty(CLASSES, 4, side, side).uniform_(2e-5, 1 - 2e-5, generator=generator).double()
    times = [time.perf_counter()]
    sampler = Sampler(theirs.model, (3, side, side), head=head, image_form="centred", conditional=True)
    times.append(time.perf_counter())
    ours = sampler.sample(CLASSES, torch.arange(CLASSES), noise=noise)
    times.append(time.perf_counter())
    own = torch.cat([theirs.drawn(noise[i : i + 1], i) for i in range(CLASSES)])
    times.append(time.perf_counter())
    differences = (ours - own).abs().amax((1, 2, 3))
    yield Target(*wanted, float(differences.max()), differences.tolist(), SHOWN, at_most=True)
    built, drawn, looped = (report.duration(end - start) for start, end in itertools.pairwise(times))
    yield (
        f"The public checkpoint's own loop drew these images, one after the other, in {looped}. "
        f"The sampler was built in {built} and drew all of them, the first time, in {drawn}."
    )


def training_images(side: int) -> Tensor:
    return torch.randint(256, (BATCH, 3, side, side), generator=torch.Generator().manual_seed(0))


def centred(images: Tensor) -> Tensor:
    return images / 127.5 - 1


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
    x = centred(images)

    def work() -> Sequence[Tensor]:
        optimizer.zero_grad()
        found = loss(model(x))
        found.backward()
        optimizer.step()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return [found.detach(), *(gradients[name] for name in sorted(gradients))]

    return work
