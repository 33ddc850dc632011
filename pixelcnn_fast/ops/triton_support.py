"""What the Triton kernels share: tiles in and out of memory, and float32 mathematics.

They use only what Triton 3.6 and 3.9 have in common: raw pointers with masks. Everything
also runs in Triton's interpreter, which has no bfloat16 arithmetic and no libdevice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
_IS_INTERPRETED = tl.constexpr(INTERPRETED)


def check_dtype(*tensors: Tensor) -> None:
    """Raises TypeError unless all are float32, all bfloat16 or all float16."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise TypeError(f"the Triton kernels take tensors of one dtype, not {dtypes}: convert them")
    if not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        raise TypeError(
            f"the Triton kernels take float32, bfloat16 and float16, not {dtypes}: name the backend 'reference'"
        )


def precision_of(dtype: torch.dtype) -> str:
    """'16 bit', or for float32 'tf32' where torch allows it for convolutions, else 'ieee'."""
    if dtype != torch.float32:
        return "16 bit"
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it at run time
    return "tf32" if conv.fp32_precision == "tf32" else "ieee"


@triton.jit
def within(index, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """index < SIZE; where blocks fill the size, which the compiler does not see, loads get no mask."""
    if SIZE % BLOCK == 0:
        return tl.full(index.shape, True, tl.int1)
    else:
        return index < SIZE


@triton.jit
def load_tile(rows, row_mask, columns, column_mask, ROWS_INNERMOST: tl.constexpr = False):
    """[rows, columns] elements at ``rows`` [rows] (pointers) + ``columns`` [columns] (int64 offsets), else 0.

    ROWS_INNERMOST: neighbouring rows are neighbours in memory. Where the compiler
    cannot tell, neighbouring threads load along the last dimension, so this
    decides whether loads coalesce.
    """
    if ROWS_INNERMOST:
        mask = column_mask[:, None] & row_mask[None, :]
        return tl.trans(tl.load(rows[None, :] + columns[:, None], mask=mask, other=0.0))
    else:
        mask = row_mask[:, None] & column_mask[None, :]
        return tl.load(rows[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(rows, row_mask, columns, column_mask, tile, ROWS_INNERMOST: tl.constexpr = False):
    """The inverse of ``load_tile``; rounds to the pointers' dtype."""
    tile = tile.to(rows.dtype.element_ty)
    if ROWS_INNERMOST:
        mask = column_mask[:, None] & row_mask[None, :]
        tl.store(rows[None, :] + columns[:, None], tl.trans(tile), mask=mask)
    else:
        mask = row_mask[:, None] & column_mask[None, :]
        tl.store(rows[:, None] + columns[None, :], tile, mask=mask)


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b in float32; a: [M, K], b: [K, N], of one dtype; PRECISION: '16 bit', 'tf32' or 'ieee'."""
    if _IS_INTERPRETED:  # bfloat16 is stored as integers, and float16 is slow
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32" if PRECISION == "tf32" else "ieee")


@triton.jit
def tanh(x):
    # Not 1 - 2 / (exp(2x) + 1), which overflows on the way.
    e = tl.exp(-2 * tl.abs(x))
    magnitude = (1 - e) / (1 + e)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def activate(x, alpha, ACTIVATION: tl.constexpr):
    """x: float32. Comparisons are written so that NaN stays NaN."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x < 0, alpha * x, x)
    elif ACTIVATION == "elu":
        x = tl.where(x < 0, alpha * (tl.exp(x) - 1), x)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "sigmoid":
        x = tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x
