"""Turns a model into what the runtimes execute: capture, causality, passes, the check."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.capture import Captured, capture
from pixelcnn_fast.capture.record.weight_recorder import WeightRecorder
from pixelcnn_fast.check.against_model import by_module, check_program, expectations
from pixelcnn_fast.errors import NotCausal
from pixelcnn_fast.housekeeping import freed_memory_kept, gc_paused
from pixelcnn_fast.passes.pipeline import for_runtime, phased, show, simplified
from pixelcnn_fast.passes.precision import in_dtype
from pixelcnn_fast.program.causality import check_causal
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, ConditionProgram
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.program.operands import Convert
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.refresh.behaviour import Behaviour
from pixelcnn_fast.refresh.reevaluation import Reevaluation
from pixelcnn_fast.runtimes import DTYPES, Precision, RuntimeName
from pixelcnn_fast.user_model.conditioning import explore_labels, infer_condition_dtypes
from pixelcnn_fast.user_model.private_copy import eagerly
from pixelcnn_fast.user_model.wrapped_model import WrappedModel, scripted_parts_named


@dataclass(frozen=True)
class Compiled:
    """A model as the runtimes take it.

    program: what each runtime's own is made of; conditions: the part that depends on labels
    and condition alone; normalised: whether the logits are log-probabilities, whose softmax
    the program leaves out; whole: the program before its split into phases, if it is
    compared with the model for what users give. A pickle leaves out behaviour, what the
    forward does; recorder, of the calls that made the weights; first, this before it got
    other weights.
    """

    program: PhasedProgram
    conditions: ConditionProgram
    normalised: bool
    precision: Precision
    behaviour: Behaviour | None
    recorder: WeightRecorder | None
    whole: Program | None
    first: Compiled | None = None

    def with_weights(
        self, weights: MutableMapping[str, Tensor], does_the_same: bool = False
    ) -> Compiled | None:
        """The same with other weights, by name, among which it puts those that
        the model writes. None if it must be compiled anew: a weight that was zero
        no longer is (more zeros rarely matter), Python has read another number
        (unless the model is known to do the same), a weight is gone, or this
        comes out of a pickle."""
        first = self.first or self
        if first.recorder is None:
            return None
        if does_the_same not in first._reevaluations:
            tensors: list[Tensor] = []  # in the order of ``converted``
            first.converted(lambda x: tensors.append(x) or x)  # type: ignore[func-returns-value]  # which is None
            first._reevaluations[does_the_same] = Reevaluation(tensors, first.recorder, does_the_same)
        constants = first._reevaluations[does_the_same](weights)
        if constants is None:
            return None
        in_turn = iter(constants)
        return replace(first.converted(lambda _: next(in_turn)), first=first)

    @cached_property
    def _reevaluations(self) -> dict[bool, Reevaluation]:
        """What computes constants from weights, by whether the model is known to do the same."""
        return {}

    def converted(self, convert: Convert) -> Compiled:
        """The same with its constants converted, in an order that is always the same."""
        program, conditions = self.program.converted(convert), self.conditions.converted(convert)
        whole = None if self.whole is None else self.whole.converted(convert)
        return replace(self, program=program, conditions=conditions, whole=whole)

    def __getstate__(self) -> dict[str, Any]:
        kept = {field.name: getattr(self._alone, field.name) for field in fields(self)}
        return {**kept, "behaviour": None, "recorder": None, "first": None}

    @cached_property
    def _alone(self) -> Compiled:
        """Its constants share no storage, which a pickle would repeat. Kept, as later pickles may refer to it."""

        def alone(x: Tensor) -> Tensor:
            is_alone = x.nbytes >= x.untyped_storage().nbytes()
            return x if is_alone else x.clone(memory_format=torch.contiguous_format)

        return self.converted(alone)

    def program_for(self, runtime: RuntimeName) -> PhasedProgram:
        """What this runtime executes."""
        return for_runtime(runtime, self.program)

    def listing(self, runtime: RuntimeName) -> ProgramListing:
        """The program of the runtime that 'auto' stands for, to print or to ask for its costs."""
        stored = DTYPES.get(self.precision, self.program.dtype)
        return ProgramListing(self.program_for(runtime), runtime, stored.itemsize)


def compile_model(model: WrappedModel, precision: Precision = "same") -> Compiled:
    """Captures the model, sets its head's layout, and compiles it. precision: as for ``Sampler``.

    Raises what ``Sampler`` raises, and ValueError for a precision that does not go with the model's dtype.
    """
    if precision != "same" and model.dtype != torch.float32:
        raise ValueError(f"precision={precision!r} goes with a float32 model, this one is {model.dtype}")
    with model.in_use(), eagerly, gc_paused(), freed_memory_kept():
        found = capture_model(model)
        with found.recorder:  # it notes what weights decide
            _check_causal(found.program, model)
            exact = simplified(found.program)
            program = in_dtype(exact, model.dtype)
            show(in_dtype.__name__, program)
        check_program(exact, found.conditions, model, expectations(model, found.replay), cast=program)
        with found.recorder:
            result = phased(program, DTYPES.get(precision))
    behaviour = Behaviour(model, found.recording, found.outside, is_captured=True)
    whole = program if found.conditions.read_by_python else None
    return Compiled(result, found.conditions, program.normalised, precision, behaviour, found.recorder, whole)


def _check_causal(program: Program, model: WrappedModel) -> None:
    try:
        check_causal(program)
    except NotCausal:
        list(by_module(model, [model.example()]))  # weights that are not finite let through what masks hide
        raise


def capture_checked(model: WrappedModel) -> Captured:
    """The captured model, compared with its program in its own dtype, before any pass.
    Raises CaptureMismatch if they differ, NonFiniteLogits if logits are not finite."""
    with model.in_use(), eagerly, gc_paused(), freed_memory_kept():
        found = capture_model(model)
        with found.recorder:
            cast = in_dtype(found.program, model.dtype)
        check_program(found.program, found.conditions, model, expectations(model, found.replay), cast=cast)
        return found._replace(program=cast)


def capture_model(model: WrappedModel) -> Captured:
    """Captures the model, and sets its head, which then has its layout, its labels, and
    ``branches`` and ``reads_images``. The program is not compared with the model yet."""
    infer_condition_dtypes(model)
    levels = None
    if model.levels is not None:
        levels = model.encode(torch.arange(model.levels).view(1, 1, 1, -1)).flatten()
    # A statistic of the whole image shall differ.
    others = ((1, 1), (1, EXAMPLE_BATCH + 1), (2, EXAMPLE_BATCH + 1))
    examples = [model.example(), *(model.example(seed, n, half=seed % 2) for seed, n in others)]
    given = [(model.encode(values), given.in_dtype(model.dtype)) for values, given in examples]
    with scripted_parts_named(model.module):
        can_be_copied = not model.held.is_uncopyable
        found = capture(
            model.module,
            given,
            model.head,
            levels,
            model.labels.classes,
            model.output,
            model.form,
            can_be_copied,
        )
    model.head, model.branches = found.head, found.program.branches
    model.reads_images = bool(model.branches)
    show("capture", found.program)
    explore_labels(model, found.conditions, condition_operands(found.program.instructions))
    return found
