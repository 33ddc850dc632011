"""Orders in which pixels may be drawn, other than the raster order: from other corners, or column by column."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from torch import Tensor


class Order(NamedTuple):
    """What comes first in it comes first in raster order once images are turned: flipped, then perhaps transposed."""

    by_columns: bool
    from_bottom: bool
    from_right: bool

    def __str__(self) -> str:
        rows, columns = "bottom" if self.from_bottom else "top", "right" if self.from_right else "left"
        if self.by_columns:
            return f"columns from the {columns}, each from the {rows}"
        return f"rows from the {rows}, each from the {columns}"

    @property
    def _flipped(self) -> tuple[int, ...]:
        return (-2,) * self.from_bottom + (-1,) * self.from_right

    def turned(self, x: Tensor) -> Tensor:
        """[..., H, W] -> [..., H', W']"""
        x = x.flip(self._flipped)
        return x.transpose(-2, -1) if self.by_columns else x

    def turned_back(self, x: Tensor) -> Tensor:
        """[..., H', W'] -> [..., H, W]"""
        return (x.transpose(-2, -1) if self.by_columns else x).flip(self._flipped)

    def advice(self) -> str:
        flip = f".flip({', '.join(map(str, self._flipped))})" if self._flipped else ""
        transpose = ".transpose(-2, -1)" if self.by_columns else ""
        return (
            f"it is causal if pixels are drawn in another order, by {self}: turn the kernels of its convolutions "
            f"(weight{flip}{transpose}) and the images that are drawn (images{transpose}{flip}), or sample, by "
            f"runtime='reference', a module that returns model(x{transpose}{flip}){flip}{transpose}"
        )


OTHERS = [Order(*turns) for turns in product((False, True), repeat=3) if any(turns)]


def other_order(is_causal: Callable[[Order], bool]) -> str | None:
    """What to do with a model that is causal in another order, if it is in one."""
    return next((order.advice() for order in OTHERS if is_causal(order)), None)
