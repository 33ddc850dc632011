"""The recurrence of a Row LSTM: arguments, gradients, backends."""

from __future__ import annotations

from torch import Tensor

from pixelcnn_fast.ops.recurrence import StateTap, check, register
from pixelcnn_fast.ops.row_lstm import reference


def row_lstm(
    sums: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """An LSTM from row to row: gates = sums + weight ∗ h of the row above; the cell before is that of the pixel above.

    sums: input-to-state sums of the gates i, f, g and o, [N, 4h, H, W]; weight: [4h, h, k],
    k odd, taps on the row above; h0, c0: what row -1 holds inside the image's columns, [h];
    None: zeros -> h [N, h, H, W]. Everything else outside the image is zero. In bfloat16
    and float16, cells are float32. backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if shapes, dtypes or devices do not fit. Source: van den Oord et al.
    2016, "Pixel Recurrent Neural Networks", section 3.1.
    """
    check(sums, weight, h0, c0, "k")
    if weight.shape[2] % 2 == 0:
        raise ValueError(
            f"weight {list(weight.shape)}: expected an odd number of taps, so that there is a centre"
        )
    return _row_lstm(sums, weight, h0, c0, backend)


def _taps(k: int) -> list[StateTap]:
    offsets = range(-(k // 2), k // 2 + 1)
    return [StateTap(-1, dx, (slice(1), slice(max(0, -dx), min(0, -dx) or None))) for dx in offsets]


_row_lstm = register("row_lstm", reference, diagonal=False, taps=_taps)
