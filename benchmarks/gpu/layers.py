"""Times the ops on a GPU beside what PyTorch has: forward, batch 256, where a layer's name does not say otherwise.

Contestants' results are compared before they are timed. Each layer's milliseconds are printed as soon as they are
there. One that fails leaves the others' figures; if it is the library's own, the status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu.timing import stream_seconds
from pixelcnn_fast import ops
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.nn.masked_conv2d import MaskType

Contestants = Mapping[str, Callable[[], Tensor]]
FAST = "pixelcnn_fast"
DEVICE, BATCH, BACKEND = "cuda", 256, "triton"
TOLERANCE = 2e-2  # of the largest value; a tap too many or a wrong level moves much more


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def convolution(channels: int, size: int, kind: MaskType, side: int, joined: bool = False) -> Contestants:
    """In bf16, channels-last. joined: with a shift, a residual and an activation, each a call unless they are fused."""
    half = size // 2
    x = random(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = random(channels, channels, size, size) / (size * channels**0.5)
    mask = raster_mask(size, size, kind).to(weight).expand_as(weight).contiguous()
    live = (weight * mask)[:, :, : half + 1].contiguous()
    shift = random(channels) if joined else None

    def finished(y: Tensor) -> Tensor:
        return F.relu(y + x) if joined else y

    def fast() -> Tensor:
        if joined:
            return ops.masked_conv_block(x, weight, None, mask, shift=shift, residual=x, activation="relu")
        return ops.masked_conv2d(x, weight, None, mask)

    def dense() -> Tensor:
        return finished(F.conv2d(x, weight * mask, shift, padding=half))

    def cropped() -> Tensor:
        return finished(F.conv2d(F.pad(x, (half, half, half, 0)), live, shift))

    return {
        "cuDNN, masked": dense,
        "cuDNN, cropped": cropped,
        "torch.compile": torch.compile(dense),
        FAST: fast,
    }


def gate() -> Contestants:
    x = random(BATCH, 256, 32, 32)

    def eager() -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.tanh(left) * torch.sigmoid(right)

    return {"eager": eager, "torch.compile": torch.compile(eager), FAST: lambda: ops.gated_activation(x)}


def likelihood() -> Contestants:
    logits = random(BATCH, 256, 32, 32, dtype=torch.float32)
    levels = torch.randint(0, 256, (BATCH, 32, 32), device=DEVICE)
    last, one = logits.permute(0, 2, 3, 1).contiguous()[:, None], levels[:, None]

    def eager() -> Tensor:
        return F.cross_entropy(logits, levels, reduction="none").sum((1, 2))

    return {"eager": eager, "torch.compile": torch.compile(eager), FAST: lambda: ops.categorical_nll(last, one)}


def recurrence(op: Callable[..., Tensor], taps: int) -> Contestants:
    """Forward and backward; the gradient of the sums is what is compared."""
    sums = random(BATCH // 4, 512, 32, 32, dtype=torch.float32).requires_grad_()
    weight = (0.05 * random(512, 128, taps, dtype=torch.float32)).requires_grad_()
    grad = random(BATCH // 4, 128, 32, 32, dtype=torch.float32)

    def step(backend: str) -> Tensor:
        return torch.autograd.grad(op(sums, weight, backend=backend), (sums, weight), grad)[0]

    return {"loop": lambda: step("reference"), FAST: lambda: step(BACKEND)}


LAYERS: dict[str, Callable[[], Contestants]] = {
    "masked_conv2d 3x3 B": lambda: convolution(128, 3, "B", 32),
    "masked_conv2d 7x7 A": lambda: convolution(64, 7, "A", 28),
    "masked_conv_block": lambda: convolution(128, 3, "B", 32, joined=True),
    "gated_activation": gate,
    "categorical_nll": likelihood,
    "row_lstm, batch 64, forward + backward": lambda: recurrence(ops.row_lstm, 3),
    "diagonal_lstm, batch 64, forward + backward": lambda: recurrence(ops.diagonal_lstm, 2),
}


def milliseconds(build: Callable[[], Contestants]) -> dict[str, float | str]:
    """Contestant -> milliseconds, or why it has failed. The first one's results are what the others' must be."""
    expected: Tensor | None = None
    found: dict[str, float | str] = {}
    try:
        contestants = build()
    except Exception as error:
        return {FAST: f"failed: {type(error).__name__}: {error}"[:200]}
    for name, call in contestants.items():
        try:
            result = call().float()
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
        has_failed |= not isinstance(found[FAST], float)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
