"""The passes in their order: from a captured program to a phased one, and on to a runtime's own.

``compile_model`` runs ``simplified``, compares what that leaves with the model, and then
runs ``in_dtype`` and ``phased``; ``for_runtime`` follows when a runtime is built. Passes
that change weights run within a ``WeightRecorder``: whatever a weight's value decides, for
example by ``w != 0``, becomes a guard, and weights that decide it otherwise need a new
program. A pass that only asks whether a weight lets something through asks
``program.zeros``, so that weights may become zero later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import torch

from pixelcnn_fast.passes.compose import compose
from pixelcnn_fast.passes.fuse import fuse
from pixelcnn_fast.passes.phases import split_phases
from pixelcnn_fast.passes.precision import in_dtype, rounded_weights
from pixelcnn_fast.passes.residuals import without_waiting_for_residuals
from pixelcnn_fast.passes.retiming import without_reading_ahead
from pixelcnn_fast.passes.split_channels import split_channels, without_unread_channels
from pixelcnn_fast.passes.unread import without_unread, without_zeros
from pixelcnn_fast.passes.wavefront import one_row_at_a_time, with_wavefront
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program

# Called after capture and each pass, with its name and result: tests verify programs here.
watches: list[Callable[[str, Program | PhasedProgram], None]] = []

# These keep the meaning; what they leave is compared with the model.
SIMPLIFYING: tuple[Callable[[Program], Program], ...] = (
    without_unread,
    without_unread_channels,
    without_reading_ahead,
    split_channels,
    without_unread,
    fuse,
    compose,
    without_unread,
)
# After weights are in the model's dtype, or rounded.
CLEANING: tuple[Callable[[Program], Program], ...] = (without_zeros, without_unread)
# What follows for one runtime, whenever it is built.
TAILS: dict[str, tuple[Callable[[PhasedProgram], PhasedProgram], ...]] = {
    "eager": (),
    "cpu": (),
    "cuda": (one_row_at_a_time, without_waiting_for_residuals),
}
# All of them, for tests and docs.
PASSES: tuple[Callable, ...] = (
    *SIMPLIFYING,
    in_dtype,
    rounded_weights,
    *CLEANING,
    split_phases,
    with_wavefront,
    *chain(*TAILS.values()),
)


def simplified(program: Program) -> Program:
    """A captured causal program -> one with the same meaning and less work."""
    return _through(SIMPLIFYING, program)


def phased(program: Program, stored: torch.dtype | None = None) -> PhasedProgram:
    """A simplified program -> one for any runtime. stored: what weights are rounded to; None: nothing."""
    if stored is not None:
        program = rounded_weights(program, stored)
        show(rounded_weights.__name__, program)
    result = split_phases(_through(CLEANING, program))
    show(split_phases.__name__, result)
    return _through((with_wavefront,), result)


def for_runtime(runtime: str, program: PhasedProgram) -> PhasedProgram:
    """A phased program -> this runtime's own."""
    return _through(TAILS[runtime], program)


P = TypeVar("P", Program, PhasedProgram)


def _through(passes: Sequence[Callable[[P], P]], program: P) -> P:
    for transform in passes:
        program = transform(program)
        show(transform.__name__, program)
    return program


def show(name: str, program: Program | PhasedProgram) -> None:
    """Shows what capture or a pass has made to those who watch."""
    for watch in watches:
        watch(name, program)
