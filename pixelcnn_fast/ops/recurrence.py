"""What ``row_lstm`` and ``diagonal_lstm`` have in common: schema, checks, gradients, backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import (
    NAME,
    address,
    as_map,
    define,
    differentiable_once,
    element,
    library,
    memory_format,
    pooled,
)

STATES = "Tensor? h0, Tensor? c0"
COMPUTED = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}  # what cells are in, if not in h's dtype


class Tap(NamedTuple):
    """Where a pixel's tap lies, and the pixels for which that is the initial state, rows and columns."""

    dy: int
    dx: int
    initial: tuple[slice, slice]


class Recurrence(NamedTuple):
    """What an op computes. reference: a module with ``forward`` -> h and the gates, and ``backward`` -> the gradients
    of sums, weight, h0 and c0; taps: (how many, *settings) -> each; diagonal: whether a state follows on the one to the
    left, too."""

    name: str
    settings: str  # the schema of the op's own arguments, each followed by a comma
    reference: Any
    diagonal: bool
    taps: Callable[..., list[Tap]]


def recurrence(which: Recurrence) -> Callable[..., Tensor]:
    """Registers an op -> the function (sums, weight, h0, c0, *settings, backend) -> h."""
    name, reference = which.name, which.reference

    def compute(sums, weight, h0, c0, *rest):  # the schema has the types
        *own, keep, backend = rest
        backend = choose(backend, sums.device, sums.dtype)
        if backend == "triton" and sums.numel():
            from pixelcnn_fast.ops import triton_recurrence as triton

            return triton.forward(sums, weight, h0, c0, which.diagonal, any(own), keep)
        h, gates = fake(sums, weight, h0, c0, *rest)
        if not sums.numel():
            return h, gates
        if backend == "reference":
            dtype = COMPUTED.get(sums.dtype, sums.dtype)
            found = reference.forward(*(_in(dtype, x) for x in (sums, weight, h0, c0)), *own, keep=keep)
            return h.copy_(found[0]), gates.copy_(found[1]) if keep else gates
        h, gates = pooled(h), pooled(gates)
        weight, h0, c0 = (x if x is None else x.contiguous() for x in (weight, h0, c0))
        required().recurrence(
            element(sums),
            which.diagonal,
            any(own),
            weight.shape[2],
            address(weight),
            address(h0),
            address(c0),
            as_map(sums),
            as_map(h),
            as_map(gates) if keep else None,
            torch.get_num_threads(),
        )
        return h, gates

    def fake(sums, weight, h0, c0, *rest):
        *_, keep, _ = rest
        n, many, *size = sums.shape
        like: dict[str, Any] = dict(dtype=sums.dtype, device=sums.device, memory_format=memory_format(sums))
        h = torch.empty((n, weight.shape[1], *size), **like)
        return h, torch.empty((n, many, *size), **like) if keep else sums.new_empty(0)

    def compute_gradients(grad, weight, h0, c0, h, gates, *rest):
        *own, backend = rest
        backend = choose(backend, grad.device, grad.dtype)
        taps = which.taps(weight.shape[2], *own)
        if backend == "triton" and grad.numel():
            from pixelcnn_fast.ops import triton_recurrence as triton

            of_sums, of_c0 = triton.backward(grad, weight, c0, gates, which.diagonal, any(own))
            of_weight = _weight_gradient(of_sums, h, h0, taps, weight, backend)
            return of_sums, of_weight, _initial_gradient(of_sums, weight, taps), of_c0
        results = fake_gradients(grad, weight, h0, c0, h, gates, *rest)
        if not grad.numel():
            return tuple(x.zero_() for x in results)
        if backend == "reference":
            dtype = COMPUTED.get(grad.dtype, grad.dtype)
            found = reference.backward(*(_in(dtype, x) for x in (grad, weight, h0, c0, h, gates)), *own)
            return tuple(to.copy_(x) for to, x in zip(results, found, strict=True))
        of_sums, (_, of_h0, of_c0) = pooled(results[0]), results[1:]
        weight, c0 = weight.contiguous(), c0 if c0 is None else c0.contiguous()
        required().recurrence_gradient(
            element(grad),
            which.diagonal,
            any(own),
            weight.shape[2],
            address(weight),
            address(c0),
            as_map(grad),
            as_map(gates),
            as_map(of_sums),
            address(of_h0),
            address(of_c0),
            torch.get_num_threads(),
        )
        of_weight = _weight_gradient(of_sums, h, h0, taps, weight, backend)
        return of_sums, of_weight, of_h0, of_c0

    def fake_gradients(grad, weight, h0, c0, h, gates, *rest):
        hidden = weight.new_empty(weight.shape[1])
        return torch.empty_like(gates), weight.new_empty(weight.shape), hidden, torch.empty_like(hidden)

    forward = define(
        f"{name}(Tensor sums, Tensor weight, {STATES}, {which.settings}bool keep, str backend) -> (Tensor, Tensor)",
        compute,
        fake,
        casts=(0, 1, 2, 3),
    )
    gradients = define(
        f"{name}_gradients(Tensor grad, Tensor weight, {STATES}, Tensor h, Tensor gates, {which.settings}"
        "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
        compute_gradients,
        fake_gradients,
    )

    differentiable_once(f"{name}_gradients")

    def save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, weight, h0, c0, *ctx.settings, _, ctx.backend = inputs
        ctx.save_for_backward(weight, h0, c0, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else zeros would be made for the gates

    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple:
        if grad is None:
            return (None,) * (len(ctx.settings) + 6)
        weight, h0, c0, *states = ctx.saved_tensors
        given = (grad, weight, h0, c0, *states, *ctx.settings, ctx.backend)
        of_sums, of_weight, of_h0, of_c0 = gradients(*given)
        of_states = (None if x is None else g for x, g in ((h0, of_h0), (c0, of_c0)))
        return of_sums, of_weight, *of_states, *(None for _ in ctx.settings), None, None

    torch.library.register_autograd(f"{NAME}::{name}", backward, setup_context=save, lib=library)

    def call(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, *rest: Any) -> Tensor:
        *own, backend = rest
        states = [x for x in (sums, weight, h0, c0) if x is not None]
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in states)
        return forward(sums, weight, h0, c0, *own, keep, backend)[0]

    return call


