"""Calls over the channels of a pixel: products with matrices, norms, sums and other reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.arithmetic import added, combined, multiplied, stepped
from pixelcnn_fast.capture.gathering import gathered, materialised, windowed
from pixelcnn_fast.capture.lowering.pixels import convolved
from pixelcnn_fast.capture.lowering.pointwise import absolute
from pixelcnn_fast.capture.lowering.registry import Trace, lowers
from pixelcnn_fast.capture.shadow import Map
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View, plain_name
from pixelcnn_fast.program.program import Step

MOST_PARTS = 64  # of what is combined one by one
MOST_GROUPS = 256  # of features that are one pixel's


def _by_pixel(t: Trace, x: Map, apply: Callable[[Map], Map]) -> Map:
    """Applies a function to the features of each pixel, which are the last axis of x: [..., C] -> [..., D].

    apply: maps [N, C, h, w] to [N, D, h, w].
    """
    split, spatial, channels = t.space.placed(windowed(t.builder, x).addresses)
    last = split.dim() - 1
    if channels[-1:] != [last]:
        raise Unsupported(
            f"it takes the last axis of shape {list(x.addresses.shape)} for features, but pixels lie along it"
        )
    order, everywhere = [*channels[:-1], *(dim for dim in spatial if dim >= 0), last], range(split.dim())
    arranged = split.movedim(order, [*everywhere])
    sizes = [split.shape[dim] if dim >= 0 else 1 for dim in spatial]
    groups = arranged.reshape(-1, *sizes, split.shape[last])
    if len(groups) > MOST_GROUPS:
        raise Unsupported(f"it works on {len(groups)} groups of features of a pixel, one by one")
    parts = [apply(t.builder.map(group.permute(0, 3, 1, 2))).addresses.permute(0, 2, 3, 1) for group in groups]
    result = torch.stack(parts).reshape(*arranged.shape[:-1], -1).movedim([*everywhere], order)
    return t.builder.map(result.reshape(*x.addresses.shape[:-1], -1))


# -- products


def _product(t: Trace, x: Map, matrix: Tensor, bias: Tensor | None = None) -> Map:
    """x [..., in] times a matrix [in, out]."""
    weight = matrix.T[:, :, None, None]
    return _by_pixel(t, x, lambda part: convolved(t, part, weight, bias))


@lowers("linear")
def _linear(t: Trace, call: Call, x: View, weight: View, bias: View | None = None) -> Map:
    return _product(t, t.map(x), t.constant(weight).T, t.constant(bias))


@lowers("mv")
def _mv(t: Trace, call: Call, x: View, y: View) -> Map:
    if not t.depends_on_image(x):
        raise Unsupported("only the product of features with a constant vector is supported")
    return t.builder.map(_product(t, t.map(x), t.constant(y)[:, None]).addresses[..., 0])


@lowers("mm", "bmm")
def _matmul(t: Trace, call: Call, x: View, y: View) -> Map:
    if t.depends_on_image(x) and t.depends_on_image(y):
        raise Unsupported("only the product of features with a constant matrix is supported")
    if not t.depends_on_image(y):
        return _times_matrices(t, t.map(x), t.constant(y))
    turned = t.builder.map(t.map(y).addresses.mT)
    return t.builder.map(_times_matrices(t, turned, t.constant(x).mT).addresses.mT)


@lowers("addmm", "baddbmm")
def _addmm(t: Trace, call: Call, bias: View, x: View, y: View, *, beta: float = 1, alpha: float = 1) -> Map:
    result = _matmul(t, call, x, y)
    if alpha != 1:
        result = multiplied(t.builder, result, alpha)
    return result if beta == 0 else added(t.builder, result, t.map(bias), beta)


def _times_matrices(t: Trace, x: Map, matrix: Tensor) -> Map:
    """[..., M, K] times [..., K, O]; the matrices of a batch may differ."""
    if matrix.dim() == 2 or bool((matrix == matrix[:1]).all()):
        return _product(t, x, matrix if matrix.dim() == 2 else matrix[0])
    parts = [_product(t, t.builder.map(x.addresses[b]), matrix[b]).addresses for b in range(len(matrix))]
    return t.builder.map(torch.stack(parts))


# -- norms


@lowers(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update"
)
def _batch_norm(
    t: Trace, call: Call, x: View, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> Map:
    training, eps = any(r is True for r in rest), float(rest[-1])
    if training or mean is None or variance is None:
        raise Unsupported(
            "the batch's own statistics mix pixels and images, as instance_norm does; call model.eval()"
        )
    weight, bias, mean, variance = (t.constant(part) for part in (weight, bias, mean, variance))
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    if t.map(x).source is not None:
        return stepped(t.builder, t.map(x), (scale, shift))
    scale, shift = (t.map(part.view(-1, *(1 for _ in x.size[2:]))) for part in (scale, shift))
    return added(t.builder, multiplied(t.builder, t.map(x), scale), shift)


@lowers("native_layer_norm")
def _layer_norm(t: Trace, call: Call, x: View, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Map:
    def normed(part: Map) -> Map:
        value = gathered(t.builder, part)
        return t.builder.whole(t.builder.pair("layer_norm", value, value, eps))

    addresses = t.map(x).addresses
    result = _by_pixel(t, t.builder.map(addresses.flatten(-len(shape))), normed)
    result = t.builder.map(result.addresses.view(addresses.shape))
    if weight is not None:
        result = multiplied(t.builder, result, t.map(weight))
    return result if bias is None else added(t.builder, result, t.map(bias))


@lowers("linalg_vector_norm", "norm")
def _norm(t: Trace, call: Call, x: View, order: float = 2, dims: Any = None, keepdim: bool = False) -> Map:
    if order not in (1, 2):
        raise Unsupported(f"order {order}; only 1 and 2 are supported")
    whole = materialised(t.builder, t.map(x))
    if order == 1:
        return _total(t, absolute(t.builder, whole), dims, keepdim)
    return stepped(t.builder, _total(t, multiplied(t.builder, whole, whole), dims, keepdim), Step("power", 0.5))


# -- reductions


def _together(x: Map, dims: Any, keepdim: bool) -> tuple[Tensor, list[int]]:
    """-> (addresses of x, with the elements that are reduced together along the last axis; the shape of the result).

    dims: an axis, several, or none for all.
    """
    shape = x.shape
    reduced = sorted(d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(shape))))
    last = x.addresses.movedim(reduced, list(range(-len(reduced), 0))).flatten(-len(reduced))
    return last, [1 if d in reduced else size for d, size in enumerate(shape) if keepdim or d not in reduced]


def _one_by_one(t: Trace, kind: str, elements: Tensor) -> Map:
    """Combines the elements along the last axis."""
    result, *others = (t.builder.map(part) for part in elements.unbind(-1))
    for other in others:
        result = combined(t.builder, kind, result, other)
    return result


def _total(t: Trace, x: Map, dims: Any, keepdim: bool, mean: bool = False) -> Map:
    """The sum or the mean over channels of a pixel, or over axes along which maps are stacked."""
    elements, shape = _together(x, dims, keepdim)
    count = elements.shape[-1]
    scale = 1 / count if mean else 1.0
    rows = elements.reshape(-1, count)
    if count <= MOST_PARTS and len(t.space.source_of(rows[len(rows) // 2]).unique()) == count:  # several maps
        total = _one_by_one(t, "add", elements)
        if scale != 1:
            total = multiplied(t.builder, total, scale)
    else:
        matrix = torch.full((count, 1), scale, dtype=t.builder.dtype, device=t.builder.device)
        try:
            total = _product(t, t.builder.map(elements), matrix)
        except Unsupported:
            raise Unsupported(
                "only the channels of a pixel may be summed, and pixels lie along these axes"
            ) from None
    return t.builder.map(total.addresses.reshape(shape))


@lowers("mean", "sum")
def _sum(t: Trace, call: Call, x: View, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Map:
    return _total(t, t.map(x), dims, keepdim, mean=plain_name(call.name) == "mean")


@lowers("cumsum")
def _cumsum(t: Trace, call: Call, x: View, dim: int, *, dtype: Any = None) -> Map:
    elements = t.map(x).addresses.movedim(dim, -1)
    count = elements.shape[-1]
    matrix = torch.ones(count, count, dtype=t.builder.dtype, device=t.builder.device).triu()
    return t.builder.map(_product(t, t.builder.map(elements), matrix).addresses.movedim(-1, dim))


@lowers("var", "std", "var_mean", "std_mean")
def _variance(
    t: Trace, call: Call, x: View, dims: Any = None, *, correction: float = 1, keepdim: bool = False
) -> list[Map]:
    whole = t.map(x)
    mean = _total(t, whole, dims, True, mean=True)
    centred = materialised(t.builder, added(t.builder, whole, mean, -1))
    total = _total(t, multiplied(t.builder, centred, centred), dims, keepdim)
    count = whole.shape.numel() // mean.shape.numel()
    spread = multiplied(t.builder, total, 1 / (count - correction))
    if plain_name(call.name).startswith("std"):
        spread = stepped(t.builder, spread, Step("power", 0.5))
    return [spread, _total(t, whole, dims, keepdim, mean=True)][: len(call.results)]


@lowers("amax", "amin", "prod")
def _folded(
    t: Trace, call: Call, x: View, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Map:
    elements, shape = _together(t.map(x), dims, keepdim)
    if elements.shape[-1] > MOST_PARTS:
        raise Unsupported(f"it combines {elements.shape[-1]} elements, one by one")
    kind = {"amax": "maximum", "amin": "minimum", "prod": "multiply"}[plain_name(call.name)]
    return t.builder.map(_one_by_one(t, kind, elements).addresses.reshape(shape))
