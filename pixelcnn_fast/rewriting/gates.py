"""``tanh(a) * sigmoid(b)`` of the two halves of a feature map becomes ``gated_activation``."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from pixelcnn_fast import ops  # noqa: F401  # registers torch.ops.pixelcnn_fast
from pixelcnn_fast.rewriting.nodes import (
    ADD,
    MUL,
    SIGMOID,
    TANH,
    Writes,
    is_any_call,
    is_call,
    line,
    name_of,
    only_user,
    value,
)
from pixelcnn_fast.rewriting.regions import Regions
from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES, followed, is_surely_so, layout_of
from pixelcnn_fast.rewriting.worth import TOO_SMALL, is_large_map


class Half(NamedTuple):
    """Which half of whose channels a node is."""

    whole: fx.Node
    number: int


def rewrite(graph: fx.Graph, writes: Writes, regions: Regions, report: Report) -> None:
    for node in list(graph.nodes):
        if not is_call(node, MUL) or len(node.args) != 2 or node.kwargs:
            continue
        for tanh, sigmoid in (node.args, node.args[::-1]):
            if is_call(tanh, TANH) and is_call(sigmoid, SIGMOID):
                _rewrite(graph, node, tanh, sigmoid, writes, regions, report)
                break


def _rewrite(
    graph: fx.Graph,
    node: fx.Node,
    tanh: fx.Node,
    sigmoid: fx.Node,
    writes: Writes,
    regions: Regions,
    report: Report,
) -> None:
    where = line(node)
    wholes = _wholes(tanh.args[0], sigmoid.args[0])
    if not wholes:
        report.left["tanh · sigmoid: not of the first and the second half of one feature map", where] += 1
        return
    whole = wholes[0]
    if not is_large_map(whole):
        report.left[f"tanh · sigmoid: {TOO_SMALL}", where] += 1
        return
    if layout_of(node) != followed(whole) or not is_surely_so(node):
        report.left[f"tanh · sigmoid: {OTHER_STRIDES}", where] += 1
        return
    between = _between(node, wholes)
    if not writes.none_between(min(between), node, between) or not writes.none_after(min(between), wholes):
        report.left["tanh · sigmoid: something writes into the feature map", where] += 1
        return
    if not writes.none_before_backward(wholes):
        report.left["tanh · sigmoid: of what is known outside the graph, where it may be written", where] += 1
        return
    if any(only_user(each) is not node for each in (tanh, sigmoid)):
        report.left["tanh · sigmoid: one of them is used elsewhere, too", where] += 1
        return
    if not regions.are_one(node, *between):
        report.left["tanh · sigmoid: partly without gradients, or under autocast", where] += 1
        return
    new = graph.create_node("call_function", torch.ops.pixelcnn_fast.gated_activation.default)
    node.prepend(new)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    _erase_unread(graph, node, until=wholes)
    with graph.inserting_before(new):
        x, condition = whole, _condition(graph, whole, wholes[1]) if len(wholes) == 2 else None
        if condition is None and regions.are_one(node, whole):
            x, condition = _sum(graph, whole, writes) or (whole, None)
    new.args = (x, condition, "auto")
    _erase_unread(graph, whole)
    inside = "" if condition is None else ", with what is added"
    report.rewritten[f"tanh · sigmoid → gated_activation{inside}", where] += 1


def _wholes(a: Any, b: Any) -> tuple[fx.Node, ...]:
    """The feature map of which a gate's inputs are the halves, and what is added to it, half by half; or nothing."""
    if (whole := _whole(a, b)) is not None:
        return (whole,)
    if not all(is_call(each, ADD) and len(each.args) == 2 and not each.kwargs for each in (a, b)):
        return ()
    for of_a in (a.args, a.args[::-1]):
        for of_b in (b.args, b.args[::-1]):
            x, condition = (_whole(*pair) for pair in zip(of_a, of_b, strict=True))
            if x is None or condition is None or x is condition:
                continue
            full, added, total = value(x), value(condition), value(a)
            assert full is not None and added is not None and total is not None
            per_image = (*full.shape[:2], 1, 1)
            if full.dtype == added.dtype == total.dtype and added.shape in (full.shape, per_image):
                return (x, condition)
    return ()


