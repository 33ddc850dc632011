"""Lays feature maps between this library's operators out channels-last, as their kernels read and write them.

What follows such a map takes over its layout and gives the same numbers. Whatever else
reads it, the graph's caller first of all, gets a contiguous map. What PyTorch keeps for its
backward stays as the caller knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast.program.steps import ACTIVATIONS
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.masked_convolutions import Conv2dCall
from pixelcnn_fast.rewriting.nodes import (
    CONV2D,
    MASKED_CONV2D,
    STATISTICS,
    calls,
    is_any_call,
    line,
    size,
    spelled,
    storages,
    value,
    written,
)
from pixelcnn_fast.rewriting.strides import layout_of

_OURS = (MASKED_CONV2D, torch.ops.pixelcnn_fast.masked_conv_block.default)
_POINTWISE = (torch.ops.pixelcnn_fast.gated_activation.default, torch.ops.pixelcnn_fast.concat_elu.default)
_AGNOSTIC = (
    frozenset((*_OURS, *_POINTWISE, F.pad))
    | CONV2D
    | STATISTICS
    | spelled(
        *"add sub mul truediv div iadd isub imul itruediv neg abs clamp maximum minimum exp square".split()
    )
    | spelled(*ACTIVATIONS, *"gelu softplus mish hardtanh relu6 selu celu softsign logsigmoid".split())
)
_FEWEST = 2  # of our convolutions, joined by maps, for which their layout is changed


def rewrite(captured: CapturedGraph) -> None:
    graph, following = captured.graph, _following(captured)
    joined = set(_joined(graph, following))
    last: set[fx.Node] = set()
    copies: dict[fx.Node, fx.Node] = {}  # contiguous ones

    def contiguous(source: fx.Node, user: fx.Node) -> fx.Node:
        """A contiguous copy, made for the first user, which all others read, too."""
        if source not in copies:
            with graph.inserting_before(user):
                copies[source] = graph.call_method("contiguous", (source,))
            copies[source].meta = dict(source.meta)
        return copies[source]

    for node in list(graph.nodes):
        changed = [source for source in node.all_input_nodes if source in last]
        if node in joined:  # reads any layout, and its gradients have that of what it reads
            _set_format(node, torch.channels_last)
            last.add(node)
            continue
        if changed and node.target in _OURS and layout_of(node) == torch.contiguous_format:
            _set_format(node, torch.contiguous_format)  # and may read any
            continue
        if changed and node in following and _is_logits(node, following):
            _write_contiguous(captured, node)
            continue
        if node in following:
            last.update([node] if changed else [])
            continue
        for source in changed:
            node.replace_input_with(source, contiguous(source, node))


def _set_format(node: fx.Node, result_format: torch.memory_format) -> None:
    settings = node.target._schema.arguments  # type: ignore[union-attr]  # one of ours
    at = [setting.name for setting in settings].index("result_format")
    given: list[Any] = [*node.args, *(setting.default_value for setting in settings[len(node.args) :])]
    node.args = (*given[:at], result_format, *given[at + 1 :])


def _is_logits(node: fx.Node, following: set[fx.Node]) -> bool:
    """Whether a convolution has more channels than its argument, and its result is given
    back at once: our kernel writes it contiguously in less time than PyTorch's takes to
    compute it."""
    if not calls(node, CONV2D) or not following.isdisjoint(node.users):
        return False
    call = Conv2dCall.of(node)
    x, result = value(call.input), value(node)
    if call.why_not is not None or x is None or result is None:
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and result.shape[1] > x.shape[1]


def _write_contiguous(captured: CapturedGraph, node: fx.Node) -> None:
    call = Conv2dCall.of(node)
    with captured.graph.inserting_before(node):
        new = call.inserted(captured.graph, None, False, torch.contiguous_format)
    captured.replace(node, by=new)
    what = f"conv2d {list(size(call.weight) or ())}"
    captured.report.rewrite(what, "masked_conv2d, without a mask", line(new))


def _following(captured: CapturedGraph) -> set[fx.Node]:
    """The calls whose result is a contiguous map, of the same numbers whatever the layout of the arguments.

    Others may get a copy. So nobody may write into it if others read it, PyTorch may not
    keep it for its backward if it is known outside, and who reads it must do so with
    gradients if it has some.
    """
    graph, writes, by_inductor = captured.graph, captured.writes, captured.by_inductor
    following = {
        node
        for node in graph.nodes
        if _is_agnostic(node)
        # Of what only the caller reads, nobody keeps a convolution's result.
        and (writes.none_before_backward([node]) or (_is_convolution(node) and _is_only_returned(node)))
        and captured.regions.are_one(node, *(user for user in node.users if user.op != "output"))
    }
    all_written = {storage for node in graph.nodes for storage in written(node)}
    while True:
        others = [node for node in graph.nodes if node not in following]
        read = {storage for node in others for x in node.all_input_nodes for storage in storages(x)}
        leaving = {node for node in following if not storages(node).isdisjoint(read & all_written)}
        if by_inductor or not captured.inference:
            leaving |= _mixing(graph, following, by_inductor)
        if not leaving:
            return following
        following -= leaving


def _mixing(graph: fx.Graph, following: set[fx.Node], by_inductor: bool) -> set[fx.Node]:
    """The calls that read maps in both layouts, whose gradients would all be channels-last."""
    joined, last = set(_joined(graph, following)), set[fx.Node]()
    for node in graph.nodes:
        if node in joined or (node in following and not last.isdisjoint(node.all_input_nodes)):
            last.add(node)
    others = {x for node in last for x in node.all_input_nodes if x not in last and _is_map(x)}
    if not by_inductor:  # a convolution hands no gradient on as it is
        others = {x for x in others if getattr(value(x), "requires_grad", False) and not _is_convolution(x)}
    return {
        node for node in last if not _is_convolution(node) and not others.isdisjoint(node.all_input_nodes)
    }


def _is_map(node: fx.Node) -> bool:
    found = value(node)
    return found is not None and found.dim() == 4 and all(n > 1 for n in found.shape[1:])


def _is_convolution(node: fx.Node) -> bool:
    return node.target in _OURS or calls(node, CONV2D)


def _is_only_returned(node: fx.Node) -> bool:
    return all(
        user.op == "output" or (not storages(user).isdisjoint(storages(node)) and _is_only_returned(user))
        for user in node.users
    )


def _is_agnostic(node: fx.Node) -> bool:
    found = value(node)
    return (
        is_any_call(node)
        and node.target in _AGNOSTIC
        and found is not None
        and layout_of(node) == torch.contiguous_format
        # Else copies may not bring back its strides, and fake tensors be wrong about them.
        and _is_map(node)
        and found.shape[0] > 0
    )


def _joined(graph: fx.Graph, following: set[fx.Node]) -> Iterator[fx.Node]:
    """Our convolutions that are joined with others by maps that keep their layout."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node in following:
            group = {node}.union(*(groups[x] for x in node.all_input_nodes if x in following))
            groups.update(dict.fromkeys(group, group))
    for node, group in groups.items():
        if node.target in _OURS and sum(x.target in _OURS for x in group) >= _FEWEST:
            yield node
