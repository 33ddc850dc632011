"""Applies steps to maps, and combines two maps to sums, products and the like."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.alignment import segments
from pixelcnn_fast.capture.lower.builder import Builder, broadcast_shape
from pixelcnn_fast.capture.lower.imageless import Affine
from pixelcnn_fast.capture.lower.materialize import copied, materialised, windowed
from pixelcnn_fast.capture.record.shadow_memory import Constant, Elements, Map, Value, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.operands import Step

Channels = tuple[Tensor, Tensor]  # (sources, channels of these)


def stepped(b: Builder, x: Map, *steps: Step | Affine) -> Map:
    """Puts all elements of x through steps, imageless ones and zeros included."""
    if x.source is not None:
        return b.whole(b.step(x.source, steps))
    to = {
        s: (b.step if isinstance(b.space.sources[s], Value) else b.imageless.stepped)(s, steps)
        for s in x.sources
    }
    zero = b.imageless.zero_stepped(steps) if x.has_zeros else 0
    return b.moved(x, to, zero)


def added(b: Builder, x: Map | float, y: Map | float, alpha: float = 1.0) -> Map:
    return combined(b, "add", x, y, float(alpha))


def multiplied(b: Builder, x: Map | float, y: Map | float) -> Map:
    return combined(b, "multiply", x, y)


def combined(b: Builder, kind: str, x: Map | float, y: Map | float, alpha: float = 1.0) -> Map:
    """x + alpha * y, or another kind of step on two maps, one of which depends on the image."""
    shape = broadcast_shape(*(m.shape for m in (x, y) if isinstance(m, Map)))
    for one, other, scale, factor in ((x, y, 1.0, alpha), (y, x, alpha, 1.0)):
        if isinstance(one, Map) and (number := _number(b, other)) is not None:
            return _expanded(b, stepped(b, one, _with_number(kind, scale, factor * number)), shape)
    assert isinstance(x, Map) and isinstance(y, Map)
    if Value not in x.kinds and Value not in y.kinds:
        if kind == "add" and alpha == 1 and not bool(x.addresses.any()):  # all of it was multiplied by zero
            return _expanded(b, y, shape)
        x = copied(b, x)
    elif Value not in x.kinds:
        x, y, alpha = y if alpha == 1 else stepped(b, y, (alpha, 0.0)), x, 1.0
    if Value in y.kinds:
        for one, other in [(x, y), (y, x)][: 2 if alpha == 1 else 1]:
            if one.source is not None and (read := b.shifted_state(other, one.source)) is not None:
                return b.whole(b.step(one.source, [Step(kind, alpha, value=read)]))
        x, y = materialised(b, x), materialised(b, y)
        if x.source is not None and y.source is not None and x.shape == y.shape:
            return b.whole(b.pair(kind, x.source, y.source, alpha))
        return _paired(b, kind, _expanded(b, x, shape), _expanded(b, y, shape), alpha)
    of, x = _expanded(b, x, shape), _expanded(b, materialised(b, x), shape)
    if kind not in ("add", "multiply"):
        return combined(b, kind, x, added(b, stepped(b, x, (0.0, 0.0)), y))
    if kind == "add" and x.source is None and bool(((x.addresses == 0) & (y.addresses != 0)).any()):
        x = copied(b, x)
    for arranged in (lambda: x, lambda: windowed(b, x), lambda: copied(b, x)):
        if (result := b.with_operand(kind, arranged(), y, alpha, of)) is not None:
            return result
    raise Unsupported("a constant differs from image to image")


def _number(b: Builder, x: Map | float) -> float | None:
    if not isinstance(x, Map):
        return x
    found = [b.space.sources[source] for source in x.sources]
    if x.shape.numel() != 1 or any(not isinstance(f, Constant) or f.of_weights for f in found):
        return None
    return b.imageless.constants(x.addresses).item()


def _with_number(kind: str, scale: float, number: float) -> Step | Affine:
    if kind in ("add", "multiply"):
        return (scale, number) if kind == "add" else (number, 0.0)
    return Step("at_least" if kind == "maximum" else "at_most", number)


def _expanded(b: Builder, x: Map, shape: torch.Size) -> Map:
    return x if x.shape == shape else b.map(x.addresses.expand(shape))


def _paired(b: Builder, kind: str, x: Map, y: Map, alpha: float) -> Map:
    if x.window is not None and y.window is not None:
        x, y = windowed(b, x), windowed(b, y)  # which may be crops of larger maps
    one, other = _some_channels(b, x), None
    if one is not None and (other := _some_channels(b, y)) is not None:  # such as the halves of a gate
        if b.space.every(one) == b.space.every(other) and x.shape == y.shape:
            return b.whole(b.pair(kind, one, other, alpha))
    pairs = _pairs(b, x, y)
    if pairs is None:
        pairs = _pairs(b, copied(b, x, beside=y), copied(b, y, like=x, beside=x))
    if pairs is None:
        raise Unsupported("it combines different pixels, or rows with columns")
    (a, channel_a), (c, channel_c), which, pixel = pairs
    out = torch.zeros_like(which)
    for first, second in torch.stack([a, c], 1).unique(dim=0).tolist():
        chosen = (a == first) & (c == second)
        one, other = (
            b.selected(source, channel[chosen].tolist())
            for source, channel in ((first, channel_a), (second, channel_c))
        )
        channel = (chosen.cumsum(0) - 1)[which]
        at = b.space.at(b.pair(kind, one, other, alpha), pixel.image, channel, pixel.y, pixel.x)
        out = torch.where(chosen[which], at, out)
    return b.map(out)


def _some_channels(b: Builder, x: Map) -> int | None:
    """The value that x equals, if that is some channels of one that is there."""
    if len(x.sources) != 1 or not b.space.has_whole_frame(x.sources[0]):
        return None
    (s,) = x.sources
    if x.shape[0] != b.space.images or x.shape[2:] != b.space.frame(s):
        return None
    try:
        segment, *others = segments(b.space, x, b.space.every(s))
    except Unsupported:  # its pixels are not where they were, which may be so in both maps
        return None
    if others or (segment.dy, segment.dx) != (0, 0) or len(segment.at) < x.shape[1]:
        return None
    return b.selected(s, segment.channels) if bool(segment.pixels.all()) else None


@unrecorded
def _pairs(b: Builder, x: Map, y: Map) -> tuple[Channels, Channels, Tensor, Elements] | None:
    """-> (the channels of x and of y that meet, [pairs]; each element's pair; the elements of x), or None"""
    sources = [*x.sources, *y.sources]
    if len({(b.space.frame(s), b.space.every(s)) for s in sources}) != 1:
        return None
    left, right = b.space.decode(x.addresses), b.space.decode(y.addresses)
    alike = all(
        torch.equal(*pair) for pair in ((left.image, right.image), (left.y, right.y), (left.x, right.x))
    )
    if not alike or not bool(x.addresses.all()) or not bool(y.addresses.all()):
        return None
    count = 1 + max(map(b.space.channels, sources))
    size = count * (1 + max(sources))
    key = (left.source * count + left.channel) * size + right.source * count + right.channel
    corner = (left.image == 0) & (left.y == left.y.min()) & (left.x == left.x.min())
    keys = key[corner].unique()
    which = torch.searchsorted(keys, key.contiguous()).clamp_max(len(keys) - 1)
    if not torch.equal(keys[which], key):
        return None
    of_x, of_y = ((part // count, part % count) for part in (keys // size, keys % size))
    return of_x, of_y, which, left
