"""The kinds of step: every list of them, in Python, C++ and CUDA, is made from this table.

A kind that is added here needs a formula in csrc/cpu/simd/steps.h and csrc/cuda/kernels/steps.h, and if it is not an
activation of PyTorch's, in program/formulas.py; until it has them, csrc does not compile and the package does not
import. CMake runs this file with a bare Python (csrc/headers.py), so it imports nothing but the standard library.
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
class Activation:
    """What PyTorch calls a kind of step; its function in torch.nn.functional and in ATen has the kind's own name.

    module: its class in torch.nn; alpha: the argument of the function, and attribute of the module, that is the step's
    alpha, or empty; default: what that is where it is not given.
    """

    module: str
    alpha: str = ""
    default: float = 1.0


@dataclass(frozen=True)
class StepKind:
    """One kind of pointwise operation on x.

    reads_all_channels: whether each channel reads all channels of the operand, or only the one that it changes;
    cost: in multiply-adds for one channel of one pixel; schedules are chosen by it;
    alpha: what the step's number means; empty if the formula has none;
    commutes: whether x and the operand may change places (if alpha is 1);
    activation: its names in PyTorch, if it is one of its activations, and computes what that does by default.
    """

    name: str
    operand: Operand = Operand.NONE
    reads_all_channels: bool = False
    on_zero: OnZero = OnZero.KEPT
    cost: int = 4
    alpha: str = ""
    commutes: bool = False
    activation: Activation | None = None

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
    StepKind("relu", activation=Activation("ReLU")),
    StepKind(
        "leaky_relu", alpha="the slope below zero", activation=Activation("LeakyReLU", "negative_slope", 0.01)
    ),
    StepKind(
        "elu", cost=EXPONENTIAL, alpha="x < 0 becomes alpha * (exp(x) - 1)", activation=Activation("ELU", "alpha")
    ),
    StepKind("silu", cost=EXPONENTIAL, activation=Activation("SiLU")),
    StepKind("sigmoid", on_zero=OnZero.LOST, cost=EXPONENTIAL, activation=Activation("Sigmoid")),
    StepKind("tanh", cost=EXPONENTIAL, activation=Activation("Tanh")),
    StepKind("gelu", cost=EXPONENTIAL),
    StepKind("gelu_tanh", cost=EXPONENTIAL),
    StepKind("hardswish", activation=Activation("Hardswish")),
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
ACTIVATIONS: dict[str, Activation] = {kind.name: kind.activation for kind in _KINDS if kind.activation}
