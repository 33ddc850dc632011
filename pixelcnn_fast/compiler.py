"""From a model to what the runtimes execute: capture, causality, passes, and the check against the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcnn_fast.capture.private_copy import eagerly
from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.errors import CaptureMismatch, NonFiniteLogits
from pixelcnn_fast.heads import Head
from pixelcnn_fast.passes.pipeline import Watch, phased, show, simplified
from pixelcnn_fast.program.causality import check_causal
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, Conditions
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.runtimes import Precision

STORED: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}  # as narrow weights
TOLERANCE = 1e3  # of the check, in roundings of the program's dtype


@dataclass(frozen=True)
class Compiled:
    """A model as the runtimes take it.

    conditions: the part of the model that depends on the condition alone, for ``program.condition_operands``.
    normalised: whether the model's logits are log-probabilities, whose closing softmax the program leaves out.
    """

    program: PhasedProgram
    conditions: Conditions
    normalised: bool
    precision: Precision

    @property
    def listing(self) -> ProgramListing:
        """The program, to print or to ask for its costs."""
        stored = STORED.get(self.precision, self.program.dtype)
        return ProgramListing(self.program, stored.itemsize)


def compiled(model: WrappedModel, precision: Precision = "same", watch: Watch | None = None) -> Compiled:
    """Captures the model, whose head then has its layout, and compiles it. precision: as for ``Sampler``. watch: a
    function that is shown the captured program, and the program after each pass.

    Raises ValueError for a precision that does not go with the model's dtype, and what ``Sampler`` raises.
    """
    with model.in_use(), eagerly:
        captured, conditions, logits = model.captured(*model.example())
        check_finite(logits, model.head)
        show("capture", captured, watch)
        check_causal(captured)
        program = simplified(captured, watch)
        check_program(program, conditions, model)
    return Compiled(
        phased(program, stored_dtype(program, precision), watch), conditions, program.normalised, precision
    )


def stored_dtype(program: Program, precision: Precision) -> torch.dtype | None:
    """What the program's weights are rounded to, if they are to be stored in fewer bits."""
    if precision != "same" and program.dtype != torch.float32:
        raise ValueError(f"precision={precision!r} goes with a float32 model, this one is {program.dtype}")
    return STORED.get(precision)


def check_program(program: Program, conditions: Conditions, model: WrappedModel) -> None:
    """Compares the program with the model, on an image and a condition other than those it was captured with.

    Raises CaptureMismatch if they differ, NonFiniteLogits if the model's logits are not finite.
    """
    values, given = model.example(seed=1)
    logits = model.parameters(values, given)
    check_finite(logits, model.head)
    operands = conditions(condition_operands(program.instructions), given, EXAMPLE_BATCH)
    computed = model.head.comparable(evaluate(program, values, operands.__getitem__))
    expected = model.head.comparable(logits)
    scale = expected.abs().max().item()
    error = (computed - expected).abs().max().item()
    if not error <= TOLERANCE * torch.finfo(program.dtype).eps * max(scale, 1.0):
        raise CaptureMismatch(
            f"on a random image the captured program differs from the model by {error:.3g} (logits up to "
            f"{scale:.3g}): the model probably changes a tensor through an alias or depends on the image's "
            "values in Python; please report it with the model"
        )


def check_finite(logits: Tensor, head: Head) -> None:
    """logits: [N, C, H, W, L]. Raises NonFiniteLogits, naming the first sub-pixel whose logits are not finite."""
    bad = ~head.comparable(logits).isfinite()
    if bool(bad.any()):
        raise NonFiniteLogits(*bad.nonzero()[0, :4].tolist())
