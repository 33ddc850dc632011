"""Makes ``F.elu(torch.cat([x, -x], 1))`` of a feature map into ``concat_elu``."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import argument, arguments, calls, is_call, line, only_user, value
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_map
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES, followed, is_surely_so, layout_of

_CAT = frozenset((torch.cat, torch.concat, torch.concatenate))
_NEG = frozenset((operator.neg, torch.neg, torch.negative, "neg", "negative"))


def rewrite(captured: CapturedGraph) -> None:
    graph, report = captured.graph, captured.report
    for node in list(graph.nodes):
        if (parts := _parts(node)) is None:
            continue
        x, negative, both = parts
        if (why := _why_not(captured, node, *parts)) is not None:
            report.left[f"elu of x and -x: {why}", line(node)] += 1
            continue
        with graph.inserting_before(node):
            new = graph.call_function(torch.ops.pixelcnn_fast.concat_elu.default, (x, "auto"))
        captured.replace(negative, both, node, by=new)
        report.rewritten["elu of x and -x → concat_elu", line(new)] += 1


def _parts(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """x, -x, and both concatenated along the channels, of which a node is the ELU."""
    if not calls(node, (F.elu,)):
        return None
    call = arguments(node)
    both = call.input
    if call.alpha != 1 or not is_call(both, _CAT) or argument(both, 1, "dim", 0) not in (1, -3):
        return None
    parts = both.args[0]
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        return None
    x, negative = parts
    if not isinstance(x, fx.Node) or not is_call(negative, _NEG) or negative.args != (x,):
        return None
    return x, negative, both


def _why_not(
    captured: CapturedGraph, node: fx.Node, x: fx.Node, negative: fx.Node, both: fx.Node
) -> str | None:
    writes, source, result = captured.writes, value(x), value(node)
    if source is None or result is None or source.dim() != 4 or not source.is_floating_point():
        return "x is no feature map"
    if not is_large_map(x):
        return TOO_SMALL
    if layout_of(node) != followed(x) or not is_surely_so(node):
        return OTHER_STRIDES
    if only_user(negative) is not both or only_user(both) is not node:
        return "-x, or both, are used elsewhere, too"
    if not writes.none_between(negative, node, [x]):
        return "something writes into the feature map"
    # The operator keeps its result for its backward, and PyTorch does not.
    if not writes.none_after(node, [node]) or not writes.none_before_backward([node]):
        return "something writes into its result, or may, outside of the graph"
    if not captured.regions.are_one(node, both, negative):
        return "partly without gradients, or under autocast"
    return None
