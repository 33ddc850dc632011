"""Makes convolutions whose weight is zero where a mask is into ``masked_conv2d``, which leaves dead taps out.

The op keeps the same weight for its backward as PyTorch does; the mask only tells which taps are dead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pixelcnn_fast.ops.masked_conv2d.op import geometry
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.mask_detection import MaskedInPlace, MaskedWeight, masks_of
from pixelcnn_fast.rewriting.nodes import CONV2D, MASKED_CONV2D, calls, line, size, value
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_convolution
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES, asked_format, followed, is_surely_so, layout_of


class Conv2dCall(NamedTuple):
    """The arguments of F.conv2d."""

    input: Any
    weight: Any
    bias: Any = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1

    @classmethod
    def of(cls, node: fx.Node) -> Conv2dCall:
        return cls(*node.args, **node.kwargs)

    @property
    def why_not(self) -> str | None:
        """Why there is no op for it, whatever its weight is."""
        x, weight = value(self.input), value(self.weight)
        if x is None or weight is None or x.dim() != 4 or weight.dim() != 4:
            return "its input is no batch of images"
        if not x.is_floating_point():
            return f"it is {x.dtype}"
        if self.stride not in (1, (1,), (1, 1), [1], [1, 1]) or self.groups != 1:
            return "it has a stride, or groups"
        if not all(isinstance(n, int) for n in weight.shape):
            return "the size of its weight isn't fixed"
        if self.padding == "same" and not all(n % 2 for n in weight.shape[2:]):
            return "its kernel has an even size, and PyTorch pads it unevenly"
        return None

    def inserted(
        self, graph: fx.Graph, mask: fx.Node | None, dense: bool, result_format: torch.memory_format | None
    ) -> fx.Node:
        weight = value(self.weight)
        assert weight is not None
        tensors = (self.input, self.weight, self.bias, no_mask(graph, weight) if mask is None else mask)
        how = map(list, geometry(weight, self.padding, self.dilation))
        return graph.call_function(MASKED_CONV2D, (*tensors, *how, "auto", dense, result_format))


def rewrite(captured: CapturedGraph) -> None:
    """What masks are now only decides whether it pays: the op reads them at each call."""
    graph, report, in_place = captured.graph, captured.report, MaskedInPlace(captured.writes)
    for node in list(graph.nodes):
        if not calls(node, CONV2D):
            in_place.follow(node)
            continue
        call, where = Conv2dCall.of(node), line(node)
        name = f"conv2d {list(size(call.weight) or ())}"
        found = call.why_not or _mask_of(node, call, in_place, captured)
        if isinstance(found, str):
            report.left[f"{name}: {found}", where] += 1
            continue
        # The caller may ask for the gradient of a masked weight, which is not zero at dead taps.
        is_returned = any(user.op == "output" for masked in found.through for user in masked.users)
        dense = (found.in_place and not captured.live_gradients) or is_returned
        result_format = asked_format(call.input, call.weight, layout_of(node))
        with graph.inserting_before(node):
            new = call.inserted(graph, found.inserted(graph), dense, result_format)
        captured.replace(node, by=new)
        gradients = (
            ", dense gradients" if dense else ", gradients of live taps only" if found.in_place else ""
        )
        report.rewritten[f"{name} → masked_conv2d{gradients}", where] += 1


def is_laid_out_as_ours(node: fx.Node, call: Conv2dCall) -> bool:
    because = [x for x in (call.input, call.weight) if followed(x) == torch.channels_last]
    is_sure = call.weight not in because or any(is_surely_so(x) for x in because)
    return is_sure and layout_of(node) is not None


def no_mask(graph: fx.Graph, weight: Tensor) -> fx.Node:
    """The mask of a convolution that has none, for the op."""
    return graph.call_function(torch.ones, (1,), {"dtype": weight.dtype, "device": weight.device})


def _mask_of(
    node: fx.Node, call: Conv2dCall, in_place: MaskedInPlace, captured: CapturedGraph
) -> MaskedWeight | str:
    why = "its weight has no mask, and no padding or crop could be taken in"
    for found in masks_of(call.weight, in_place):
        if not captured.writes.none_after(found.since, found.reads(), but=found.repeated()):
            return "something writes into its weight or its mask"
        kept, shape = found.kept(captured), size(call.weight)
        if kept is None:
            why = "its mask can't be known before it is called, such as one that forward writes"
        elif shape is not None and bool(kept.expand(shape).flatten(0, 1).any(0).all()):
            why = "its mask leaves all taps alive"
        elif not is_large_convolution(node, call.weight):
            return TOO_SMALL
        else:
            return found if is_laid_out_as_ours(node, call) else OTHER_STRIDES
    return why
