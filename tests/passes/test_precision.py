"""A program in another dtype: every constant, and nothing else."""

import pytest
import torch

from pixelcnn_fast.passes.precision import in_dtype, rounded_weights
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.verify import verify

TABLE, WEIGHT, BIAS, SCALE = (torch.randn(shape).double() for shape in ((5, 2), (2, 3), (3,), (3,)))
PROGRAM = Program(
    shape=(1, 4, 5),
    parameters=3,
    instructions=(
        FromLevels(0, 2, "input", table=TABLE),
        Convolution(
            1,
            3,
            "conv",
            taps=(Tap(0, -1, 0, WEIGHT),),
            bias=BIAS,
            steps=(Step("affine", scale=SCALE, shift=-SCALE),),
        ),
        Pointwise(2, 3, "out", base=Read(1), steps=(Step("elu", 0.3),)),
    ),
    outputs=(2,),
    dtype=torch.float64,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_constant_is_rounded(dtype: torch.dtype) -> None:
    verify(PROGRAM)
    rounded = in_dtype(PROGRAM, dtype)
    verify(rounded)  # all constants are in the program's dtype
    table, conv, out = rounded.instructions
    assert isinstance(table, FromLevels) and isinstance(conv, Convolution)
    assert table.table is not None and conv.bias is not None
    assert torch.equal(conv.bias, BIAS.to(dtype))
    assert torch.equal(table.table, TABLE.to(dtype)) and torch.equal(conv.taps[0].weight, WEIGHT.to(dtype))
    (affine,) = conv.steps
    assert affine.scale is not None and affine.shift is not None
    assert torch.equal(affine.scale, SCALE.to(dtype)) and torch.equal(affine.shift, -SCALE.to(dtype))
    assert out.steps[0].alpha == 0.3 and str(in_dtype(rounded, torch.float64)) == str(PROGRAM)


def test_only_the_weights_of_taps_are_rounded_to_what_is_stored() -> None:
    rounded = rounded_weights(PROGRAM, torch.bfloat16)
    verify(rounded)  # all constants are in the program's dtype
    table, conv, _ = rounded.instructions
    assert isinstance(table, FromLevels) and isinstance(conv, Convolution)
    assert table.table is not None and conv.bias is not None
    assert torch.equal(conv.taps[0].weight, WEIGHT.bfloat16().double())
    assert torch.equal(table.table, TABLE) and torch.equal(conv.bias, BIAS)
    (affine,) = conv.steps
    assert affine.scale is not None and torch.equal(affine.scale, SCALE)


def test_what_is_beyond_the_range_becomes_the_nearest() -> None:
    least, inf, nan = torch.finfo(torch.float64).min, torch.inf, torch.nan
    bias = torch.tensor([least, 1e300, 1.0, -inf, inf, nan], dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        convolution = Convolution(0, 6, "conv", bias=bias)
        (rounded,) = in_dtype(Program((1, 4, 5), 6, (convolution,), (0,), torch.float64), dtype).instructions
        limits = torch.finfo(dtype)
        assert isinstance(rounded, Convolution) and rounded.bias is not None
        assert rounded.bias[:5].tolist() == [limits.min, limits.max, 1, limits.min, limits.max]
        assert rounded.bias[5].isnan()
