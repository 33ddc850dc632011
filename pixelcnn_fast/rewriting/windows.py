"""Takes padding and crops into convolutions, which then compute only what is left."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.nn import functional as F

from pixelcnn_fast.ops.masked_conv2d.op import geometry
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.masked_convolutions import Conv2dCall, is_laid_out_as_ours, no_mask
from pixelcnn_fast.rewriting.nodes import (
    CONV2D,
    MASKED_CONV2D,
    Writes,
    calls,
    is_any_call,
    is_call,
    line,
    name_of,
    only_user,
    size,
    slices,
    storages,
    value,
)
from pixelcnn_fast.rewriting.profitability import TOO_SMALL, is_large_convolution
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES, asked_format, layout_of

_PAD = frozenset((F.pad, torch._C._nn.pad, torch.constant_pad_nd))
_SHARING = (
    "contiguous reshape reshape_as flatten view ravel detach to type_as float double half bfloat16".split()
)
Pair = tuple[int, int]


class Window(NamedTuple):
    """A map of ``size`` that shows ``source`` from the position ``begin`` on, and zeros elsewhere.
    nodes: the calls that make it, the last one first."""

    source: fx.Node
    begin: Pair
    size: Pair
    nodes: tuple[fx.Node, ...] = ()

    def shows_zeros_outside(self, first: Pair, last: Pair) -> bool:
        """Whether what of first...last is outside the window is outside the source, too."""
        found = _size(self.source)
        return found is not None and all(
            (a >= 0 or begin >= 0) and (z < size or begin + n <= size)
            for a, z, begin, size, n in zip(first, last, self.begin, self.size, found, strict=True)
        )


class Candidate(NamedTuple):
    """A convolution, what its map shows of another one, and what is read of its result."""

    node: fx.Node
    window: Window
    crop: Window
    weight: fx.Node
    bias: Any
    mask: fx.Node | None
    padding: Pair
    dilation: Pair
    dense: bool

    @property
    def end(self) -> fx.Node:
        return (*self.crop.nodes, self.node)[0]

    @property
    def result_format(self) -> torch.memory_format | None:
        """Of the whole result; what is cropped from it becomes dense in it."""
        found, shown = layout_of(self.node), value(self.end)
        is_sure = self.node.target is MASKED_CONV2D or is_laid_out_as_ours(
            self.node, Conv2dCall.of(self.node)
        )
        if found == torch.channels_last and self.crop.nodes and shown is not None:
            # Where its memory is both, it would be taken for contiguous, which a crop is not.
            is_sure = is_sure and not shown.contiguous().is_contiguous(memory_format=torch.channels_last)
        return found if is_sure else None

    @property
    def reads(self) -> tuple[Pair, Pair]:
        """The first and the last position that it reads."""
        top, left = -self.crop.begin[0] - self.padding[0], -self.crop.begin[1] - self.padding[1]
        rows, columns = (size(self.weight) or ())[2:]
        bottom = top + self.crop.size[0] - 1 + self.dilation[0] * (rows - 1)
        return (top, left), (bottom, left + self.crop.size[1] - 1 + self.dilation[1] * (columns - 1))

    def why_not(self, captured: CapturedGraph) -> str | None:
        """Why it can't be computed from the window's source."""
        writes = captured.writes
        node, source, padded = self.node, self.window.source, self.window.nodes
        if self.result_format is None:
            return OTHER_STRIDES
        if not self.window.shows_zeros_outside(*self.reads):
            return "it reads what was cut off"
        if not is_large_convolution(node, self.weight):
            return TOO_SMALL
        # A padded map has memory of its own.
        is_written = any(not writes.none_after(each, [each]) for each in padded)
        is_written = is_written or not writes.none_after(padded[-1] if padded else node, [source])
        if is_written or not writes.none_after(node, (self.weight, self.bias, self.mask)):
            return "something writes into its map, what that is padded from, or its weight"
        if self.crop.nodes and any(writes.into(_may_share(self.end))):
            return "something writes into what is cropped from its result"
        if not captured.regions.are_one(node, *padded, *self.crop.nodes):
            return "gradients are switched on or off between the padding and it"
        if padded and not writes.none_before_backward([source, *padded]):
            return "what it is padded or cropped from is known outside the graph"
        return None

    def inserted(self, graph: fx.Graph) -> fx.Node:
        kernel, result, wanted = value(self.weight), value(self.end), self.result_format
        assert kernel is not None and result is not None and wanted is not None
        offset = [b - a for a, b in zip(self.reads[0], self.window.begin, strict=True)]
        with graph.inserting_before(self.end):
            mask = no_mask(graph, kernel) if self.mask is None else self.mask
            tensors = (self.window.source, self.weight, self.bias, mask)
            how = (offset, [*self.dilation], "auto", self.dense)
            result_format = asked_format(self.window.source, self.weight, wanted)
            new = graph.call_function(MASKED_CONV2D, (*tensors, *how, result_format, [*self.crop.size]))
        new.meta["example_value"] = result.contiguous(memory_format=wanted)
        return new


def rewrite(captured: CapturedGraph) -> None:
    graph, report = captured.graph, captured.report
    for node in list(graph.nodes):
        if node.target is not MASKED_CONV2D and not calls(node, CONV2D):
            continue
        found = _arguments(node)
        if found is None:
            continue
        x, weight, *_ = found
        window, crop, kernel = _window(x), _crop(node, captured.writes), value(weight)
        if kernel is None or (crop is None and not (window.nodes if window else _is_cut_or_padded(x))):
            continue
        what = f"conv2d {list(kernel.shape)}"
        if window is None or (whole := _size(node)) is None:
            report.leave(what, "the height or width of what it is padded or cropped from varies", line(node))
            continue
        candidate = Candidate(node, window, crop or Window(node, (0, 0), whole), *found[1:])
        if (why := candidate.why_not(captured)) is not None:
            report.leave(what, why, line(node))
            continue
        captured.replace(candidate.end, by=candidate.inserted(graph))
        for dead in (node, *window.nodes):
            if dead in graph.nodes and not dead.users:
                captured.erase(dead)
        report.rewrite(what, "masked_conv2d of a window", line(node))


def _arguments(node: fx.Node) -> tuple[Any, ...] | None:
    """x, weight, bias, mask or None, padding, dilation, and whether the gradient is dense."""
    if node.target is MASKED_CONV2D:
        if len(node.args) != 9 or node.kwargs:  # somebody else's
            return None
        x, weight, bias, mask, padding, dilation, _, dense, _ = cast(Any, node.args)
        return x, weight, bias, mask, tuple(padding), tuple(dilation), dense
    call = Conv2dCall.of(node)
    kernel, x = value(call.weight), value(call.input)
    if call.why_not is not None or kernel is None or x is None:
        return None
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    return call.input, call.weight, call.bias, None, *geometry(kernel, call.padding, call.dilation), False


def _window(node: Any) -> Window | None:
    """What a map shows of the one from which it is padded and cropped."""
    size = _size(node)
    if size is None:
        return None
    by = _padding(node) if is_call(node, _PAD) else _cut(node)
    if by is None:
        return Window(node, (0, 0), size)
    if (inner := _window(node.args[0])) is None:
        return None
    # What an inner window hides must stay hidden: an outer one that is larger would show it.
    corner = (-by[0], -by[1])
    if not inner.shows_zeros_outside(corner, (corner[0] + size[0] - 1, corner[1] + size[1] - 1)):
        return Window(node, (0, 0), size)
    begin = (inner.begin[0] + by[0], inner.begin[1] + by[1])
    return Window(inner.source, begin, size, (node, *inner.nodes))


def _crop(node: fx.Node, writes: Writes) -> Window | None:
    """The window of its result that is read, if that is all."""
    user = only_user(node)
    begin, size = _cut(user), _size(user)
    if (
        begin is None
        or size is None
        or user is None
        or 0 in size
        or writes.are_known_outside(_may_share(user))
    ):
        return None  # for whose strides and memory somebody may look, as as_strided does
    if any("as_strided" in name_of(x) for each in _may_share(user) for x in each.users):
        return None
    return Window(node, begin, size, (user,))


def _may_share(node: fx.Node) -> list[fx.Node]:
    """A map, and what shares its memory, or would if it were contiguous, which crops become."""
    found = [node]
    for each in found:
        for user in each.users:
            # ``unbind``, say, gives several tensors.
            of_several = is_any_call(user) and (value(user) is None or value(each) is None)
            shares = name_of(user) in _SHARING or of_several or not storages(user).isdisjoint(storages(each))
            if shares and user not in found:
                found.append(user)
    return found


def _is_cut_or_padded(x: Any) -> bool:
    return is_call(x, _PAD | {operator.getitem}) and value(x.args[0]) is not None


def _size(node: Any) -> Pair | None:
    found = value(node)
    if found is None or found.dim() != 4 or not all(isinstance(n, int) for n in found.shape[2:]):
        return None
    return found.shape[2], found.shape[3]


def _padding(node: fx.Node) -> Pair | None:
    """Above and to the left, of a call that pads height and width by zeros."""
    names = (
        ["input", "pad", "value"]
        if node.target is torch.constant_pad_nd
        else ["input", "pad", "mode", "value"]
    )
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    pad = given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
        return None
    if (
        not isinstance(pad, (tuple, list))
        or len(pad) not in (2, 4)
        or not all(isinstance(n, int) for n in pad)
    ):
        return None
    return pad[2] if len(pad) == 4 else 0, pad[0]


def _cut(node: Any) -> Pair | None:
    """The same of x[:, :, a:b, c:d], which is negative."""
    taken = slices(node)
    if taken is None or taken[:2] != 2 * [slice(None)] or (size := _size(node.args[0])) is None:
        return None
    return -taken[2].indices(size[0])[0], -taken[3].indices(size[1])[0]
