"""Negative log-likelihood under categorical logits: schema, gradients, backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.categorical_nll import reference
from pixelcnn_fast.ops.categorical_nll.reference import NO_LEVEL
from pixelcnn_fast.ops.library import NAME, address, define, element, library, pooled


def categorical_nll(
    logits: Tensor, levels: Tensor, backend: str = "auto", ignored: int | None = None
) -> Tensor:
    """Negative log-likelihood of each image in nats; probabilities are never stored.

    logits: [N, C, H, W, L], any strides; levels: [N, C, H, W] integers in 0...L-1, or ``ignored``, where a sub-pixel is
    left out -> [N], in float32, or in float64 for float64 logits. backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if shapes, dtypes or devices do not fit, or the backend can't compute it. Levels out of range
    raise ValueError on the CPU; elsewhere the result is undefined.
    """
    if logits.dim() != 5 or levels.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits {list(logits.shape)} do not fit levels {list(levels.shape)}: expected [N, C, H, W, L] and "
            "[N, C, H, W]"
        )
    if not logits.is_floating_point() or levels.is_floating_point() or levels.dtype == torch.bool:
        raise ValueError(
            f"logits are {logits.dtype}, levels {levels.dtype}: expected floating point and integers"
        )
    if levels.device != logits.device:
        raise ValueError(f"levels are on {levels.device}, logits on {logits.device}: move one of them")
    return _nll(logits, levels.long(), backend, NO_LEVEL if ignored is None else ignored)[0]


def _compute(logits, levels, backend, ignored=NO_LEVEL):  # the schema has the types
    backend = choose(backend, logits.device, logits.dtype)
    if backend == "reference":
        return reference.categorical_nll(logits, levels, ignored)
    levels = levels.contiguous()
    if backend == "triton":
        from pixelcnn_fast.ops.categorical_nll import triton

        return triton.forward(logits, levels, ignored)
    nll, log_sum_exp = _like_nll(logits, levels, backend)
    in_range = required().categorical_nll(
        element(logits),
        tuple(logits.shape),
        logits.stride(),
        address(logits),
        address(levels),
        ignored,
        address(nll),
        address(log_sum_exp),
        torch.get_num_threads(),
    )
    if not in_range:
        raise reference.out_of_range(levels[levels != ignored], logits.shape[-1])
    return nll, log_sum_exp


def _like_nll(logits, levels, backend, ignored=NO_LEVEL):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (
        torch.empty(logits.shape[:1], dtype=dtype, device=logits.device),
        torch.empty(logits.shape[:-1], dtype=torch.float64, device=logits.device),
    )


def _compute_gradient(grad, logits, levels, log_sum_exp, backend, ignored=NO_LEVEL):
    backend = choose(backend, logits.device, logits.dtype)
    if backend == "triton":
        from pixelcnn_fast.ops.categorical_nll import triton

        return triton.backward(grad, logits, levels.contiguous(), log_sum_exp, ignored)
    grad_logits = _like_logits(grad, logits, levels, log_sum_exp, backend)
    if backend == "reference":
        softmax = (logits - log_sum_exp[..., None]).exp()
        index, kept = reference.kept(levels, ignored)
        softmax.scatter_add_(-1, index, softmax.new_full((), -1).expand_as(index))
        return grad_logits.copy_(softmax * kept * grad[:, None, None, None, None])
    grad_logits, levels, grad = pooled(grad_logits), levels.contiguous(), grad.contiguous()
    if grad_logits.stride() != logits.stride():  # the logits have gaps
        logits = torch.empty_like(grad_logits).copy_(logits)
    required().categorical_nll_gradient(
        element(logits),
        tuple(logits.shape),
        logits.stride(),
        address(logits),
        address(levels),
        ignored,
        address(log_sum_exp),
        address(grad),
        address(grad_logits),
        torch.get_num_threads(),
    )
    return grad_logits


def _like_logits(grad, logits, levels, log_sum_exp, backend, ignored=NO_LEVEL):
    return torch.empty_like(logits)


_nll = define(
    f"categorical_nll(Tensor logits, Tensor levels, str backend, int ignored={NO_LEVEL}) -> (Tensor, Tensor)",
    _compute,
    _like_nll,
)
_gradient = define(
    "categorical_nll_gradient(Tensor grad, Tensor logits, Tensor levels, Tensor log_sum_exp, str backend, "
    f"int ignored={NO_LEVEL}) -> Tensor",
    _compute_gradient,
    _like_logits,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    logits, levels, *ctx.how = inputs
    ctx.save_for_backward(logits, levels, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    logits, levels, log_sum_exp = ctx.saved_tensors
    return _gradient(grad, logits, levels, log_sum_exp, *ctx.how), None, None, None


torch.library.register_autograd(f"{NAME}::categorical_nll", _backward, setup_context=_save, lib=library)


def _save_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad, logits, levels, _, _, ctx.ignored = inputs
    ctx.save_for_backward(grad, logits, levels)


def _backward_of_gradient(ctx: Any, along: Tensor) -> tuple:
    """In plain PyTorch, which can go on differentiating it. What depends on the log-sum-exp is counted with the
    logits, from which it comes."""
    grad, logits, levels = ctx.saved_tensors
    wide = torch.promote_types(logits.dtype, torch.float32)
    probability, along = logits.to(wide).softmax(-1), along.to(wide)
    mean = (probability * along).sum(-1, keepdim=True)
    index, kept = reference.kept(levels, ctx.ignored)
    of_grad = ((mean - along.gather(-1, index)) * kept).sum((1, 2, 3, 4))
    of_logits = grad[:, None, None, None, None] * probability * (along - mean) * kept
    return of_grad.to(grad.dtype), of_logits.to(logits.dtype), None, None, None, None


torch.library.register_autograd(
    f"{NAME}::categorical_nll_gradient", _backward_of_gradient, setup_context=_save_gradient, lib=library
)
