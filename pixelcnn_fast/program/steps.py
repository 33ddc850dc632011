"""The kinds of step: every list of them, in Python, C++ and CUDA, is made from this table.

A new kind needs a formula in csrc/cpu/simd/steps.h and csrc/cuda/kernels/steps.h, and
unless it is an activation of PyTorch's, in program/formulas.py; without them, neither csrc
compiles nor the package imports. CMake runs this file with a bare Python (csrc/headers.py),
so it imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Operand(Enum):
    """What a step reads besides the x that it changes."""

    NONE = "none"
    VALUE = "value"  # another value
    CONDITION = "condition"  # what depends on the condition alone
    CONSTANTS = "constants"  # a scale and a shift for each channel


@dataclass(frozen=True)
class Activation:
    """What PyTorch calls a kind of step; in torch.nn.functional and in ATen it has the kind's own name.

    module: its class in torch.nn; alpha: the name there of the step's alpha, or empty; default: its value unless given.
    """

    module: str
    alpha: str = ""
    default: float = 1.0


@dataclass(frozen=True)
class StepKind:
    """One kind of pointwise operation on x.

    reads_all_channels: whether each channel reads all of the operand's channels, or only
    its own; is_infinite_at_zero: whether it makes x = 0 infinite, by its alpha; cost: in
    multiply-adds per channel and pixel; alpha: what that means, or empty; commutes: whether
    x and the operand may change places (if alpha is 1); activation: its names in PyTorch,
    if it computes what that does by default.
    """

    name: str
    operand: Operand = Operand.NONE
    reads_all_channels: bool = False
    is_infinite_at_zero: Callable[[float], bool] = lambda alpha: False
    cost: int = 4
    alpha: str = ""
    commutes: bool = False
    activation: Activation | None = None


EXPONENTIAL = 50  # the cost of an exponential, a root or a logarithm

_KINDS = (
    StepKind("affine", Operand.CONSTANTS),
    StepKind("add", Operand.VALUE, alpha="the operand is multiplied by it", commutes=True),
    StepKind("multiply", Operand.VALUE, commutes=True),
    StepKind("add_condition", Operand.CONDITION, alpha="the operand is multiplied by it"),
    StepKind("multiply_condition", Operand.CONDITION),
    StepKind("maximum", Operand.VALUE, commutes=True),
    StepKind("minimum", Operand.VALUE, commutes=True),
    StepKind("at_least", alpha="x < alpha becomes alpha"),
    StepKind("at_most", alpha="x > alpha becomes alpha"),
    StepKind("relu", activation=Activation("ReLU")),
    StepKind(
        "leaky_relu", alpha="the slope below zero", activation=Activation("LeakyReLU", "negative_slope", 0.01)
    ),
    StepKind(
        "elu", cost=EXPONENTIAL, alpha="x < 0 becomes alpha * (exp(x) - 1)", activation=Activation("ELU", "alpha")
    ),
    StepKind("silu", cost=EXPONENTIAL, activation=Activation("SiLU")),
    StepKind("sigmoid", cost=EXPONENTIAL, activation=Activation("Sigmoid")),
    StepKind("tanh", cost=EXPONENTIAL, activation=Activation("Tanh")),
    StepKind("gelu", cost=EXPONENTIAL),
    StepKind("gelu_tanh", cost=EXPONENTIAL),
    StepKind("hardswish", activation=Activation("Hardswish")),
    StepKind("exp", cost=EXPONENTIAL),
    StepKind("log", is_infinite_at_zero=lambda alpha: True, cost=EXPONENTIAL),
    StepKind("erf", cost=EXPONENTIAL),
    StepKind("erfc", cost=EXPONENTIAL),
    StepKind("softplus", cost=EXPONENTIAL, alpha="beta"),
    StepKind("power", is_infinite_at_zero=lambda alpha: alpha < 0, cost=EXPONENTIAL, alpha="the exponent"),
    StepKind(
        "layer_norm", Operand.VALUE, reads_all_channels=True, cost=EXPONENTIAL,
        alpha="epsilon: (x - mean) / sqrt(variance + alpha), both over all channels of the operand",
    ),
)  # fmt: skip
KINDS: dict[str, StepKind] = {kind.name: kind for kind in _KINDS}
ACTIVATIONS: dict[str, Activation] = {kind.name: kind.activation for kind in _KINDS if kind.activation}
