"""Times every op beside plain PyTorch, a kernel cropped by hand and ``torch.compile``: ``make bench``, or

    pytest benchmarks/test_ops_bench.py

They also run on CUDA if there is a device. Results are compared before anything is timed. For the targets' figures,
with contestants that take turns, use ``targets.py layers``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import ops
from cases.ops import COMPILED, CROPPED, OURS, PLAIN, Case, On
from measuring import check

OPS: dict[str, Callable[[On], Case]] = {
    "masked_conv2d 128→128 3×3 B": lambda on: ops.convolution(on, 128, 3, "B", 32),
    "masked_conv2d 64→64 7×7 A": lambda on: ops.convolution(on, 64, 7, "A", 32),
    "masked_conv_block 128→128 3×3 B": lambda on: ops.block(on, 128, 3, "B", 32),
    "gated_activation 256 channels": ops.gate,
    "concat_elu 128 channels": ops.both_elus,
    "categorical_nll 256 levels": ops.likelihood,
}


@pytest.mark.parametrize("contestant", [PLAIN, CROPPED, COMPILED, OURS])
@pytest.mark.parametrize("ways", ["forward", "both ways"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_op(benchmark, device: str, op: str, ways: str, contestant: str) -> None:
    case = OPS[op](On(16, device)).compiled()
    if contestant not in case.contestants or (ways == "both ways" and "block" in op):
        pytest.skip("does not apply")
    plain, mine = (
        case.forward(name) if ways == "forward" else case.both_ways(name) for name in (PLAIN, contestant)
    )
    check(op, plain(), mine())

    def finished() -> None:
        mine()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{op}, {ways}, {device}"
    benchmark.pedantic(finished, rounds=10, warmup_rounds=2)
