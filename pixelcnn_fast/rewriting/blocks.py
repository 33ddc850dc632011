"""In inference, computes what follows a masked convolution in the same pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast.ops.masked_conv_block import reference
from pixelcnn_fast.ops.masked_conv_block.norm import folded_norm
from pixelcnn_fast.program.steps import ACTIVATIONS
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import (
    ADD,
    ADD_IN_PLACE,
    MASKED_CONV2D,
    argument,
    arguments,
    calls,
    is_call,
    line,
    only_user,
    proxies,
    spelled,
    value,
)
from pixelcnn_fast.rewriting.strides import asked_format, is_surely_so, layout_of

_KINDS = {call: kind for kind in ACTIVATIONS if kind in reference.ACTIVATIONS for call in spelled(kind)}


class Block(NamedTuple):
    """A convolution and what follows it. norm: statistics, weight, bias and eps of a batch norm."""

    convolution: fx.Node
    norm: tuple[Any, ...] | None = None
    residual: fx.Node | None = None
    activation: str = "none"
    alpha: float = 1.0
    following: tuple[fx.Node, ...] = ()

    @property
    def end(self) -> fx.Node:
        return (self.convolution, *self.following)[-1]

    def with_next(self, **parts: Any) -> Block:
        """The block with the only call that reads its end."""
        return self._replace(following=(*self.following, next(iter(self.end.users))), **parts)

    def __str__(self) -> str:
        parts = [("norm", self.norm), ("sum", self.residual), (self.activation, self.activation != "none")]
        return ", ".join(["convolution", *(name for name, is_there in parts if is_there)])


def rewrite(captured: CapturedGraph) -> None:
    if not captured.inference:
        return
    graph = captured.graph
    for node in list(graph.nodes):
        # One of a window, or somebody else's.
        if node.target is not MASKED_CONV2D or len(node.args) != 9:
            continue
        block = _found(node)
        if not block.following or not captured.regions.are_one(node, *block.following):
            continue
        reads, last = [*node.args[:4], *(block.norm or ())[:4], block.residual], block.end
        if not captured.writes.none_between(node, last, reads):
            continue
        if (result_format := layout_of(last)) is None or not is_surely_so(last):
            continue
        with graph.inserting_before(last):
            new = _call(graph, block, asked_format(node.args[0], node.args[1], result_format))
        captured.replace(node, *block.following, by=new)
        captured.report.rewritten[f"{block} → masked_conv_block", line(new)] += 1


def _found(convolution: fx.Node) -> Block:
    block = Block(convolution)
    if (norm := _norm(convolution)) is not None:
        block = block.with_next(norm=norm)
    if (residual := _residual(block.end)) is not None:
        block = block.with_next(residual=residual)
    if (activation := _activation(block.end)) is not None:
        block = block.with_next(activation=activation[0], alpha=activation[1])
    return block


def _norm(node: fx.Node) -> tuple[Any, ...] | None:
    user = only_user(node)
    if not calls(user, (F.batch_norm,)):
        return None
    given = arguments(user)
    statistics, own = value(given.running_mean), value(node)
    if given.training is not False or statistics is None or own is None or statistics.dtype != own.dtype:
        return None
    parameters = (given.weight, given.bias, given.eps)
    return (given.running_mean, given.running_var, *parameters) if given.input is node else None


def _residual(node: fx.Node) -> fx.Node | None:
    user = only_user(node)
    if not is_call(user, ADD | ADD_IN_PLACE) or len(user.args) != 2 or user.kwargs:
        return None
    first, second = user.args
    if user.target in ADD_IN_PLACE and first is not node:  # it would write into the other one
        return None
    other, own, sum_ = second if first is node else first, value(node), value(user)
    found = value(other)
    if found is None or own is None or sum_ is None or other is node:
        return None
    same = found.shape == own.shape and found.dtype == own.dtype == sum_.dtype
    return other if same and isinstance(other, fx.Node) else None


def _activation(node: fx.Node) -> tuple[str, float] | None:
    user = only_user(node)
    if not is_call(user, _KINDS.keys()) or user.args[0] is not node:
        return None
    kind = _KINDS[user.target]
    names = ACTIVATIONS[kind]
    alpha = argument(user, 1, names.alpha, names.default) if names.alpha else names.default
    return (kind, float(alpha)) if isinstance(alpha, (int, float)) else None


def _call(graph: fx.Graph, block: Block, result_format: torch.memory_format | None) -> fx.Node:
    scale = shift = None
    if block.norm is not None:
        folded: Any = folded_norm(*proxies(graph, *block.norm))  # eps may vary, too
        scale, shift = (result.node for result in folded)
    x, weight, bias, mask, padding, dilation, backend, *_ = block.convolution.args
    terms = (scale, shift, None, block.residual, block.activation, block.alpha)
    arguments = (x, weight, bias, mask, *terms, padding, dilation, backend, result_format)
    return graph.call_function(torch.ops.pixelcnn_fast.masked_conv_block.default, arguments)
