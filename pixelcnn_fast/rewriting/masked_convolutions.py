"""Convolutions whose weight is a product with a mask become ``masked_conv2d``, which leaves dead taps out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pixelcnn_fast import ops  # noqa: F401  # registers torch.ops.pixelcnn_fast
from pixelcnn_fast.rewriting.nodes import (
    CONV2D,
    MUL,
    evaluated,
    is_call,
    is_never_written,
    is_unwritten,
    line,
    size,
    value,
)
from pixelcnn_fast.rewriting.report import Report


class Convolution(NamedTuple):
    """The arguments of F.conv2d."""

    input: Any
    weight: Any
    bias: Any = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1

    @classmethod
    def of(cls, node: fx.Node) -> Convolution:
        return cls(*node.args, **node.kwargs)

    @property
    def why_not(self) -> str | None:
        """Why there is no op for it, whatever its weight is."""
        x, weight = value(self.input), value(self.weight)
        if x is None or weight is None or x.dim() != 4 or weight.dim() != 4:
            return "its input is no batch of images"
        if _pair(self.stride) != (1, 1) or self.groups != 1:
            return "it has a stride, or groups"
        if not all(isinstance(n, int) and n % 2 for n in weight.shape[2:]):
            return "its kernel has an even size"
        if x.dtype != weight.dtype:
            return "its input and its weight have different dtypes"
        return None

    @property
    def geometry(self) -> tuple[list[int], list[int]]:
        """Padding and dilation, vertical and horizontal."""
        dilation = _pair(self.dilation)
        if self.padding == "valid":
            return [0, 0], [*dilation]
        if self.padding == "same":
            kernel = size(self.weight)
            assert kernel is not None
            return [step * (n // 2) for step, n in zip(dilation, kernel[2:], strict=True)], [*dilation]
        return [*_pair(self.padding)], [*dilation]


def rewrite(graph: fx.Graph, real: Mapping[fx.Node, Tensor], report: Report) -> None:
    """real: the tensors that inputs of the graph are now. They only decide whether a rewrite pays: the op reads the
    mask at each call, so one that changes is followed."""
    for node in list(graph.nodes):
        if not is_call(node, CONV2D):
            continue
        call, where = Convolution.of(node), line(node)
        name = f"conv2d {list(size(call.weight) or ())}"
        found = call.why_not or _factors(call.weight, node, real)
        if isinstance(found, str):
            report.left[f"{name}: {found}", where] += 1
            continue
        weight, mask = found
        with graph.inserting_before(node):
            whole = graph.call_method("expand_as", (mask, weight))
            arguments = (call.input, weight, call.bias, whole, *call.geometry, "auto")
            new = graph.call_function(torch.ops.pixelcnn_fast.masked_conv2d.default, arguments)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        if not call.weight.users:
            graph.erase_node(call.weight)
        report.rewritten[f"{name} → masked_conv2d", where] += 1


def _factors(product: Any, until: fx.Node, real: Mapping[fx.Node, Tensor]) -> tuple[fx.Node, fx.Node] | str:
    """(weight, mask) of a weight that is their product, or why there are none."""
    if not is_call(product, MUL) or len(product.args) != 2 or product.kwargs:
        return "its weight is not a product with a mask"
    why = "neither factor of its weight is a mask: both have gradients, or are of other shapes"
    for weight, mask in (product.args, product.args[::-1]):
        if (
            not isinstance(weight, fx.Node)
            or not isinstance(mask, fx.Node)
            or not _may_mask(mask, weight, product)
        ):
            continue
        if not is_unwritten(product, until, [product]) or not is_never_written(product, [weight, mask]):
            why = "something writes into its weight or its mask"
        elif (now := evaluated(mask, real)) is None:
            why = "its mask can't be known before it is called"
        elif not _has_dead_taps(now, size(product)):
            why = "its mask leaves all taps alive"
        else:
            return weight, mask
    return why


def _may_mask(mask: fx.Node, weight: fx.Node, product: fx.Node) -> bool:
    """Whether a factor takes no gradient, and the other one has the shape of the product."""
    m, w, whole = value(mask), value(weight), value(product)
    if m is None or w is None or whole is None or m.requires_grad:
        return False
    return w.shape == whole.shape and w.dtype == whole.dtype and m.device == w.device


def _has_dead_taps(mask: Tensor, shape: Any) -> bool:
    """Whether some tap is zero for all channels."""
    return bool((mask.detach().expand(shape) == 0).flatten(0, 1).all(0).any())


def _pair(x: Any) -> tuple[Any, Any]:
    return (x, x) if isinstance(x, int) else (x[0], x[-1]) if isinstance(x, (tuple, list)) else (x, x)
