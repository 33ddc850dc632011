"""The kinds of step: every list of them, in Python, C++ and CUDA, is made from this table.

A kind that is added here needs a formula in program/formulas.py, csrc/cpu/simd/steps.h and csrc/cuda/kernels/steps.h;
until it has all three, the package does not import and csrc does not compile. CMake runs this file with a bare Python
(csrc/headers.py), so it imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Operand(Enum):
    """What a step reads in addition to the x that it changes."""

    NONE = "none"
    VALUE = "value"  # another value
    CONDITION = "condition"  # what depends on the condition alone
    CONSTANTS = "constants"  # a scale and a shift for each channel


class OnZero(Enum):
    """What a step makes of x = 0, whatever its operand is."""

    KEPT = "kept"
    LOST = "lost"
    INFINITE = "infinite"
    KEPT_IF_ALPHA_IS_POSITIVE = "kept_if_alpha_is_positive"  # and infinite if it is negative
    KEPT_UNLESS_ALPHA_IS_POSITIVE = "kept_unless_alpha_is_positive"
    KEPT_UNLESS_ALPHA_IS_NEGATIVE = "kept_unless_alpha_is_negative"


@dataclass(frozen=True)
class StepKind:
    """One kind of pointwise operation on x.

    reads_all_channels: whether each channel reads all channels of the operand, or only the one that it changes;
    cost: in multiply-adds for one channel of one pixel; schedules are chosen by it;
    alpha: what the step's number means; empty if the formula has none;
    commutes: whether x and the operand may change places (if alpha is 1).
    """

    name: str
    operand: Operand = Operand.NONE
    reads_all_channels: bool = False
    on_zero: OnZero = OnZero.KEPT
    cost: int = 4
    alpha: str = ""
    commutes: bool = False

    def keeps_zero(self, alpha: float = 1.0) -> bool:
        """Whether 0 stays 0, so that zeros outside the grid may go through the step."""
        return {
            OnZero.KEPT: True,
            OnZero.LOST: False,
            OnZero.INFINITE: False,
            OnZero.KEPT_IF_ALPHA_IS_POSITIVE: alpha > 0,
            OnZero.KEPT_UNLESS_ALPHA_IS_POSITIVE: alpha <= 0,
            OnZero.KEPT_UNLESS_ALPHA_IS_NEGATIVE: alpha >= 0,
        }[self.on_zero]

    def is_infinite_at_zero(self, alpha: float = 1.0) -> bool:
        return self.on_zero is OnZero.INFINITE or (
            self.on_zero is OnZero.KEPT_IF_ALPHA_IS_POSITIVE and alpha < 0
        )


EXPONENTIAL = 50  # the cost of a formula that takes an exponential, a root or a logarithm

_KINDS = (
    StepKind("affine", Operand.CONSTANTS, on_zero=OnZero.LOST),
    StepKind("add", Operand.VALUE, on_zero=OnZero.LOST, alpha="the operand is multiplied by it", commutes=True),
    StepKind("multiply", Operand.VALUE, commutes=True),
    StepKind("add_condition", Operand.CONDITION, on_zero=OnZero.LOST, alpha="the operand is multiplied by it"),
    StepKind("multiply_condition", Operand.CONDITION),
    StepKind("maximum", Operand.VALUE, on_zero=OnZero.LOST, commutes=True),
    StepKind("minimum", Operand.VALUE, on_zero=OnZero.LOST, commutes=True),
    StepKind("at_least", on_zero=OnZero.KEPT_UNLESS_ALPHA_IS_POSITIVE, alpha="x < alpha becomes alpha"),
    StepKind("at_most", on_zero=OnZero.KEPT_UNLESS_ALPHA_IS_NEGATIVE, alpha="x > alpha becomes alpha"),
    StepKind("relu"),
    StepKind("leaky_relu", alpha="the slope below zero"),
    StepKind("elu", cost=EXPONENTIAL, alpha="x < 0 becomes alpha * (exp(x) - 1)"),
    StepKind("silu", cost=EXPONENTIAL),
    StepKind("sigmoid", on_zero=OnZero.LOST, cost=EXPONENTIAL),
    StepKind("tanh", cost=EXPONENTIAL),
    StepKind("gelu", cost=EXPONENTIAL),
    StepKind("gelu_tanh", cost=EXPONENTIAL),
    StepKind("hardswish"),
    StepKind("exp", on_zero=OnZero.LOST, cost=EXPONENTIAL),
    StepKind("log", on_zero=OnZero.INFINITE, cost=EXPONENTIAL),
    StepKind("softplus", on_zero=OnZero.LOST, cost=EXPONENTIAL, alpha="beta"),
    StepKind("power", on_zero=OnZero.KEPT_IF_ALPHA_IS_POSITIVE, cost=EXPONENTIAL, alpha="the exponent"),
    StepKind(
        "layer_norm", Operand.VALUE, reads_all_channels=True, on_zero=OnZero.LOST, cost=EXPONENTIAL,
        alpha="epsilon: (x - mean) / sqrt(variance + alpha), both over all channels of the operand",
    ),
)  # fmt: skip
KINDS: dict[str, StepKind] = {kind.name: kind for kind in _KINDS}
