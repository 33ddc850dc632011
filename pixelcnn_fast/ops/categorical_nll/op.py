"""Negative log-likelihood under categorical logits: arguments, gradients, backends."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.categorical_nll import reference
from pixelcnn_fast.ops.categorical_nll.reference import NO_LEVEL
from pixelcnn_fast.ops.library import address, define, pooled, raw


def categorical_nll(
    logits: Tensor, levels: Tensor, backend: str = "auto", ignored: int | None = None
) -> Tensor:
    """Negative log-likelihood of each image in nats; probabilities are never stored.

    logits: [N, C, H, W, L], any strides; levels: [N, C, H, W] integers in 0...L-1, or
    ``ignored``, where a sub-pixel is left out -> [N], in float32, or in float64 for float64
    logits. backend: 'auto', 'compiled', 'triton' or 'reference'. Raises ValueError if
    shapes, dtypes or devices do not fit, or the backend can't compute it, and on the CPU
    for levels out of range; elsewhere the result is undefined.
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


def _compute(logits: Tensor, levels: Tensor, backend: str, ignored: int = NO_LEVEL) -> tuple[Tensor, Tensor]:
    backend = choose(backend, logits.device, logits.dtype)
    if backend == "reference":
        return reference.categorical_nll(logits, levels, ignored)
    levels = levels.contiguous()
    if backend == "triton":
        from pixelcnn_fast.ops.categorical_nll import triton

        return triton.forward(logits, levels, ignored)
    nll, log_sum_exp = _like_results(logits)
    in_range = required().categorical_nll(
        raw(logits), address(levels), ignored, address(nll), address(log_sum_exp), torch.get_num_threads()
    )
    if not in_range:
        raise reference.out_of_range(levels[levels != ignored], logits.shape[-1])
    return nll, log_sum_exp


def _like_results(logits: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (
        torch.empty(logits.shape[:1], dtype=dtype, device=logits.device),
        torch.empty(logits.shape[:-1], dtype=torch.float64, device=logits.device),
    )


def _compute_gradient(
    grad: Tensor, logits: Tensor, levels: Tensor, log_sum_exp: Tensor, backend: str, ignored: int = NO_LEVEL
) -> Tensor:
    backend = choose(backend, logits.device, logits.dtype)
    if backend == "triton":
        from pixelcnn_fast.ops.categorical_nll import triton

        return triton.backward(grad, logits, levels.contiguous(), log_sum_exp, ignored)
    grad_logits = torch.empty_like(logits)
    if backend == "reference":
        softmax = (logits - log_sum_exp[..., None]).exp()
        index, kept = reference.kept(levels, ignored)
        softmax.scatter_add_(-1, index, softmax.new_full((), -1).expand_as(index))
        return grad_logits.copy_(softmax * kept * grad[:, None, None, None, None])
    grad_logits, levels, grad = pooled(grad_logits), levels.contiguous(), grad.contiguous()
    if grad_logits.stride() != logits.stride():  # the logits have gaps
        logits = torch.empty_like(grad_logits).copy_(logits)
    required().categorical_nll_gradient(
        raw(logits),
        address(levels),
        ignored,
        address(log_sum_exp),
        address(grad),
        address(grad_logits),
        torch.get_num_threads(),
    )
    return grad_logits


def _backward(grad, needed, logits, levels, log_sum_exp, backend, ignored):
    return {"logits": _gradient(grad, logits, levels, log_sum_exp, backend, ignored)}


def _backward_of_gradient(along, needed, grad, logits, levels, ignored):
    """What depends on the log-sum-exp is counted with the logits, from which it comes."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    probability, along = logits.to(wide).softmax(-1), along.to(wide)
    mean = (probability * along).sum(-1, keepdim=True)
    index, kept = reference.kept(levels, ignored)
    of_grad = ((mean - along.gather(-1, index)) * kept).sum((1, 2, 3, 4))
    of_logits = grad[:, None, None, None, None] * probability * (along - mean) * kept
    return {"grad": of_grad.to(grad.dtype), "logits": of_logits.to(logits.dtype), "log_sum_exp": None}


_nll = define("categorical_nll", _compute, _like_results, backward=_backward, results=("nll", "log_sum_exp"))
_gradient = define(
    "categorical_nll_gradient",
    _compute_gradient,
    lambda logits: torch.empty_like(logits),
    backward=_backward_of_gradient,
)
