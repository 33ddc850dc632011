"""Holds the table of lowerings, which the other modules here fill, and the tables of calls that need none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from pixelcnn_fast.capture.lower.arithmetic import stepped
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.operands import Steps
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.program.calls import Call, View, map_leaves


class LoweringContext(Protocol):
    """What a lowering may use."""

    builder: Builder

    def map(self, x: Any) -> Map:
        """The map of a tensor, or of a number."""

    def depends_on_image(self, x: Any) -> bool: ...

    def rounds_to(self, dtype: torch.dtype) -> bool:
        """Whether a dtype has fewer digits than the model's own."""

    def constant(self, x: Any, as_is: bool = False) -> Any:
        """x as a tensor, in the program's dtype unless as it is, or the number that it is. Raises Unsupported if it
        depends on the image or the condition."""


Lowering = Callable[..., Any]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, lowering))
        return lowering

    return register


def lowers_to_formulas(formulas: dict[str, Callable[..., Map | list[Map]]]) -> None:
    """Registers calls that can be written in terms of others. A formula takes the builder, and then the call's
    arguments, with a map in place of each tensor."""

    def lowering(formula: Callable[..., Map | list[Map]]) -> Lowering:
        def lowered(t: LoweringContext, call: Call, *args: Any, **kwargs: Any) -> Map | list[Map]:
            args, kwargs = map_leaves(lambda x: t.map(x) if isinstance(x, View) else x, (args, kwargs))
            return formula(t.builder, *args, **kwargs)

        return lowered

    LOWERINGS.update({name: lowering(formula) for name, formula in formulas.items()})


def lowers_to_steps(steps: dict[str, Callable[..., Steps]]) -> None:
    """Registers calls that put their first argument through steps, which are a function of the other arguments."""

    def formula(of: Callable[..., Steps]) -> Callable[..., Map]:
        return lambda b, x, *args, **kwargs: stepped(b, x, *of(*args, **kwargs))

    lowers_to_formulas({name: formula(of) for name, of in steps.items()})


# Calls that only move elements into new memory; views are not recorded at all. Those among their arguments that are
# called so say where to, and must be constants.
MOVEMENTS = frozenset(
    "cat channel_shuffle clone constant_pad_nd copy fill flip gather index index_copy index_fill index_put "
    "index_select masked_fill pixel_shuffle pixel_unshuffle repeat roll rot90 scatter select_scatter slice_scatter "
    "stack tril triu where zero".split()
)
PLACES = frozenset(("index", "indices", "mask", "condition"))
MASKED = ("where", "masked_fill")
# Calls whose result depends on the shapes of their arguments alone, and what it is filled with.
FRESH = {
    **dict.fromkeys(("zeros_like", "empty_like", "new_zeros", "new_empty", "new_empty_strided"), 0),
    **dict.fromkeys(("ones_like", "new_ones"), 1),
    **dict.fromkeys(("full_like", "new_full"), None),
}
