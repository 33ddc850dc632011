"""Holds the table of lowerings, which its neighbours fill, and the tables of calls that need none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.arithmetic import stepped
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.imageless import Imageless, Steps
from pixelcnn_fast.capture.record.recorder import Recording
from pixelcnn_fast.capture.record.shadow_memory import AddressSpace, Map, ShadowStorage, Unknown, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View, leaves, map_leaves, size_at
from pixelcnn_fast.user_model.float64 import no_narrower_than


class LoweringContext:
    """What a lowering may use. as_is: the calls made, or put into tables, in the recording's dtype."""

    def __init__(
        self,
        recording: Recording,
        shape: tuple[int, int, int, int],
        own: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
        levels: Tensor | None,
    ) -> None:
        """own: the model's dtype; dtype: the program's; levels: what the model is given for each level, or None."""
        self.recording, self.shape = recording, shape
        self.as_is: set[Call] = set()
        self.n, channels, height, width = shape
        self._as_exact = no_narrower_than(own) | {torch.float64}  # what features may be in
        self.space = AddressSpace(self.n, height, width)
        self.imageless = Imageless(recording, self.space, dtype, device)
        levels = None if levels is None else levels.to(dtype)
        of_image = math.prod(recording.outputs[-1].at(self.n)[0]) // self.n
        self.builder = Builder(self.space, self.imageless, channels, levels, of_image)
        assert recording.images is not None
        images = self.space.of(self.builder.images).view(recording.images.at(self.n)[0])
        self.storages = {
            recording.images.slot: ShadowStorage(recording.images, self.n, self.builder.map(images))
        }

    def map(self, x: Any) -> Map:
        """What an argument is made of: a view, or else a constant."""
        if not isinstance(x, View):
            constant = torch.as_tensor(x, dtype=self.builder.dtype, device=self.builder.device)
            return self.builder.map(self.imageless.of_constant(constant, of_weights=isinstance(x, Tensor)))
        if x.slot in self.storages:
            return self.storages[x.slot].read(x, self.n, self.space)
        return self.imageless.map(x)

    def depends_on_image(self, x: Any) -> bool:
        """Whether an argument does, so that it can't be handed to a call on constants."""
        if not isinstance(x, View) or x.slot not in self.storages:
            return False
        return not self.map(x).kinds.isdisjoint((Value, Unknown))

    def constant(self, x: Any, as_is: bool = False) -> Any:
        """x as a number or tensor, in the program's dtype unless ``as_is``. Raises Unsupported if it varies."""
        if any(isinstance(view, View) and view.slot in self.storages for view in leaves(x)):
            raise Unsupported("one of its arguments must be constant, and depends on the image")
        if any(isinstance(view, View) and self.imageless.is_given(view) for view in leaves(x)):
            raise Unsupported(
                "one of its arguments depends on the condition: only operands of sums and products may"
            )

        def found(x: Any) -> Any:
            constant = self.imageless.memory.tensor(x) if isinstance(x, View) else size_at(x, self.n)
            is_real = isinstance(constant, Tensor) and constant.is_floating_point()
            return constant.to(self.builder.dtype) if is_real and not as_is else constant

        return map_leaves(found, x)

    def rounds_to(self, dtype: torch.dtype) -> bool:
        """Whether a dtype has fewer digits than the model's own."""
        return dtype.is_floating_point and dtype not in self._as_exact


Lowering = Callable[..., Any]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, lowering))
        return lowering

    return register


def lowers_to_formulas(formulas: dict[str, Callable[..., Map | list[Map]]]) -> None:
    """Registers functions of the builder and of a call's arguments, with maps in place of tensors."""
    LOWERINGS.update({name: partial(_lowered, formula) for name, formula in formulas.items()})


def _lowered(formula: Lowering, t: LoweringContext, *args: Any, **kwargs: Any) -> Map | list[Map]:
    args, kwargs = map_leaves(lambda x: t.map(x) if isinstance(x, View) else x, (args, kwargs))
    return formula(t.builder, *args, **kwargs)


def lowers_to_steps(steps: dict[str, Callable[..., Steps]]) -> None:
    """Registers calls that put their first argument through steps, a function of the others."""
    lowers_to_formulas({name: partial(_stepped_by, of) for name, of in steps.items()})


def _stepped_by(of: Callable[..., Steps], b: Builder, x: Map, *args: Any, **kwargs: Any) -> Map:
    return stepped(b, x, *of(*args, **kwargs))


# Calls that only move elements; views are not recorded at all. Arguments called so say
# where to: they must be constants.
MOVEMENTS = frozenset(
    "cat channel_shuffle clone constant_pad_nd copy fill flip gather index index_copy index_fill index_put "
    "index_select masked_fill pixel_shuffle pixel_unshuffle repeat roll rot90 scatter select_scatter slice_scatter "
    "stack tril triu where zero".split()
)
PLACES = frozenset(("index", "indices", "mask", "condition"))
MASKED = ("where", "masked_fill")
# Calls whose result depends on the shapes of their arguments alone, and what fills it.
FRESH = {
    **dict.fromkeys(("zeros_like", "empty_like", "new_zeros", "new_empty", "new_empty_strided"), 0),
    **dict.fromkeys(("ones_like", "new_ones"), 1),
    **dict.fromkeys(("full_like", "new_full"), None),
}