def _whole(a: Any, b: Any) -> fx.Node | None:
    """The feature map of which two nodes are the first and the second half."""
    first, second = half(a), half(b)
    if first is None or second is None or first.whole is not second.whole:
        return None
    return first.whole if (first.number, second.number) == (0, 1) else None


def _condition(graph: fx.Graph, x: fx.Node, condition: fx.Node) -> fx.Node:
    """What is added, as the op takes it: [N, 2C] if it is the same for all pixels."""
    a, b = value(x), value(condition)
    assert a is not None and b is not None
    return condition if a.shape == b.shape else graph.call_method("flatten", (condition, 1))


def _between(node: fx.Node, wholes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """The calls that lead from the feature maps to a gate."""
    found: dict[fx.Node, None] = {}
    wanted = [*node.all_input_nodes]
    while wanted:
        each = wanted.pop()
        if each not in wholes and each not in found:
            found[each] = None
            wanted += each.all_input_nodes
    return list(found)


def _erase_unread(graph: fx.Graph, node: fx.Node, until: tuple[fx.Node, ...] = ()) -> None:
    """Erases a call that nobody reads, and what only it has read, up to some nodes."""
    if node in until or node.users or not is_any_call(node):
        return
    sources = node.all_input_nodes if until else []
    graph.erase_node(node)
    for source in sources:
        _erase_unread(graph, source, until)


def _sum(graph: fx.Graph, whole: fx.Node, writes: Writes) -> tuple[fx.Node, fx.Node] | None:
    """(x, condition) of a gate's input that nobody else reads and that is their sum.

    In inference, a sum of two maps is left to the convolution before it.
    """
    if whole.users or not is_call(whole, ADD) or len(whole.args) != 2 or whole.kwargs:
        return None
    total = value(whole)
    for x, condition in (whole.args, whole.args[::-1]):
        a, b = value(x), value(condition)
        if (
            not isinstance(x, fx.Node)
            or not isinstance(condition, fx.Node)
            or a is None
            or b is None
            or total is None
        ):
            continue
        if (
            not a.shape == total.shape
            or not a.dtype == b.dtype == total.dtype
            or followed(x) != followed(whole)
        ):
            continue
        if not writes.none_after(whole, [x, condition]) or not writes.none_before_backward([x, condition]):
            continue
        if b.shape == (*a.shape[:2], 1, 1) or (b.shape == a.shape and not writes.inference):
            return x, _condition(graph, x, condition)
    return None


def half(node: Any) -> Half | None:
    """Which half of the channels of a feature map [N, 2C, H, W] a node is, if it is one."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(source, fx.Node):
        return None
    if isinstance(index, int):
        return _of_parts(source, index)
    channels = _channels(source)
    if channels is None or not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return None
    taken, rest = index[1], index[2:]
    if (
        not isinstance(taken, slice)
        or taken.step not in (None, 1)
        or any(x not in (slice(None), ...) for x in rest)
    ):
        return None
    if not all(isinstance(x, int | None) for x in (taken.start, taken.stop)):
        return None
    start, stop, _ = taken.indices(channels)
    middle = channels // 2
    return {(0, middle): Half(source, 0), (middle, channels): Half(source, 1)}.get((start, stop))


def _of_parts(parts: fx.Node, index: int) -> Half | None:
    """Of what ``chunk`` or ``split`` gives."""
    name = name_of(parts)
    if name not in ("chunk", "split", "tensor_split") or not parts.args:
        return None
    source, rest = parts.args[0], [*parts.args[1:]]
    channels = _channels(source)
    sizes = rest[0] if rest else next((x for key, x in parts.kwargs.items() if key != "dim"), None)
    axis = rest[1] if len(rest) > 1 else parts.kwargs.get("dim", 0)
    if channels is None or axis not in (1, -3) or index not in (0, 1) or not isinstance(source, fx.Node):
        return None
    middle = channels // 2
    in_halves = (2,) if name != "split" else (middle, [middle, middle], (middle, middle))
    return Half(source, index) if sizes in in_halves else None


def _channels(node: Any) -> int | None:
    """The channels of a feature map, if they are even."""
    found = value(node)
    if found is None or found.dim() != 4 or not isinstance(found.shape[1], int) or found.shape[1] % 2:
        return None
    return found.shape[1]
