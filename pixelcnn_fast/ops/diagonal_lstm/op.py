"""The recurrence of a Diagonal LSTM: arguments, gradients, backends."""

from __future__ import annotations

from torch import Tensor

from pixelcnn_fast.ops.diagonal_lstm import reference
from pixelcnn_fast.ops.recurrence import StateTap, check, register


def diagonal_lstm(
    sums: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """An LSTM whose state depends on those of the pixels above and to the left; the cell before is that to the left.

    sums: input-to-state sums of the gates i, f, g and o, [N, 4h, H, W]; weight: [4h, h, 2],
    tap 0 on the pixel above, tap 1 on the one to the left; h0, c0: what row -1 and column
    -1 hold, [h]; None: zeros; reverse: each row is walked from the right, and left reads as
    right -> h [N, h, H, W].
    In bfloat16 and float16, cells are float32. backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if shapes, dtypes or devices do not fit.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    check(sums, weight, h0, c0, "2")
    if weight.shape[2] != 2:
        raise ValueError(f"weight {list(weight.shape)}: expected two taps, above and to the left")
    if not isinstance(reverse, bool):
        raise ValueError(f"reverse is {reverse!r}, expected True or False")
    return _diagonal_lstm(sums, weight, h0, c0, reverse, backend)


def _taps(_: int, reverse: bool) -> list[StateTap]:
    rows, columns = slice(None), slice(None)
    left = StateTap(0, 1, (rows, slice(-1, None))) if reverse else StateTap(0, -1, (rows, slice(1)))
    return [StateTap(-1, 0, (slice(1), columns)), left]


_diagonal_lstm = register("diagonal_lstm", reference, diagonal=True, taps=_taps)
