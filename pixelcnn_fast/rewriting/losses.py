"""The cross-entropy of levels becomes ``categorical_nll``, which stores no probability."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast import ops  # noqa: F401  # registers torch.ops.pixelcnn_fast
from pixelcnn_fast.rewriting.nodes import (
    Writes,
    calls,
    is_call,
    line,
    size,
    value,
)
from pixelcnn_fast.rewriting.regions import Regions
from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.rewriting.worth import TOO_SMALL, is_large_map

_FLATTENING = frozenset(("reshape", "view", "flatten", torch.reshape, torch.flatten))


class CrossEntropy(NamedTuple):
    """The arguments of F.cross_entropy."""

    input: Any
    target: Any
    weight: Any = None
    size_average: Any = None
    ignore_index: Any = -100
    reduce: Any = None
    reduction: Any = "mean"
    label_smoothing: Any = 0.0

    @property
    def why_not(self) -> str | None:
        logits, target = value(self.input), value(self.target)
        if logits is None or target is None or not 2 <= logits.dim() <= 5:
            return "its logits are no matrix or map"
        if target.shape != (logits.shape[0], *logits.shape[2:]):
            return "its target has another shape, or holds probabilities"
        if target.dtype != torch.int64:  # PyTorch refuses it, too
            return f"its target is {target.dtype}"
        if self.weight is not None or self.label_smoothing != 0:
            return "it has weights of classes or label smoothing"
        if self.reduction not in ("mean", "sum") or self.size_average is not None or self.reduce is not None:
            return "it is not reduced to a mean or a sum"
        if logits.dtype not in (torch.float32, torch.float64):
            return f"its logits are {logits.dtype}"
        return None


def rewrite(graph: fx.Graph, writes: Writes, regions: Regions, report: Report) -> None:
    for node in list(graph.nodes):
        if not calls(node, (F.cross_entropy,)):
            continue
        call, where = CrossEntropy(*node.args, **node.kwargs), line(node)
        why = call.why_not
        read = [call.input, *(call.input.all_input_nodes if is_call(call.input, _FLATTENING) else ())]
        if why is None and not writes.none_after(min(node, *read), [*read, call.target]):
            why = "something writes into its logits or its target"
        if why is None and not writes.none_before_backward(read):
            why = "its logits are known outside the graph, where they may be written"
        if why is None and not is_large_map(call.input):
            why = TOO_SMALL
        if why is not None:
            report.left[f"cross_entropy: {why}", where] += 1
            continue
        with graph.inserting_before(node):
            new = _call(graph, call, regions.are_one(node, call.input))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        if call.input.op != "placeholder" and not call.input.users:
            graph.erase_node(call.input)
        report.rewritten[f"cross_entropy {list(size(call.input) or ())} → categorical_nll", where] += 1


def _call(graph: fx.Graph, call: CrossEntropy, in_one: bool) -> fx.Node:
    function, method = graph.call_function, graph.call_method
    logits, target = _levels_last(graph, call, in_one)
    of_images = function(
        torch.ops.pixelcnn_fast.categorical_nll.default, (logits, target, "auto", call.ignore_index)
    )
    total = method("sum", (function(operator.getitem, (of_images, 0)),))
    if call.reduction == "sum":
        return total
    counted = method("sum", (function(operator.ne, (call.target, call.ignore_index)),))
    return function(operator.truediv, (total, counted))


def _levels_last(graph: fx.Graph, call: CrossEntropy, in_one: bool) -> tuple[fx.Node, fx.Node]:
    """Logits [N, C, H, W, L] and target [N, C, H, W] of equal meaning."""
    method = graph.call_method
    logits = call.input if len(size(call.input) or ()) == 2 else method("movedim", (call.input, 1, -1))
    missing = 5 - len(size(call.input) or ())
    target = method("long", (call.target,))
    source = call.input.args[0] if in_one and is_call(call.input, _FLATTENING) else None
    before, flat = value(source), value(call.input)
    if before is not None and flat is not None and flat.dim() == 2 and before.shape[-1] == flat.shape[-1]:
        if 2 < before.dim() <= 5:  # what it was before it was flattened, without a copy
            logits, missing = source, 5 - before.dim()
            target = method("view_as", (target, method("select", (logits, -1, 0))))
    for _ in range(missing):
        logits, target = method("unsqueeze", (logits, 1)), method("unsqueeze", (target, 1))
    return logits, target
