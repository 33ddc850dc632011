"""Sampling from the other families: a Gated PixelCNN, and ordered colours. Every image is checked."""

from __future__ import annotations

from typing import Any

from measuring import Cases, Found, Settings, Wanted, building, speed

from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.workload import Model, random_model, workload
from pixelcnn_fast.models import GatedPixelCNN

TITLE = "Targets of other families"
GATED: dict[str, Any] = dict(input_channels=1, hidden_channels=64, dilations=(1, 2, 1, 4, 1, 2, 1))
TINY_GATED: dict[str, Any] = dict(input_channels=1, hidden_channels=8, dilations=(1, 2))
TINY: dict[str, Any] = dict(hidden_channels=9, n_residual=1)


def cases(how: Settings) -> Cases:
    def sampled(name: str, model: Model, side: int, wanted: list[Wanted], pixels: int) -> Found:
        subject = f"{name}, {model.input_channels}x{side}x{side}: "
        work = workload(model, 1, side, side)
        yield from speed(work, wanted, how.repeats, 10 if how.quick else pixels, subject)
        yield building(work, 2.0, 0.5, how.repeats, subject)

    def gated() -> Found:
        model = random_model(family=GatedPixelCNN, **(TINY_GATED if how.quick else GATED))
        wanted: list[Wanted] = [(NAIVE, "cpu", 1000.0, 3000.0), ("eager", "cpu", 15.0, 30.0)]
        return sampled("Gated PixelCNN", model, 6 if how.quick else 28, wanted, 100)

    def ordered() -> Found:
        model = random_model(channel_order="thirds", **(TINY if how.quick else {}))
        wanted: list[Wanted] = [(NAIVE, "cpu", 1500.0, 3000.0)]
        return sampled("PixelCNN with ordered colours", model, 6 if how.quick else 32, wanted, 40)

    return {"Gated PixelCNN": gated, "ordered colours": ordered}
