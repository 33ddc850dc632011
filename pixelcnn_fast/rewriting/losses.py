"""Makes the cross-entropy of levels into ``categorical_nll``, which stores no probability."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import arguments, calls, is_call, line, only_user, proxies, size, value
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_map

_MEAN = frozenset(("mean", torch.mean))
_SUM = frozenset(("sum", torch.sum))
_FLATTENING = frozenset(("reshape", "view", "flatten", torch.reshape, torch.flatten))


class Reduced(NamedTuple):
    """How all pixels' costs are reduced. calls: that do it, the cross-entropy first."""

    calls: tuple[fx.Node, ...]
    is_mean: bool
    of_images: bool = False  # to a number for each image
    counts_ignored: bool = False


def rewrite(captured: CapturedGraph) -> None:
    graph = captured.graph
    for node in list(graph.nodes):
        if not calls(node, (F.cross_entropy,)):
            continue
        call, where = arguments(node), line(node)
        reduced = _reduced(node, call)
        why = _why_not(captured, node, call, reduced)
        if why is not None or reduced is None:
            captured.report.left[f"cross_entropy: {why}", where] += 1
            continue
        with graph.inserting_before(node):
            new = _nll(graph, call, reduced, captured.regions.are_one(node, call.input))
        captured.replace(*reduced.calls, by=new)
        if call.input.op != "placeholder" and not call.input.users:
            graph.erase_node(call.input)
        captured.report.rewritten[
            f"cross_entropy {list(size(call.input) or ())} → categorical_nll", where
        ] += 1


def _why_not(captured: CapturedGraph, node: fx.Node, call: Any, reduced: Reduced | None) -> str | None:
    logits, target, loss, writes = value(call.input), value(call.target), value(node), captured.writes
    if logits is None or target is None or not 2 <= logits.dim() <= 5:
        return "its logits are no matrix or map"
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        return "its target has another shape, or holds probabilities"
    if target.dtype != torch.int64:  # PyTorch refuses it, too
        return f"its target is {target.dtype}"
    if call.weight is not None or call.label_smoothing != 0:
        return "it has weights of classes or label smoothing"
    read = [call.input, *(call.input.all_input_nodes if is_call(call.input, _FLATTENING) else ())]
    if not writes.none_after(min(node, *read), [*read, call.target]):
        return "something writes into its logits or its target"
    if not writes.none_before_backward(read):
        return "its logits are known outside the graph, where they may be written"
    if not is_large_map(call.input):
        return TOO_SMALL
    if reduced is None:
        return "it is not reduced to a mean or a sum, of all or for each image"
    if not captured.regions.are_one(*reduced.calls):
        return "it is reduced without gradients, or under autocast, and computed otherwise"
    if loss is None or loss.dtype not in (torch.float32, torch.float64):
        return f"it is {None if loss is None else loss.dtype}"
    return None


def _reduced(node: fx.Node, call: Any) -> Reduced | None:
    if call.size_average is not None or call.reduce is not None:
        return None
    if call.reduction != "none":
        return Reduced((node,), call.reduction == "mean") if call.reduction in ("mean", "sum") else None
    chain, user = [node], only_user(node)
    if is_call(user, _FLATTENING):
        shape, flat = size(node) or (), size(user) or ()
        if len(shape) < 2 or len(flat) != 2 or flat[0] != shape[0]:  # by image
            return None
        chain, user = [node, user], only_user(user)
    kept = _kept_axes(user, chain[-1])
    if user is None or kept not in (set(), {0}):
        return None
    return Reduced((*chain, user), user.target in _MEAN, of_images=kept == {0}, counts_ignored=True)


def _kept_axes(user: fx.Node | None, node: fx.Node) -> set[int] | None:
    """The axes that a mean or a sum of a node leaves, if it is one."""
    shape = size(node)
    if shape is None or not is_call(user, _MEAN | _SUM):
        return None
    if len(user.args) > 2 or not user.kwargs.keys() <= {"dim"}:
        return None
    given: Any = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim")
    axes = list(given) if isinstance(given, (tuple, list)) else [] if given is None else [given]
    if not all(isinstance(axis, int) for axis in axes):
        return None
    return set(range(len(shape))) - {axis % len(shape) for axis in axes} if axes else set()


def _nll(graph: fx.Graph, call: Any, reduced: Reduced, in_one: bool) -> fx.Node:
    """in_one: whether the logits are computed in the same region."""
    source = _unflattened(call.input) if in_one else None
    logits, target, unflattened = proxies(graph, call.input, call.target, source)
    levels, missing = target.long(), 5 - len(size(call.input) or ())
    if source is not None:
        logits, missing = unflattened, 5 - len(size(source) or ())
        levels = levels.view_as(logits.select(-1, 0))
    elif missing < 3:
        logits = logits.movedim(1, -1)
    for _ in range(missing):
        logits, levels = logits.unsqueeze(1), levels.unsqueeze(1)
    given, result = value(call.input), value(reduced.calls[0])
    assert given is not None and result is not None
    if result.dtype != given.dtype:  # as autocast computes it
        logits = logits.to(result.dtype)
    loss = torch.ops.pixelcnn_fast.categorical_nll.default(logits, levels, "auto", call.ignore_index)[0]
    if not reduced.of_images:
        loss = loss.sum()
    if reduced.is_mean and not reduced.counts_ignored:
        loss = loss / (target != call.ignore_index).sum()
    elif reduced.is_mean:
        loss = loss / (target.numel() // target.size(0) if reduced.of_images else target.numel())
    return cast(fx.Node, loss.node)


def _unflattened(logits: Any) -> fx.Node | None:
    """What logits [pixels, L] were, [N, ..., L], before they were flattened."""
    source = logits.args[0] if is_call(logits, _FLATTENING) else None
    before, flat = size(source), size(logits)
    if before is None or flat is None or len(flat) != 2 or not 2 < len(before) <= 5 or before[-1] != flat[-1]:
        return None
    return cast(fx.Node, source)
