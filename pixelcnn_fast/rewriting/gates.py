"""Makes ``tanh(a) * sigmoid(b)``, or ``a * sigmoid(b)``, of the halves of a feature map into ``gated_activation``."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import (
    ADD,
    MUL,
    SIGMOID,
    TANH,
    Writes,
    argument,
    is_any_call,
    is_call,
    line,
    name_of,
    only_user,
    size,
    slices,
    value,
)
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_map
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES, followed, is_surely_so, layout_of


def rewrite(captured: CapturedGraph) -> None:
    for node in list(captured.graph.nodes):
        if not is_call(node, MUL) or len(node.args) != 2 or node.kwargs:
            continue
        for a, sigmoid in (node.args, node.args[::-1]):
            # Whatever else is multiplied with a sigmoid is no gate.
            if is_call(sigmoid, SIGMOID) and (is_call(a, TANH) or _wholes(a, sigmoid.args[0])):
                _rewrite(captured, node, a, sigmoid)
                break


def _rewrite(captured: CapturedGraph, node: fx.Node, a: Any, sigmoid: fx.Node) -> None:
    graph, where = captured.graph, line(node)
    is_linear = not is_call(a, TANH)
    factors = (sigmoid,) if is_linear else (a, sigmoid)
    wholes = _wholes(a if is_linear else a.args[0], sigmoid.args[0])
    what = f"{'a' if is_linear else 'tanh'} · sigmoid"
    if (why := _why_not(captured, node, wholes, factors)) is not None:
        captured.report.left[f"{what}: {why}", where] += 1
        return
    whole, sources = wholes[0], node.all_input_nodes
    is_whole_in_region = captured.regions.are_one(node, whole)
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.pixelcnn_fast.gated_activation.default)
    captured.replace(node, by=new)
    for source in sources:
        _erase_unread(graph, source, until=wholes)
    with graph.inserting_before(new):
        x, condition = whole, _condition(graph, whole, wholes[1]) if len(wholes) == 2 else None
        if condition is None and is_whole_in_region:
            x, condition = _sum(graph, whole, captured.writes) or (whole, None)
    new.args = (x, condition, "auto", is_linear)
    _erase_unread(graph, whole)
    inside = "" if condition is None else ", with what is added"
    captured.report.rewritten[f"{what} → gated_activation{inside}", where] += 1


def _why_not(
    captured: CapturedGraph, node: fx.Node, wholes: tuple[fx.Node, ...], factors: tuple[fx.Node, ...]
) -> str | None:
    if not wholes:
        return "not of the first and the second half of one feature map"
    if not is_large_map(wholes[0]):
        return TOO_SMALL
    if layout_of(node) != followed(wholes[0]) or not is_surely_so(node):
        return OTHER_STRIDES
    writes, between = captured.writes, _between(node, wholes)
    if not writes.none_between(min(between), node, between) or not writes.none_after(min(between), wholes):
        return "something writes into the feature map"
    if not writes.none_before_backward(wholes):
        return "of what is known outside the graph, where it may be written"
    if any(only_user(each) is not node for each in factors):
        return "one of them is used elsewhere, too"
    if not captured.regions.are_one(node, *between):
        return "partly without gradients, or under autocast"
    return None


def _wholes(a: Any, b: Any) -> tuple[fx.Node, ...]:
    """The feature map of which a gate's inputs are the halves, and what is added to it, if it is."""
    if (whole := _whole(a, b)) is not None:
        return (whole,)
    if not all(is_call(each, ADD) and len(each.args) == 2 and not each.kwargs for each in (a, b)):
        return ()
    for of_b in (b.args, b.args[::-1]):
        pair = [_whole(*halves) for halves in zip(a.args, of_b, strict=True)]
        for x, condition in (pair, pair[::-1]):
            if x is None or condition is None or x is condition:
                continue
            full, added, total = value(x), value(condition), value(a)
            assert full is not None and added is not None and total is not None
            per_image = (*full.shape[:2], 1, 1)
            if full.dtype == added.dtype == total.dtype and added.shape in (full.shape, per_image):
                return (x, condition)
    return ()


