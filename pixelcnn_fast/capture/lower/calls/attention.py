"""Lowers what is made of scores for pairs of pixels, up to the average of values that they are weights of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.averages import averaged, placed_features
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext
from pixelcnn_fast.capture.lower.pairs import NO_PLACE, Formula, OfPairs, dense, product
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.errors import NotCausal, Unsupported
from pixelcnn_fast.program.calls import Call, View, plain_name

OF_PAIRS: dict[str, Callable[..., Any]] = {}


def _lowers(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(lowering: Callable[..., Any]) -> Callable[..., Any]:
        OF_PAIRS.update(dict.fromkeys(names, lowering))
        return lowering

    return register


def on_pairs(t: LoweringContext, call: Call) -> list[Map]:
    """The results of a call, an argument of which is there for each pair of pixels."""
    name = plain_name(call.name)
    if name not in OF_PAIRS:
        raise Unsupported("it takes what is there for each pair of pixels, which only averages features")
    try:
        result = OF_PAIRS[name](t, *call.args, **call.kwargs)
    except TypeError as error:
        raise Unsupported(
            f"for pairs of pixels, it is not supported with these arguments ({error})"
        ) from None
    return result if isinstance(result, list) else [result]


# -- products


def scores(t: LoweringContext, x: View, y: View) -> Map:
    """[.., I, D] times [.., D, J], which depend on the image, or one of them on the condition."""
    parts = t.map(x).addresses, t.map(y).addresses.mT
    left, right = (placed_features(t.builder, part.reshape(-1, *part.shape[-2:])) for part in parts)
    one = torch.ones((), dtype=t.builder.dtype, device=t.builder.device)
    found = product(t.builder.space, left, right, one)
    return found if len(x.size) == 3 else found.seen(found.formula, dense(found.frame[1:]))


@_lowers("bmm", "mm")
def _average(t: LoweringContext, x: View, y: View) -> Map:
    """Weights [.., I, J] times values [.., J, D], or values [.., D, J] times weights [.., J, I]."""
    weights, values = t.map(x), t.map(y)
    is_left = isinstance(weights, OfPairs)
    if not is_left:
        weights, values = t.map(y), t.map(x)
    if not isinstance(weights, OfPairs) or isinstance(values, OfPairs) or weights.of_queries:
        raise Unsupported("pairs of pixels are multiplied with each other")
    of_values = values.addresses if is_left else values.addresses.mT
    of_values = of_values.view(-1, *of_values.shape[-2:])
    dims = len(weights.shape)
    formula, (queries, keys) = weights.formula, (dims - 2, dims - 1) if is_left else (dims - 1, dims - 2)
    if not weights.is_all or not any(
        weights.is_axis(queries, axis) and weights.is_axis(keys, 3 - axis) for axis in (1, 2)
    ):
        raise Unsupported("only whole weights, of all queries and keys, are multiplied with values")
    if formula.stage != "weights":
        raise Unsupported(
            f"{formula.stage} of pairs of pixels are multiplied with values: a softmax must come before"
        )
    if not weights.is_axis(keys, formula.keys):
        raise Unsupported("the softmax is over the queries, and not over the keys that are summed over")
    found = averaged(t.builder, formula, of_values)
    found = found if is_left else found.mT
    return t.builder.map(found if dims == 3 else found[0])


# -- what is done to each pair


def _constant(t: LoweringContext, x: OfPairs, value: Any, as_is: bool = False) -> Tensor:
    if isinstance(value, View):
        if t.depends_on_image(value):
            raise Unsupported(f"what is there for each pair of pixels is combined with features: {NO_PLACE}")
        found = t.constant(value, as_is)
        return x.constant(found if as_is else found.to(t.builder.dtype))
    return torch.as_tensor(value, dtype=t.builder.dtype, device=t.builder.device).view(1, 1, 1)


def _of(t: LoweringContext, x: Any) -> OfPairs | None:
    found = t.map(x) if isinstance(x, View) else x
    return found if isinstance(found, OfPairs) else None


def _pairs(t: LoweringContext, x: View) -> OfPairs:
    found = _of(t, x)
    if found is None or found.of_queries:
        raise Unsupported("it takes each query's largest score, or total")
    return found


def _scaled(x: OfPairs, by: Tensor) -> Map:
    f = x.formula
    if x.of_queries:
        raise Unsupported("a row's largest score, or total, is scaled: scale the scores themselves")
    if f.stage == "centred" and (by.shape[f.keys] > 1 or not bool((by > 0).all())):
        raise Unsupported(
            "scores from which each query's largest is subtracted are scaled by what differs between keys, or is not "
            "positive: scale them before"
        )
    if f.stage in ("scores", "centred"):
        return x.of(replace(f, scale=f.scale * by, shift=f.shift * by))
    return x.of(replace(f, factors=by if f.factors is None else f.factors * by))


def scaled_and_shifted(t: LoweringContext, x: OfPairs, alpha: float, bias: View, beta: float) -> Map:
    """alpha * x + beta * bias"""
    f = x.formula
    if f.stage != "scores":
        raise Unsupported("something is added to the average of values: add it afterwards")
    shift = 0 if beta == 0 else beta * _constant(t, x, bias)
    return x.of(replace(f, scale=f.scale * alpha, shift=f.shift * alpha + shift))


@_lowers("mul")
def _multiplied(t: LoweringContext, x: Any, y: Any) -> Map:
    one, other = _of(t, x), _of(t, y)
    if one is not None and other is not None:
        raise Unsupported("two maps of pairs of pixels are multiplied")
    if one is None:
        one, y = other, x
    assert one is not None
    return _scaled(one, _constant(t, one, y))


@_lowers("neg")
def _negated(t: LoweringContext, x: View) -> Map:
    return _multiplied(t, x, -1.0)


@_lowers("div")
def _divided(t: LoweringContext, x: Any, y: Any, *, rounding_mode: str | None = None) -> Map:
    one, other = _of(t, x), _of(t, y)
    if one is None or rounding_mode is not None:
        raise Unsupported("something is divided by what is there for each pair of pixels")
    if other is None:
        return _scaled(one, 1 / _constant(t, one, y))
    f, total = one.formula, other.formula
    if total.epsilon < 0:
        raise Unsupported(f"pairs of pixels are divided by their total less {-total.epsilon:g}")
    if f.stage == "weights" and other.of_queries == "total" and _same_powers(f, total):
        return one.of(_renormalised(t, f, total))
    is_total = other.of_queries == "total" and total.stage == "powers" and _same_powers(f, total)
    if f.stage != "powers" or not is_total:
        raise Unsupported("pairs of pixels are divided by something else than their total over the keys")
    _check_rows(one, other)
    if total.epsilon and not f.is_centred:
        raise Unsupported("powers whose total has an ε: subtract each query's largest score first")
    return one.of(
        replace(f, stage="weights", keys=total.keys, counted=_ones_if_none(total), epsilon=total.epsilon)
    )


def _renormalised(t: LoweringContext, f: Formula, total: Formula) -> Formula:
    """The weights of a softmax, perhaps masked, divided by their total, perhaps with an ε."""
    if f.counted is not None or total.stage != "weights" or f.factors is not total.factors:
        raise Unsupported("weights are divided by something else than the total of a softmax's weights")
    if f.factors is not None and not bool((f.factors == ~f.is_absent).all()):
        if total.epsilon:
            raise NotCausal(
                f"{t.builder.where}: weights are masked after the softmax, and divided by their total and an ε, beside "
                "which later pixels count: mask the scores before the softmax"
            )
        raise Unsupported(
            "weights are divided by their total after the softmax, whose own total has other pixels in it: mask the "
            "scores before the softmax"
        )
    if total.epsilon:  # beside one, or where no key is allowed
        return replace(f, factors=_ones_if_none(f) / (1 + total.epsilon))
    return f if f.factors is None else replace(f, counted=f.factors, is_centred=True)


def _ones_if_none(f: Formula) -> Tensor:
    return torch.ones_like(f.scale[:1, :1, :1]) if f.factors is None else f.factors


def _same_powers(a: Formula, b: Formula) -> bool:
    return a.frame is b.frame and a.scale is b.scale and a.shift is b.shift


@_lowers("add")
def _added(t: LoweringContext, x: Any, y: Any, *, alpha: float = 1) -> Map:
    one, other = _of(t, x), _of(t, y)
    if one is not None and other is not None:
        if alpha == -1 and other.of_queries == "largest" and not one.of_queries:
            return _centred(one, other)
        raise Unsupported("two maps of pairs of pixels are added")
    if one is None:
        assert other is not None
        return _added(t, y if alpha == 1 else _scaled(other, _constant(t, other, alpha)), x)
    f = one.formula
    if one.of_queries == "total" and not isinstance(y, View):
        return one.of(replace(f, epsilon=f.epsilon + alpha * float(y)))
    if f.stage != "scores" or one.of_queries:
        raise Unsupported("something is added to what is there for each pair of pixels after the softmax")
    return one.of(replace(f, shift=f.shift + alpha * _constant(t, one, y)))


@_lowers("sub")
def _subtracted(t: LoweringContext, x: Any, y: Any, *, alpha: float = 1) -> Map:
    return _added(t, x, y, alpha=-alpha)


@_lowers("rsub")
def _subtracted_from(t: LoweringContext, x: Any, y: Any, alpha: float = 1) -> Map:
    return _added(t, y, x, alpha=-alpha)


@_lowers("masked_fill")
def _filled(t: LoweringContext, x: View, mask: View, value: Any) -> Map:
    return _where(t, mask, value, x)


@_lowers("where")
def _where(t: LoweringContext, mask: View, x: Any, y: Any) -> Map:
    one, other = _of(t, x), _of(t, y)
    if (one is None) == (other is None):
        raise Unsupported("it chooses between two maps of pairs of pixels, or by one")
    pairs, value = (one, y) if one is not None else (other, x)
    assert pairs is not None
    where = _constant(t, pairs, mask, as_is=True).bool()
    gone = where.logical_not() if one is not None else where
    return _cleared(pairs, gone, _constant(t, pairs, value))


def _cleared(x: OfPairs, gone: Tensor, value: Tensor) -> Map:
    """The same with a value, which broadcasts to the frame, in place of some pairs."""
    f = x.formula
    if x.of_queries:
        raise Unsupported("a row's largest score, or total, is masked")
    zero = torch.zeros_like(f.scale[:1, :1, :1])
    if f.stage == "scores":
        return x.of(replace(f, scale=f.scale.where(~gone, zero), shift=value.where(gone, f.shift)))
    if f.stage == "centred" or bool((value != 0).any()):
        raise Unsupported("weights of pairs of pixels are set to something else than zero")
    factors = torch.ones_like(zero) if f.factors is None else f.factors
    cleared = gone if f.cleared is None else f.cleared | gone
    return x.of(replace(f, factors=factors.where(~gone, zero), cleared=cleared))


@_lowers("tril")
def _lower(t: LoweringContext, x: View, diagonal: int = 0) -> Map:
    return _triangle(t, x, torch.tril, diagonal)


@_lowers("triu")
def _upper(t: LoweringContext, x: View, diagonal: int = 0) -> Map:
    return _triangle(t, x, torch.triu, diagonal)


def _triangle(t: LoweringContext, x: View, kept: Callable[..., Tensor], diagonal: int) -> Map:
    pairs = _pairs(t, x)
    gone = ~kept(torch.ones(pairs.shape[-2:], dtype=torch.bool, device=t.builder.device), diagonal)
    return _cleared(pairs, pairs.constant(gone), _constant(t, pairs, 0.0))


@_lowers("nan_to_num")
def _without_nan(t: LoweringContext, x: View, nan: float | None = None, *infinities: Any) -> Map:
    pairs = _pairs(t, x)
    if pairs.formula.stage != "weights" or nan not in (None, 0):
        raise Unsupported("only weights, after the softmax, lose their NaN")
    return _safe(pairs)


@_lowers("clone", "contiguous", "alias", "detach", "lift_fresh")
def _as_it_is(t: LoweringContext, x: View, **settings: Any) -> Map:
    return t.map(x)


@_lowers("_to_copy")
def _converted(t: LoweringContext, x: View, *, dtype: torch.dtype | None = None, **settings: Any) -> Map:
    if dtype is not None and (not dtype.is_floating_point or t.rounds_to(dtype)):
        raise Unsupported(f"what is there for each pair of pixels is rounded to {dtype}")
    return t.map(x)


# -- over a query's keys


def _along(x: OfPairs, dims: Any) -> tuple[int, int]:
    """-> (the dimension that is reduced; the frame's axis that it is, of one query's keys)"""
    dim = dims[0] if isinstance(dims, (list, tuple)) and len(dims) == 1 else dims
    axes = [axis for axis in (2, 1) if isinstance(dim, int) and x.is_axis(dim, axis)]
    if not axes:
        raise Unsupported(
            "what is there for pairs of pixels is reduced over something else than all keys of a query"
        )
    return dim % len(x.shape), axes[0]


@_lowers("_softmax")
def _softmax(t: LoweringContext, x: View, dim: int, half_to_float: bool = False) -> OfPairs:
    pairs = _pairs(t, x)
    (_, keys), f = _along(pairs, dim), pairs.formula
    if f.stage != "scores" and (f.stage, f.keys) != ("centred", keys):
        raise Unsupported("a second softmax")
    return pairs.of(replace(f, stage="weights", keys=keys))


@_lowers("_safe_softmax")
def _safe_softmax(t: LoweringContext, x: View, dim: int, dtype: Any = None) -> Map:
    return _safe(_softmax(t, x, dim))


def _safe(x: OfPairs) -> OfPairs:
    return x.of(replace(x.formula, is_safe=True))


def _of_queries(x: OfPairs, what: str, dims: Any, keepdim: bool) -> OfPairs:
    """A number for each query, seen as PyTorch gives it."""
    reduced, axis = _along(x, dims)
    size, strides, _ = x.layout
    _, _, last = frame = x.formula.frame.size
    beyond = frame[axis] * (last if axis == 1 else 1)  # the keys, and what lies within them
    # In an array with one element where the keys were, strides beyond them are smaller.
    shrunk = [stride // frame[axis] if stride >= beyond else stride for stride in strides]
    kept = [dim for dim in range(len(size)) if keepdim or dim != reduced]
    layout = (
        [1 if dim == reduced else size[dim] for dim in kept],
        [0 if dim == reduced else shrunk[dim] for dim in kept],
        0,
    )
    return x.seen(replace(x.formula, keys=axis), layout, what)


@_lowers("amax")
def _largest(t: LoweringContext, x: View, dims: Sequence[int] = (), keepdim: bool = False) -> Map:
    pairs = _pairs(t, x)
    if pairs.formula.stage != "scores":
        raise Unsupported("the largest of something else than scores, for pairs of pixels")
    return _of_queries(pairs, "largest", dims, keepdim)


@_lowers("max")
def _greatest(t: LoweringContext, x: View, dim: Any = None, keepdim: bool = False) -> list[Map]:
    return [_largest(t, x, dim, keepdim)]


@_lowers("sum")
def _total(t: LoweringContext, x: View, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Map:
    pairs = _pairs(t, x)
    if pairs.formula.stage not in ("powers", "weights"):
        raise Unsupported("the total of something else than powers or weights, for pairs of pixels")
    return _of_queries(pairs, "total", dims, keepdim)


def _centred(x: OfPairs, largest: OfPairs) -> Map:
    if x.formula.stage != "scores" or not _same_powers(x.formula, largest.formula):
        raise Unsupported("something else than its own largest score is subtracted from each query's scores")
    _check_rows(x, largest)
    return x.of(replace(x.formula, stage="centred", keys=largest.formula.keys, is_centred=True))


def _check_rows(x: OfPairs, rows: OfPairs) -> None:
    """Refuses to combine each query's scores with another query's number."""
    dims = [dim for dim in range(len(x.shape)) if x.is_axis(dim, rows.formula.keys)]
    expected = _of_queries(x, "", dims[-1], keepdim=True)
    if [*map(list, expected.layout[:2])] != [*map(list, rows.layout[:2])]:
        raise Unsupported("the scores of a query are combined with the largest score, or total, of another")


@_lowers("exp")
def _powers(t: LoweringContext, x: View) -> Map:
    pairs = _pairs(t, x)
    if pairs.formula.stage not in ("scores", "centred"):
        raise Unsupported("the exp of something else than scores, for pairs of pixels")
    return pairs.of(replace(pairs.formula, stage="powers"))