def _weight_gradient(
    grad: Tensor, h: Tensor, h0: Tensor | None, taps: list[Tap], weight: Tensor, backend: str
) -> Tensor:
    """The gradient of the state-to-state weight [4h, h, taps] by that of the sums: that of a convolution of h."""
    top, left = (min(offsets) for offsets in zip(*((tap.dy, tap.dx) for tap in taps), strict=True))
    height, width = (1 + max(tap.dy for tap in taps) - top, 1 + max(tap.dx for tap in taps) - left)
    places = [(tap.dy - top, tap.dx - left) for tap in taps]
    shape, padding = (*weight.shape[:2], height, width), (-top, -left)
    live = weight.new_zeros(1, 1, height, width)
    for y, x in places:
        live[..., y, x] = 1
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        of_kernel = triton.weight_gradient(grad, h, shape, live, (1, 1), padding)
    else:
        of_kernel = weight.new_empty(shape)
        required().masked_conv2d_weight_gradient(
            element(h),
            as_map(grad),
            as_map(h),
            as_map(live.expand(shape)),
            padding,
            (1, 1),
            address(of_kernel),
            0,
            torch.get_num_threads(),
        )
    of_weight = weight.new_empty(weight.shape)
    for k, (tap, (y, x)) in enumerate(zip(taps, places, strict=True)):
        of_weight[..., k] = of_kernel[..., y, x]
        if h0 is not None:
            of_weight[..., k] += torch.outer(grad[(..., *tap.initial)].sum((0, 2, 3)), h0)
    return of_weight


def _initial_gradient(grad: Tensor, weight: Tensor, taps: list[Tap]) -> Tensor:
    """The gradient of h0 [h] by that of the sums."""
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


def _in(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(dtype)
