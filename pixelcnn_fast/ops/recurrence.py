"""What ``row_lstm`` and ``diagonal_lstm`` share: arguments, checks, gradients, backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import address, define, differentiable_once, memory_format, pooled, raw
from pixelcnn_fast.ops.masked_conv2d.op import weight_gradient


class StateTap(NamedTuple):
    """Where a tap of the state-to-state weight lies, seen from a pixel, and the pixels for
    which that is an initial state, as rows and columns."""

    dy: int
    dx: int
    initial: tuple[slice, slice]


class _StateToState(NamedTuple):
    """What the compiled module reads by name; addresses are 0 for None."""

    diagonal: bool
    reverse: bool
    taps: int
    weight: int
    h0: int
    c0: int


def register(
    name: str, reference: Any, diagonal: bool, taps: Callable[..., list[StateTap]]
) -> Callable[..., Tensor]:
    """Registers an op and that of its gradients -> the function (sums, weight, h0, c0, *direction, backend) -> h.

    reference: a module with ``forward`` -> h and the gates, and ``backward`` -> the
    gradients of sums, weight, h0 and c0; diagonal: whether a state follows on the one to
    the left, too, and its rows have a direction; taps: (how many, *direction) -> each.
    """

    def own(reverse: bool) -> tuple[bool, ...]:
        """The argument that only the diagonal one has."""
        return (reverse,) if diagonal else ()

    def compute(
        sums: Tensor,
        weight: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        reverse: bool,
        keep: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        backend = choose(backend, sums.device, sums.dtype)
        if backend == "triton":
            from pixelcnn_fast.ops import triton_recurrence as triton

            return triton.forward(sums, weight, h0, c0, diagonal, reverse, keep)
        h, gates = _like_states(sums, weight, keep)
        if not sums.numel():
            return h, gates
        if backend == "reference":
            given = _widened(sums, weight, h0, c0)
            found = reference.forward(*given, *own(reverse), keep=keep)
            return h.copy_(found[0]), gates.copy_(found[1]) if keep else gates
        h, gates = pooled(h), pooled(gates)
        weight = weight.contiguous()
        h0, c0 = (x if x is None else x.contiguous() for x in (h0, c0))
        states = _StateToState(diagonal, reverse, weight.shape[2], *map(address, (weight, h0, c0)))
        kept = raw(gates) if keep else None
        required().recurrence(states, raw(sums), raw(h), kept, torch.get_num_threads())
        return h, gates

    def compute_gradients(
        grad: Tensor,
        weight: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        h: Tensor,
        gates: Tensor,
        reverse: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        backend = choose(backend, grad.device, grad.dtype)
        if not grad.numel():
            hidden = weight.new_zeros(weight.shape[1])
            return torch.zeros_like(gates), weight.new_zeros(weight.shape), hidden, hidden.clone()
        if backend == "reference":
            found = reference.backward(*_widened(grad, weight, h0, c0, h, gates), *own(reverse))
            results = _like_gradients(weight, gates)
            for to, x in zip(results, found, strict=True):
                to.copy_(x)
            return results
        offsets = taps(weight.shape[2], *own(reverse))
        if backend == "triton":
            from pixelcnn_fast.ops import triton_recurrence as triton

            of_sums, of_c0 = triton.backward(grad, weight, c0, gates, diagonal, reverse)
            of_h0 = _initial_gradient(of_sums, weight, offsets)
        else:
            of_sums, _, of_h0, of_c0 = _like_gradients(weight, gates)
            of_sums, weight, c0 = pooled(of_sums), weight.contiguous(), c0 if c0 is None else c0.contiguous()
            required().recurrence_gradient(
                _StateToState(diagonal, reverse, weight.shape[2], address(weight), h0=0, c0=address(c0)),
                raw(grad),
                raw(gates),
                raw(of_sums),
                address(of_h0),
                address(of_c0),
                torch.get_num_threads(),
            )
        of_weight = _weight_gradient(of_sums, h, h0, offsets, weight, backend)
        return of_sums, of_weight, of_h0, of_c0

    def backward(grad, needed, weight, h0, c0, h, gates, reverse, backend):
        found = gradients(grad, weight, h0, c0, h, gates, *own(reverse), backend)
        return dict(zip(("sums", "weight", "h0", "c0"), found, strict=True))

    def of_this(function: Callable) -> Callable:
        return function if diagonal else partial(function, reverse=False)

    of_gradients = f"{name}_gradients"
    gradients = define(of_gradients, of_this(compute_gradients), _like_gradients)
    differentiable_once(of_gradients)
    forward = define(
        name,
        of_this(compute),
        _like_states,
        casts=("sums", "weight", "h0", "c0"),
        backward=of_this(backward),
        results=("h", "gates"),
    )

    def call(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, *rest: Any) -> Tensor:
        *direction, backend = rest
        states = [x for x in (sums, weight, h0, c0) if x is not None]
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in states)
        return forward(sums, weight, h0, c0, *direction, keep, backend)[0]

    return call


def _widened(*given: Tensor | None) -> list[Tensor | None]:
    """In the dtype that cells are computed in: float64 for float64, else float32."""
    return [x if x is None or x.dtype == torch.float64 else x.float() for x in given]


def _like_states(sums: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    n, many, *size = sums.shape
    like: dict[str, Any] = dict(dtype=sums.dtype, device=sums.device, memory_format=memory_format(sums))
    h = torch.empty((n, weight.shape[1], *size), **like)
    return h, torch.empty((n, many, *size), **like) if keep else sums.new_empty(0)


def _like_gradients(weight: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = weight.new_empty(weight.shape[1])
    return torch.empty_like(gates), weight.new_empty(weight.shape), hidden, torch.empty_like(hidden)


def _weight_gradient(
    grad: Tensor, h: Tensor, h0: Tensor | None, taps: list[StateTap], weight: Tensor, backend: str
) -> Tensor:
    """That of a convolution of h: [4h, h, taps]."""
    top, left = (min(offsets) for offsets in zip(*((tap.dy, tap.dx) for tap in taps), strict=True))
    height, width = (1 + max(tap.dy for tap in taps) - top, 1 + max(tap.dx for tap in taps) - left)
    places = [(tap.dy - top, tap.dx - left) for tap in taps]
    shape, padding = (*weight.shape[:2], height, width), (-top, -left)
    live = weight.new_zeros(1, 1, height, width)
    for y, x in places:
        live[..., y, x] = 1
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton_weight_gradient as triton

        of_kernel = triton.weight_gradient(grad, h, shape, live, (1, 1), padding)
    else:
        of_kernel = weight.new_empty(shape)
        weight_gradient(grad, h, live.expand(shape), padding, (1, 1), of_kernel, None)
    of_weight = weight.new_empty(weight.shape)
    for k, (tap, (y, x)) in enumerate(zip(taps, places, strict=True)):
        of_weight[..., k] = of_kernel[..., y, x]
        if h0 is not None:
            of_weight[..., k] += torch.outer(grad[(..., *tap.initial)].sum((0, 2, 3)), h0)
    return of_weight


def _initial_gradient(grad: Tensor, weight: Tensor, taps: list[StateTap]) -> Tensor:
    """[h], by the gradient of the sums."""
    of_taps = (grad[(..., *tap.initial)].sum((0, 2, 3)) @ weight[:, :, k] for k, tap in enumerate(taps))
    return torch.stack(list(of_taps)).sum(0)


def check(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, taps: str) -> None:
    """Raises ValueError unless shapes, dtypes and devices fit. taps: how many the weight has, for the message."""
    for name, x in (("sums", sums), ("weight", weight), ("h0", h0), ("c0", c0)):
        if not isinstance(x, Tensor) and (x is not None or name in ("sums", "weight")):
            raise ValueError(f"{name} is a {type(x).__name__}, expected a tensor")
    if weight.dim() != 3 or weight.shape[0] != 4 * weight.shape[1]:
        raise ValueError(f"weight {list(weight.shape)}: expected [4h, h, {taps}], of the gates i, f, g and o")
    hidden = weight.shape[1]
    if sums.dim() != 4 or sums.shape[1] != 4 * hidden:
        raise ValueError(
            f"sums {list(sums.shape)}: expected [N, {4 * hidden}, H, W], four gates of the weight's {hidden}"
        )
    states: Sequence[tuple[str, Tensor | None]] = (("h0", h0), ("c0", c0))
    for name, state in states:
        if state is not None and state.shape != (hidden,):
            raise ValueError(f"{name} {list(state.shape)}: expected [{hidden}]")
    for name, x in (("weight", weight), *states):
        if x is not None and (x.device != sums.device or not x.is_floating_point()):
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, sums are {sums.dtype} on {sums.device}: convert one"
            )
        if x is not None and x.dtype != sums.dtype and not torch.is_autocast_enabled(sums.device.type):
            raise ValueError(f"{name} is {x.dtype}, sums are {sums.dtype}: convert one")
