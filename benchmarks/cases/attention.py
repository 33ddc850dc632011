"""Attention: priors of VQ-VAE-2 codes, and small image models, with random weights, mostly in other people's code.

All images are checked by the model in float64. Their code is run from checkouts that are named (--priors,
--generative), and not measured without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkouts import GENERATIVE, PRIORS, Generative, Priors
from measuring import Cases, Found, Settings, Target, building, factor, interleaved, speed
from torch import Tensor, nn

from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.naive import naive_apart
from pixelcnn_fast.bench.workload import Workload, workload
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.models import PixelSNAIL

TITLE = "Targets of attention"
NAIVE_PIXELS, BATCH = 8, 16
CODES: dict[str, Any] = dict(head=Categorical(512), image_form="codes")
FORWARDS, SECONDS = (15.0, 8.0), (3.0, 1.0)  # that building may take: must, and reach


@dataclass(frozen=True)
class Subject:
    """needs: the checkout, if any; one, many: must and reach, for one image and for a batch; work: of quick or not,
    and how many images; in_forwards: whether building is measured in forwards of one image."""

    name: str
    needs: str
    one: tuple[float, float]
    many: tuple[float, float]
    work: Callable[[bool, int], Workload]
    in_forwards: bool = False


def cases(how: Settings) -> Cases:
    """Each is left out, by name, without the checkout that it needs."""
    image_gpt = partial(small, how.generative, "ImageGPT", (1, 1, 28, 8, 2, 64), (1, 1, 8, 1, 2, 8))
    pixel_snail = partial(
        small, how.generative, "PixelSNAIL", (1, 1, 64, 8, 2, 4, 32), (1, 1, 8, 1, 1, 2, 4), image_form="unit"
    )
    top, bottom = partial(prior, how.priors, 32), partial(prior, how.priors, 64, of_coarse=True)
    subjects = {
        "transformer": Subject("ImageGPT of 28x28", GENERATIVE, (100, 200), (250, 400), image_gpt),
        "snail": Subject("PixelSNAIL of 28x28", GENERATIVE, (100, 250), (400, 800), pixel_snail),
        "top": Subject("the top prior of 32x32 codes", PRIORS, (600, 900), (1200, 1800), top, True),
        "own": Subject("models.PixelSNAIL of that size", "", (600, 900), (1200, 1800), own, True),
        "bottom": Subject(
            "the bottom prior of 64x64 codes", PRIORS, (5000, 8000), (5000, 8000), bottom, True
        ),
    }
    return {name: partial(measured, how, subject) for name, subject in subjects.items()}


@torch.no_grad()  # else what weight norm makes of its weights can't be copied before a forward
def prior(folder: Path | None, side: int, quick: bool, images: int, of_coarse: bool = False) -> Workload:
    side, sizes, channels = (8, (16, 5, 1, 1, 8), 8) if quick else (side, (256, 5, 4, 4, 256), 256)
    config: dict[str, Any] = dict(attention=False, n_cond_res_block=3, cond_res_channel=channels)
    assert folder is not None
    torch.manual_seed(0)
    model = Priors(folder).model([side, side], 512, *sizes, **config if of_coarse else {})
    return workload(lively(Alone(model, side)), images, side, side, **CODES)


def own(quick: bool, images: int) -> Workload:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(channels=16, n_blocks=1, n_res_blocks=1) if quick else {}
    side = 8 if quick else 32
    return workload(lively(PixelSNAIL(512, **sizes)), images, side, side, **CODES)


def small(
    folder: Path | None, name: str, full: tuple, tiny: tuple, quick: bool, images: int, **settings: Any
) -> Workload:
    side = 8 if quick else 28
    assert folder is not None
    torch.manual_seed(0)
    model = OfTwoLevels(Generative(folder).model(name, *(tiny if quick else full)))
    return workload(lively(model), images, side, side, head=Categorical(2), **settings)


def measured(how: Settings, subject: Subject) -> Found:
    title = f"{subject.name}: "
    folder, option = (how.priors, "--priors") if subject.needs == PRIORS else (how.generative, "--generative")
    if folder is None and subject.needs:
        yield Target(
            f"{title}all", *subject.one, None, [], factor, needs=f"{option} FOLDER ({subject.needs})"
        )
        return
    work_of = partial(subject.work, how.quick)
    yield built(title, work_of(1), subject.in_forwards, how.repeats)
    for images, bounds in ((1, subject.one), (2 if how.quick else BATCH, subject.many)):
        wanted = [(NAIVE, "cpu", *bounds)]
        with naive_apart(partial(work_of, images)) as naive:
            yield from speed(work_of(images), wanted, how.repeats, NAIVE_PIXELS, title, naive=naive)


def built(title: str, work: Workload, in_forwards: bool, repeats: int) -> Target:
    if not in_forwards:
        return building(work, *SECONDS, repeats, title)
    codes = torch.zeros(1, *work.shape[1:], dtype=torch.long)

    @torch.inference_mode()
    def forward() -> Tensor:
        found: Tensor = work.model(codes)
        return found

    seconds = interleaved({"forward": forward, "building": work.sampler}, repeats)
    taken = [building / one for building, one in zip(seconds["building"], seconds["forward"], strict=True)]
    name = f"{title}building a Sampler, in forwards of one image"
    return Target(name, *FORWARDS, median(taken), taken, "{:.1f}".format, at_most=True)


class Alone(nn.Module):
    """A prior's logits alone, without its cache; and if it takes a coarser map, the same for all images."""

    coarse: Tensor | None

    def __init__(self, prior: nn.Module, side: int) -> None:
        super().__init__()
        self.prior, coarse = prior, torch.randint(512, (1, side // 2, side // 2))
        self.register_buffer("coarse", coarse if hasattr(prior, "cond_resnet") else None)

    def forward(self, codes: Tensor) -> Tensor:
        given = None if self.coarse is None else self.coarse.expand(len(codes), -1, -1)
        logits, _ = self.prior(codes, given)
        found: Tensor = logits
        return found


class OfTwoLevels(nn.Module):
    """Logits of two levels, for a model that gives that of the second alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        second: Tensor = self.model(images)
        return torch.cat([torch.zeros_like(second), second], 1)


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Weights moved by a tenth, and the last ones larger."""
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        if weights.numel() > 1 and float(weights.std()) > 0:
            weights.add_(0.1 * weights.std() * torch.randn(weights.shape, generator=generator))
    return model.eval()
