"""Times the ops on a GPU beside what PyTorch has: forward, batch 256, where a layer's name does not say otherwise.

Contestants' results are compared before they are timed. Each layer's milliseconds are printed as soon as they are
there. One that fails leaves the others' figures; if it is the library's own, the status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from cases import ops as op_cases
from cases.ops import OURS, Case, On
from torch import Tensor

from gpu.timing import stream_seconds
from pixelcnn_fast import ops
from pixelcnn_fast.errors import CheckFailed

DEVICE, BATCH, BACKEND = "cuda", 256, "triton"
TOLERANCE = 2e-2  # of the largest value; a tap too many or a wrong level moves much more


def on(dtype: torch.dtype = torch.bfloat16, batch: int = 0) -> On:
    return On(batch or BATCH, DEVICE, dtype, torch.channels_last)


def recurrence(op: Callable[..., Tensor], taps: int) -> Case:
    """Forward and backward; the gradient of the sums is what is compared."""
    how: dict[str, Any] = dict(device=DEVICE, dtype=torch.float32)
    sums = torch.randn(BATCH // 4, 512, 32, 32, **how).requires_grad_()
    weight = (0.05 * torch.randn(512, 128, taps, **how)).requires_grad_()
    grad = torch.randn(BATCH // 4, 128, 32, 32, **how)

    def step(backend: str) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(op(sums, weight, backend=backend), (sums, weight), grad)[0]

    return Case([], {"loop": lambda: step("reference"), OURS: lambda: step(BACKEND)})


LAYERS: dict[str, Callable[[], Case]] = {
    "masked_conv2d 3x3 B": lambda: op_cases.convolution(on(), 128, 3, "B", 32).compiled(),
    "masked_conv2d 7x7 A": lambda: op_cases.convolution(on(), 64, 7, "A", 28).compiled(),
    "masked_conv_block": lambda: op_cases.block(on(), 128, 3, "B", 32).compiled(),
    "gated_activation": lambda: op_cases.gate(on()).compiled(),
    "categorical_nll": lambda: op_cases.likelihood(on(torch.float32), channels=1).compiled(),
    "logistic_mixture_nll": lambda: op_cases.mixture(on(torch.float32)).compiled(),
    "row_lstm, batch 64, forward + backward": lambda: recurrence(ops.row_lstm, 3),
    "diagonal_lstm, batch 64, forward + backward": lambda: recurrence(ops.diagonal_lstm, 2),
}


def milliseconds(build: Callable[[], Case]) -> dict[str, float | str]:
    """Contestant -> milliseconds, or why it has failed. The first one's results are what the others' must be."""
    expected: Tensor | None = None
    found: dict[str, float | str] = {}
    try:
        case = build()
    except Exception as error:
        return {OURS: f"failed: {type(error).__name__}: {error}"[:200]}
    for name in case.contestants:
        call = case.forward(name)
        try:
            (result,) = (x.float() for x in call())
            expected = result if expected is None else expected
            difference = float((result.view_as(expected) - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:
                raise CheckFailed(f"differs by {difference:.2g} of the largest value")
            found[name] = 1e3 * stream_seconds(call, 5 if name == "loop" else 20)
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"[:200]
    return found


def main() -> int:
    has_failed = False
    for name, build in LAYERS.items():
        found = milliseconds(build)
        print(json.dumps({name: found}), flush=True)
        has_failed |= not isinstance(found[OURS], float)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
