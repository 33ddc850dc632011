"""Makes the cross-entropy of levels into ``categorical_nll``, which stores no probability."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast import ops  # noqa: F401  # registers torch.ops.pixelcnn_fast
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import calls, is_call, line, only_user, proxies, size, value
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_map

_MEAN = frozenset(("mean", torch.mean))
_SUM = frozenset(("sum", torch.sum))
_FLATTENING = frozenset(("reshape", "view", "flatten", torch.reshape, torch.flatten))


class CrossEntropyCall(NamedTuple):
    """The arguments of F.cross_entropy."""

    input: Any
    target: Any
    weight: Any = None
    size_average: Any = None
    ignore_index: Any = -100
    reduce: Any = None
    reduction: Any = "mean"
    label_smoothing: Any = 0.0

    @property
    def why_not(self) -> str | None:
        logits, target = value(self.input), value(self.target)
        if logits is None or target is None or not 2 <= logits.dim() <= 5:
            return "its logits are no matrix or map"
        if target.shape != (logits.shape[0], *logits.shape[2:]):
            return "its target has another shape, or holds probabilities"
        if target.dtype != torch.int64:  # PyTorch refuses it, too
            return f"its target is {target.dtype}"
        if self.weight is not None or self.label_smoothing != 0:
            return "it has weights of classes or label smoothing"
        return None


class Reduced(NamedTuple):
    """How what the levels of all pixels cost is reduced. calls: that do it, the cross-entropy first."""

    calls: tuple[fx.Node, ...]
    is_mean: bool
    of_images: bool = False  # to a number for each image
    counts_ignored: bool = False


def rewrite(captured: CapturedGraph) -> None:
    graph, writes, regions = captured.graph, captured.writes, captured.regions
    for node in list(graph.nodes):
        if not calls(node, (F.cross_entropy,)):
            continue
        call, where = CrossEntropyCall(*node.args, **node.kwargs), line(node)
        why, reduced = call.why_not, _reduced(node, call)
        read = [call.input, *(call.input.all_input_nodes if is_call(call.input, _FLATTENING) else ())]
        if why is None and not writes.none_after(min(node, *read), [*read, call.target]):
            why = "something writes into its logits or its target"
        if why is None and not writes.none_before_backward(read):
            why = "its logits are known outside the graph, where they may be written"
        if why is None and not is_large_map(call.input):
            why = TOO_SMALL
        if reduced is None:
            why = why or "it is not reduced to a mean or a sum, of all or for each image"
        elif not regions.are_one(*reduced.calls):
            why = why or "it is reduced without gradients, or under autocast, and computed otherwise"
        elif (dtype := _dtype(node)) not in (torch.float32, torch.float64):
            why = why or f"it is {dtype}"
        if why is not None or reduced is None:
            captured.report.left[f"cross_entropy: {why}", where] += 1
            continue
        with graph.inserting_before(node):
            new = _nll(graph, call, reduced, regions.are_one(node, call.input))
        captured.replace(*reduced.calls, by=new)
        if call.input.op != "placeholder" and not call.input.users:
            graph.erase_node(call.input)
        captured.report.rewritten[f"cross_entropy {list(size(call.input) or ())} → categorical_nll", where] += 1


def _dtype(node: fx.Node) -> torch.dtype | None:
    found = value(node)
    return None if found is None else found.dtype


def _reduced(node: fx.Node, call: CrossEntropyCall) -> Reduced | None:
    if call.size_average is not None or call.reduce is not None:
        return None
    if call.reduction != "none":
        return Reduced((node,), call.reduction == "mean") if call.reduction in ("mean", "sum") else None
    chain, user = [node], only_user(node)
    if is_call(user, _FLATTENING):
        if not _is_flattened_by_image(node, user):
            return None
        chain, user = [node, user], only_user(user)
    kept = _kept_axes(user, chain[-1])
    if user is None or kept not in (set(), {0}):
        return None
    return Reduced((*chain, user), user.target in _MEAN, of_images=kept == {0}, counts_ignored=True)


def _is_flattened_by_image(node: fx.Node, user: fx.Node) -> bool:
    shape, flat = size(node), size(user)
    return shape is not None and flat is not None and len(shape) > 1 and len(flat) == 2 and flat[0] == shape[0]


def _kept_axes(user: fx.Node | None, node: fx.Node) -> set[int] | None:
    """The axes that a mean or a sum of a node leaves, if it is one."""
    shape = size(node)
    if (
        shape is None
        or not is_call(user, _MEAN | _SUM)
        or len(user.args) > 2
        or not user.kwargs.keys() <= {"dim"}
    ):
        return None
    given: Any = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim")
    axes = list(given) if isinstance(given, (tuple, list)) else [] if given is None else [given]
    if not all(isinstance(axis, int) for axis in axes):
        return None
    return set(range(len(shape))) - {axis % len(shape) for axis in axes} if axes else set()


def _nll(graph: fx.Graph, call: CrossEntropyCall, reduced: Reduced, in_one: bool) -> fx.Node:
    """The same loss by the op. in_one: whether the logits are computed in the same region."""
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
    if (dtype := _dtype(reduced.calls[0])) != _dtype(call.input):  # as autocast computes it
        logits = logits.to(dtype)
    loss = torch.ops.pixelcnn_fast.categorical_nll.default(logits, levels, "auto", call.ignore_index)[0]
    if not reduced.of_images:
        loss = loss.sum()
    if reduced.is_mean and not reduced.counts_ignored:
        loss = loss / (target != call.ignore_index).sum()
    elif reduced.is_mean:
        loss = loss / (target.numel() // target.size(0) if reduced.of_images else target.numel())
    return cast(fx.Node, loss.node)


def _unflattened(logits: Any) -> fx.Node | None:
    """What logits [pixels, L] were, [N, ..., L], before they were flattened, so that nothing has to be copied."""
    source = logits.args[0] if is_call(logits, _FLATTENING) else None
    before, flat = size(source), size(logits)
    if before is None or flat is None or len(flat) != 2 or not 2 < len(before) <= 5 or before[-1] != flat[-1]:
        return None
    return cast(fx.Node, source)
