"""The formula of each kind of step in PyTorch, which those of the compiled runtimes must match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.program.steps import ACTIVATIONS, KINDS

if TYPE_CHECKING:
    from pixelcnn_fast.program.operands import ConditionOperand, Read, Step


def _layer_norm(x: Tensor, alpha: float, operand: Tensor) -> Tensor:
    variance, mean = torch.var_mean(operand, -1, correction=0, keepdim=True)
    return (x - mean) * (variance + alpha).rsqrt()


def _activation(kind: str) -> Callable[[Tensor, float], Tensor]:
    function = getattr(F, kind)
    return function if ACTIVATIONS[kind].alpha else lambda x, alpha: function(x)


def _add(x: Tensor, alpha: float, operand: Tensor) -> Tensor:
    return x + (operand if alpha == 1 else alpha * operand)


# Each takes x, [..., channels], alpha, and what the kind's row in KINDS says.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    **{kind: _activation(kind) for kind in ACTIVATIONS},
    "affine": lambda x, alpha, scale, shift: x * scale + shift,
    "add": _add,
    "multiply": lambda x, alpha, operand: x * operand,
    "add_condition": _add,
    "multiply_condition": lambda x, alpha, operand: x * operand,
    "maximum": lambda x, alpha, operand: torch.maximum(x, operand),
    "minimum": lambda x, alpha, operand: torch.minimum(x, operand),
    "at_least": lambda x, alpha: x.clamp(min=alpha),
    "at_most": lambda x, alpha: x.clamp(max=alpha),
    "gelu": lambda x, alpha: F.gelu(x),
    "gelu_tanh": lambda x, alpha: F.gelu(x, approximate="tanh"),
    "exp": lambda x, alpha: torch.exp(x),
    "log": lambda x, alpha: torch.log(x),
    "erf": lambda x, alpha: torch.erf(x),
    "erfc": lambda x, alpha: torch.erfc(x),
    "softplus": lambda x, alpha: F.softplus(x, alpha),
    "power": lambda x, alpha: x**alpha,
    "layer_norm": _layer_norm,
}

if differing := KINDS.keys() ^ FORMULAS.keys():
    raise ImportError(
        "program/steps.py and program/formulas.py do not list the same kinds of step: "
        f"{', '.join(sorted(differing))} in one of them only"
    )


def apply_steps(
    x: Tensor,
    steps: Sequence[Step],
    value: Callable[[Read], Tensor],
    condition: Callable[[ConditionOperand], Tensor],
) -> Tensor:
    """Puts x, [..., channels], through ``steps``; the functions give operands that broadcast to it."""
    for step in steps:
        operands: tuple[Tensor, ...] = ()
        if step.value is not None:
            operands = (value(step.value),)
        elif step.condition is not None:
            operands = (condition(step.condition),)
        elif step.scale is not None and step.shift is not None:
            operands = (step.scale, step.shift)
        x = FORMULAS[step.kind](x, step.alpha, *operands)
    return x
