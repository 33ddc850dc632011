"""Every op against plain PyTorch, a kernel cropped by hand and ``torch.compile``: ``make bench``, or

    pytest benchmarks/test_ops_bench.py --benchmark-json=ops.json && python benchmarks/ops_table.py ops.json

They also run on CUDA if there is a device. Results are compared before anything is timed. For the targets' figures,
with contestants that take turns, use layer_targets.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.nn.masked_conv2d import MaskType
from pixelcnn_fast.ops.gated_activation.reference import gated_activation as plain_gate
from pixelcnn_fast.ops.masked_conv_block.reference import masked_conv_block as plain_block

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BATCH = 16
CONTESTANTS = ("plain", "cropped", "compiled by torch", "pixelcnn_fast")


def convolution(
    kernel: int, channels: int, mask_type: MaskType, device: str
) -> tuple[list[Tensor], dict[str, Callable]]:
    side, pad = 32, kernel // 2
    x = torch.randn(BATCH, channels, side, side, device=device)
    weight = torch.randn(channels, channels, kernel, kernel, device=device) / (kernel * channels**0.5)
    bias, mask = torch.randn(channels, device=device), raster_mask(kernel, kernel, mask_type).to(device)
    mask = mask.expand_as(weight).contiguous()

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask, bias, padding=pad)

    def cropped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, (weight * mask)[:, :, : pad + 1], bias, padding=pad)[:, :, :side]

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, mask)

    return [x, weight, bias], {"plain": plain, "cropped": cropped, "pixelcnn_fast": fast}


def block(device: str) -> tuple[list[Tensor], dict[str, Callable]]:
    (x, weight, bias), _ = convolution(3, 128, "B", device)
    mask = raster_mask(3, 3, "B").to(device).expand_as(weight).contiguous()
    scale, shift, residual = (
        torch.rand(128, device=device),
        torch.randn(128, device=device),
        torch.randn_like(x),
    )

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain_block(x, weight, bias, mask, scale, shift, None, residual, "relu", 1.0, (1, 1), (1, 1))

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv_block(x, weight, bias, mask, scale, shift, None, residual, "relu")

    return [x, weight, bias], {"plain": plain, "pixelcnn_fast": fast}


def gate(device: str) -> tuple[list[Tensor], dict[str, Callable]]:
    return [torch.randn(BATCH, 256, 32, 32, device=device)], {
        "plain": plain_gate,
        "pixelcnn_fast": ops.gated_activation,
    }


def likelihood(device: str) -> tuple[list[Tensor], dict[str, Callable]]:
    logits = torch.randn(BATCH, 3, 256, 32, 32, device=device).permute(0, 1, 3, 4, 2)
    levels = torch.randint(0, 256, (BATCH, 3, 32, 32), device=device)

    def plain(logits: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.flatten(0, -2), levels.flatten(), reduction="none")
        return losses.view(BATCH, -1).sum(1)

    return [logits], {"plain": plain, "pixelcnn_fast": lambda logits: ops.categorical_nll(logits, levels)}


OPS = {
    "masked_conv2d 128→128 3×3 B": (lambda device: convolution(3, 128, "B", device), True),
    "masked_conv2d 64→64 7×7 A": (lambda device: convolution(7, 64, "A", device), True),
    "masked_conv_block 128→128 3×3 B": (block, False),
    "gated_activation 256 channels": (gate, True),
    "categorical_nll 256 levels": (likelihood, True),
}


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("ways", ["forward", "both ways"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", DEVICES)
def test_op(benchmark, device: str, op: str, ways: str, contestant: str) -> None:
    torch.manual_seed(0)
    make, trains = OPS[op]
    inputs, functions = make(device)
    if (ways == "both ways" and not trains) or (contestant == "cropped" and contestant not in functions):
        pytest.skip("does not apply")
    functions["compiled by torch"] = torch.compile(functions["plain"])
    plain, mine = (_run(functions[name], inputs, ways) for name in ("plain", contestant))
    expected, got = plain(), mine()
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() <= 1e-3 * a.abs().max()
    benchmark.group = f"{op}, {ways}, {device}"
    benchmark.extra_info["contestant"] = contestant
    benchmark.pedantic(lambda: _finished(mine(), device), rounds=10, warmup_rounds=2)


def _run(function: Callable[..., Tensor], inputs: list[Tensor], ways: str) -> Callable[[], list[Tensor]]:
    if ways == "forward":

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*inputs)]

        return forward
    inputs = [x.detach().requires_grad_() for x in inputs]

    def both_ways() -> list[Tensor]:
        y = function(*inputs)
        return [y.detach(), *torch.autograd.grad(y.sum(), inputs)]

    return both_ways


def _finished(results: list[Tensor], device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