def _whole(a: Any, b: Any) -> fx.Node | None:
    first, second = _half(a), _half(b)
    is_pair = first is not None and first[1] == 0 and second == (first[0], 1)
    return first[0] if first is not None and is_pair else None


def _condition(graph: fx.Graph, x: fx.Node, condition: fx.Node) -> fx.Node:
    """[N, 2C] if it is the same for all pixels."""
    return condition if size(x) == size(condition) else graph.call_method("flatten", (condition, 1))


def _between(node: fx.Node, wholes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """The calls that lead from the feature maps to a gate."""
    found = [x for x in node.all_input_nodes if x not in wholes]
    for each in found:
        found += [x for x in each.all_input_nodes if x not in wholes and x not in found]
    return found


def _erase_unread(graph: fx.Graph, node: fx.Node, until: tuple[fx.Node, ...] = ()) -> None:
    if node in until or node.users or not is_any_call(node):
        return
    sources = node.all_input_nodes if until else []
    graph.erase_node(node)
    for source in sources:
        _erase_unread(graph, source, until)


def _sum(graph: fx.Graph, whole: fx.Node, writes: Writes) -> tuple[fx.Node, fx.Node] | None:
    """(x, condition) of a gate's input that nobody else reads and that is their sum. In
    inference, a sum of two maps is left to the convolution before it."""
    if whole.users or not is_call(whole, ADD) or len(whole.args) != 2 or whole.kwargs:
        return None
    total = value(whole)
    for x, condition in (whole.args, whole.args[::-1]):
        a, b = value(x), value(condition)
        if a is None or b is None or total is None:
            continue
        assert isinstance(x, fx.Node) and isinstance(condition, fx.Node)
        if a.shape != total.shape or not a.dtype == b.dtype == total.dtype or followed(x) != followed(whole):
            continue
        if not writes.none_after(whole, [x, condition]) or not writes.none_before_backward([x, condition]):
            continue
        if b.shape == (*a.shape[:2], 1, 1) or (b.shape == a.shape and not writes.inference):
            return x, _condition(graph, x, condition)
    return None


def _half(node: Any) -> tuple[fx.Node, int] | None:
    """The feature map [N, 2C, H, W] of which a node is half the channels, and which half."""
    if not is_call(node, (operator.getitem,)) or not isinstance(source := node.args[0], fx.Node):
        return None
    index: Any = node.args[1]
    if isinstance(index, int):
        return _of_parts(source, index)
    channels, taken = _channels(source), slices(node)
    if channels is None or taken is None or taken[2:] != 2 * [slice(None)]:
        return None
    if index[:2] != (slice(None), taken[1]):
        return None
    middle, (start, stop, _) = channels // 2, taken[1].indices(channels)
    return {(0, middle): (source, 0), (middle, channels): (source, 1)}.get((start, stop))


def _of_parts(parts: fx.Node, index: int) -> tuple[fx.Node, int] | None:
    """Of what ``chunk`` or ``split`` gives."""
    name = name_of(parts)
    if name not in ("chunk", "split", "tensor_split") or not parts.args:
        return None
    source, channels, axis = parts.args[0], _channels(parts.args[0]), argument(parts, 2, "dim", 0)
    named = next((x for key, x in parts.kwargs.items() if key != "dim"), None)
    sizes = parts.args[1] if len(parts.args) > 1 else named
    if channels is None or axis not in (1, -3) or index not in (0, 1) or not isinstance(source, fx.Node):
        return None
    middle = channels // 2
    in_halves = (2,) if name != "split" else (middle, [middle, middle], (middle, middle))
    return (source, index) if sizes in in_halves else None


def _channels(node: Any) -> int | None:
    """Those of a feature map, if they are even."""
    found = value(node)
    if found is None or found.dim() != 4 or not isinstance(found.shape[1], int) or found.shape[1] % 2:
        return None
    return found.shape[1]
