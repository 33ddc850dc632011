"""What ``row_lstm`` and ``diagonal_lstm`` have in common: schema, checks, gradients, backends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import NAME, define, library

STATES = "Tensor? h0, Tensor? c0"
COMPUTED = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}  # what cells are in, if not in h's dtype


def recurrence(name: str, settings: str, reference: Any) -> Callable[..., Tensor]:
    """Registers an op -> the function (sums, weight, h0, c0, *settings, backend) -> h.

    settings: the schema of the op's own arguments, each followed by a comma. reference: a module that computes the
    recurrence, with ``forward`` -> h, c and the gates, and ``backward`` -> the gradients of sums, weight, h0 and c0.
    """

    def compute(sums, weight, h0, c0, *rest):  # the schema has the types
        *own, keep, backend = rest
        _check_backend(backend, name, sums)
        if not sums.numel():
            return fake(sums, weight, h0, c0, *rest)
        dtype = COMPUTED.get(sums.dtype, sums.dtype)
        h, c, gates = reference.forward(*(_in(dtype, x) for x in (sums, weight, h0, c0)), *own, keep=keep)
        return h.to(sums.dtype), c, gates.to(sums.dtype)

    def fake(sums, weight, h0, c0, *rest):
        *_, keep, _ = rest
        h = sums.new_empty(sums.shape[0], weight.shape[1], *sums.shape[2:])
        cell = COMPUTED.get(sums.dtype, sums.dtype)
        return h, h.new_empty(h.shape if keep else 0, dtype=cell), sums.new_empty(sums.shape if keep else 0)

    def compute_gradients(grad, weight, h0, c0, h, c, gates, *rest):
        *own, backend = rest
        _check_backend(backend, name, grad)
        if not grad.numel():
            return tuple(x.zero_() for x in fake_gradients(grad, weight, h0, c0, h, c, gates, *rest))
        dtype = COMPUTED.get(grad.dtype, grad.dtype)
        given = (_in(dtype, x) for x in (grad, weight, h0, c0, h, c, gates))
        return tuple(x.to(grad.dtype) for x in reference.backward(*given, *own))

    def fake_gradients(grad, weight, h0, c0, h, c, gates, *rest):
        hidden = weight.new_empty(weight.shape[1])
        return torch.empty_like(gates), torch.empty_like(weight), hidden, torch.empty_like(hidden)

    forward = define(
        f"{name}(Tensor sums, Tensor weight, {STATES}, {settings}bool keep, str backend) -> (Tensor, Tensor, Tensor)",
        compute,
        fake,
        casts=(0, 1, 2, 3),
    )
    gradients = define(
        f"{name}_gradients(Tensor grad, Tensor weight, {STATES}, Tensor h, Tensor c, Tensor gates, {settings}"
        "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
        compute_gradients,
        fake_gradients,
    )

    def save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, weight, h0, c0, *ctx.settings, _, ctx.backend = inputs
        ctx.save_for_backward(weight, h0, c0, *output)
        ctx.mark_non_differentiable(*output[1:])

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
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


def check(sums: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, taps: str) -> None:
    """Raises ValueError unless shapes, dtypes and devices fit. taps: how many the weight has, for the message."""
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


def _check_backend(backend: str, name: str, x: Tensor) -> None:
    choose(backend, x.device, x.dtype, ("reference",))
    if x.device.type == "cuda":
        warnings.warn(f"{name} has no GPU kernel yet: a loop in PyTorch computes it", stacklevel=3)


def _in(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(dtype)
