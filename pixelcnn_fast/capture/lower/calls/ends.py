"""Lowers the calls that a model ends in, and those that may undo them."""

from __future__ import annotations

import math

from pixelcnn_fast.capture.lower.arithmetic import added, stepped
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pointwise import bounds
from pixelcnn_fast.capture.lower.calls.registry import lowers_to_formulas
from pixelcnn_fast.capture.lower.final_softmax import final_softmax, log_softmax, made_by
from pixelcnn_fast.capture.lower.materialize import materialised
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.program.operands import Step


def _exp(b: Builder, x: Map) -> Map:
    if made_by(b, "log_softmax", x) is not None:
        return final_softmax(b, "softmax", x)
    return stepped(b, x, Step("exp"))


def _inverse(b: Builder, x: Map, kind: str) -> Map | None:
    """What a step, or a final softmax, was applied to, if one was."""
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
        "_log_softmax": lambda b, x, dim, half_to_float: log_softmax(b, x, dim),
        "_softmax": lambda b, x, dim, half_to_float: final_softmax(b, "softmax", log_softmax(b, x, dim)),
        "exp": _exp,
        "log": lambda b, x: _inverse(b, x, "softmax") or stepped(b, x, Step("log")),
        "logit": _logit,
    }
)
