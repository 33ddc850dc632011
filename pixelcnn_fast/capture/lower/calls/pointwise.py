"""Lowers calls on single elements, or on those of several maps together, and final softmaxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pixelcnn_fast.capture.lower.arithmetic import added, combined, multiplied, stepped
from pixelcnn_fast.capture.lower.builder import Builder, broadcast_shape
from pixelcnn_fast.capture.lower.calls.registry import (
    LoweringContext,
    lowers,
    lowers_to_formulas,
    lowers_to_steps,
)
from pixelcnn_fast.capture.lower.final_softmax import final_softmax, made_by
from pixelcnn_fast.capture.lower.imageless import Steps
from pixelcnn_fast.capture.lower.materialize import copied, materialised
from pixelcnn_fast.capture.record.shadow_memory import Map, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.steps import ACTIVATIONS, Activation

LEAST = torch.finfo(torch.float32).tiny  # up to which no probability matters
NEGATED = (-1.0, 0.0)
RELU = Step("relu")


def bounds(low: float | None, high: float | None) -> list[Step]:
    return [Step(kind, float(x)) for kind, x in (("at_least", low), ("at_most", high)) if x is not None]


def _as_step(kind: str, activation: Activation) -> Callable[..., Steps]:
    if not activation.alpha:
        return lambda: [Step(kind)]
    return lambda alpha=activation.default: [Step(kind, float(alpha))]


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Steps:
    if input_scale != 1:
        raise Unsupported(f"elu with input_scale {input_scale}")
    return [Step("elu", float(alpha)), *([(float(scale), 0.0)] if scale != 1 else [])]


def _rrelu(noise: Map, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Steps:
    if training:
        raise Unsupported("it draws random numbers")
    return [Step("leaky_relu", (lower + upper) / 2)]


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Steps:
    if threshold != 20:
        raise Unsupported(f"softplus with threshold {threshold}; only 20 is supported")
    return [Step("softplus", float(beta))]


lowers_to_steps(
    {
        **{kind: _as_step(kind, activation) for kind, activation in ACTIVATIONS.items()},
        "hardsigmoid": lambda: [(1 / 6, 0.5), *bounds(0, 1)],
        "log_sigmoid_forward": lambda: [NEGATED, Step("softplus"), NEGATED],
        "sqrt": lambda: [Step("power", 0.5)],
        "rsqrt": lambda: [Step("power", -0.5)],
        "reciprocal": lambda: [Step("power", -1.0)],
        "neg": lambda: [NEGATED],
        "exp2": lambda: [(math.log(2), 0.0), Step("exp")],
        "celu": lambda alpha=1.0: [(1 / alpha, 0.0), Step("elu"), (float(alpha), 0.0)],
        "gelu": lambda *, approximate="none": [Step("gelu" if approximate == "none" else "gelu_tanh")],
        "erf": lambda: [Step("erf")],
        "erfc": lambda: [Step("erfc")],
        "hardtanh": lambda min_val=-1, max_val=1: bounds(min_val, max_val),
        "elu": _elu,
        "rrelu_with_noise": _rrelu,
        "softplus": _softplus,
    }
)


@lowers("pow")
def _pow(t: LoweringContext, x: Any, exponent: Any) -> Map:
    if isinstance(x, (int, float)) and x > 0:
        return stepped(t.builder, t.map(exponent), (math.log(x), 0.0), Step("exp"))
    if isinstance(exponent, View) and not t.depends_on_image(exponent) and t.constant(exponent).numel() == 1:
        exponent = t.constant(exponent).item()
    if not isinstance(exponent, (int, float)):
        raise Unsupported("its exponent is not one number")
    return stepped(t.builder, t.map(x), Step("power", float(exponent)))


@lowers("clamp", "clamp_min")
def _clamp(t: LoweringContext, x: View, min: Any = None, max: Any = None) -> Map:
    is_least = max is None and isinstance(min, (int, float)) and min <= LEAST
    if is_least and made_by(t.builder, "softmax", t.map(x)) is not None:
        return t.map(x)
    if not isinstance(min, View) and not isinstance(max, View):
        return stepped(t.builder, t.map(x), *bounds(min, max))
    result = t.map(x)
    for kind, bound in (("maximum", min), ("minimum", max)):
        if bound is not None:
            result = combined(t.builder, kind, result, t.map(bound))
    return result


lowers("clamp_max")(lambda t, x, max: _clamp(t, x, None, max))


def halves(b: Builder, x: Map, dim: int) -> tuple[Map, Map]:
    x = materialised(b, x)
    if x.window is not None and dim in (1, -3):
        half = -(-x.shape[1] // 2)
        first, second = (x.window.part(part) for part in (slice(half), slice(half, None)))
        return Map(b.space, window=first), Map(b.space, window=second)
    one, other = x.addresses.chunk(2, dim)
    return b.map(one), b.map(other)


def absolute(b: Builder, x: Map) -> Map:
    x = materialised(b, x)
    return added(b, stepped(b, x, RELU), stepped(b, x, NEGATED, RELU))


def _softshrink(b: Builder, x: Map, bound: float = 0.5) -> Map:
    x = materialised(b, x)
    return added(b, stepped(b, x, (1.0, -float(bound)), RELU), stepped(b, x, (-1.0, -float(bound)), RELU), -1)


def _prelu(b: Builder, x: Map, slope: Map) -> Map:
    x = materialised(b, x)
    return added(b, stepped(b, x, RELU), multiplied(b, stepped(b, x, NEGATED, RELU), slope), -1.0)


def _mish(b: Builder, x: Map) -> Map:
    x = materialised(b, x)
    return multiplied(b, x, stepped(b, x, Step("softplus"), Step("tanh")))


def _glu(b: Builder, x: Map, dim: int = -1) -> Map:
    x, gate = halves(b, x, dim)
    return multiplied(b, x, stepped(b, gate, Step("sigmoid")))


def _divided(b: Builder, x: Map | float, y: Map | float, *, rounding_mode: str | None = None) -> Map:
    if rounding_mode is not None:
        raise Unsupported(f"rounding_mode {rounding_mode!r}; only true division is supported")
    return multiplied(b, x, stepped(b, y, Step("power", -1.0)) if isinstance(y, Map) else 1 / y)


def _where(b: Builder, mask: Map, x: Map | float, y: Map | float) -> Map:
    """mask * x + (1 - mask) * y, for a mask that depends on one level, or on the condition."""
    shape = broadcast_shape(*(each.shape for each in (mask, x, y) if isinstance(each, Map)))

    def masked(x: Map | float, mask_of_x: Map) -> Map:
        if isinstance(x, Map) and Value not in x.kinds and Value not in mask.kinds:
            x = copied(b, b.map(x.addresses.expand(shape)))
        return multiplied(b, x, mask_of_x)

    return added(b, masked(x, mask), masked(y, stepped(b, mask, (-1.0, 1.0))))


def softmax_of_log(b: Builder, x: Map) -> Map:
    return final_softmax(b, "softmax", x, lambda: stepped(b, x, Step("exp")))


def _exp(b: Builder, x: Map) -> Map:
    if made_by(b, "log_softmax", x) is not None:
        return softmax_of_log(b, x)
    return stepped(b, x, Step("exp"))


def _inverse(b: Builder, x: Map, kind: str) -> Map | None:
    taken_of = made_by(b, kind, x)
    return None if taken_of is None else b.moved(x, taken_of)


def _logit(b: Builder, x: Map, eps: float | None = None) -> Map:
    if (logits := _inverse(b, x, "sigmoid")) is not None:
        if eps is None:
            return logits
        most = math.log1p(-eps) - math.log(eps)
        return stepped(b, logits, *bounds(-most, most))
    p = materialised(b, x)
    if eps is not None:
        p = stepped(b, p, *bounds(eps, 1 - eps))
    return added(b, stepped(b, p, Step("log")), stepped(b, p, (-1.0, 1.0), Step("log")), -1.0)


lowers_to_formulas(
    {
        "exp": _exp,
        "log": lambda b, x: _inverse(b, x, "softmax") or stepped(b, x, Step("log")),
        "logit": _logit,
        "where": _where,
        "masked_fill": lambda b, x, mask, value: _where(b, mask, value, x),
        "abs": absolute,
        "softshrink": _softshrink,
        "_prelu_kernel": _prelu,
        "mish": _mish,
        "glu": _glu,
        "maximum": lambda b, x, y: combined(b, "maximum", x, y),
        "minimum": lambda b, x, y: combined(b, "minimum", x, y),
        "add": lambda b, x, y, *, alpha=1: added(b, x, y, alpha),
        "sub": lambda b, x, y, *, alpha=1: added(b, x, y, -alpha),
        "rsub": lambda b, x, y, alpha=1: added(b, y, x, -alpha),
        "mul": multiplied,
        "div": _divided,
        "addcmul": lambda b, x, y, z, *, value=1: added(b, x, multiplied(b, y, z), value),
        "addcdiv": lambda b, x, y, z, *, value=1: added(b, x, _divided(b, y, z), value),
        "lerp": lambda b, x, end, weight: added(b, x, multiplied(b, added(b, end, x, -1), weight)),
    }
)
