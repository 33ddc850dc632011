"""Makes an instruction of the average of values that weights for pairs of pixels give."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.alignment import standard
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.materialize import gathered, windowed
from pixelcnn_fast.capture.lower.pairs import Features, Formula, Frame
from pixelcnn_fast.capture.record.shadow_memory import OfCondition, Value, unrecorded
from pixelcnn_fast.errors import NotCausal, Unsupported
from pixelcnn_fast.program.attention import KEYS_TOGETHER, Attention
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.operands import ConditionOperand, Read
from pixelcnn_fast.program.zeros import lets_through

MOST_PAIRS = 1 << 26  # in one table


class Places(NamedTuple):
    """Of elements [B, I, D]: their addresses as [N, C, H, W], and where in that each lies; pixel: y * W + x."""

    arranged: Tensor
    image: Tensor
    channel: Tensor
    pixel: Tensor


def places(b: Builder, x: Tensor) -> Places:
    arranged, back = standard(b.space, windowed(b, b.map(x)).addresses, is_whole=True)
    labels = back(torch.arange(arranged.numel()).view(arranged.shape))
    rest, pixel = labels // arranged[0, 0].numel(), labels % arranged[0, 0].numel()
    return Places(arranged, rest // arranged.shape[1], rest % arranged.shape[1], pixel)


def own_places(b: Builder, x: Tensor) -> Places | None:
    """Of elements that values have at these very pixels, in whatever order, such as blocks of them, or some of them;
    None if there are others."""
    sources, elements = b.space.found(x), b.space.decode(x)
    is_whole = (
        isinstance(b.space.sources[s], Value) and b.space.has_whole_frame(s) and b.space.every(s) == WHOLE
        for s in sources
    )
    if not all(is_whole) or not bool(x.all()):
        return None
    channel, several = elements.channel.clone(), list[Tensor]()
    for s in sources:
        channel[elements.source == s] += sum(each.shape[1] for each in several)
        several.append(b.space.of(s))
    return Places(torch.cat(several, 1), elements.image, channel, elements.y * b.space.grid[1] + elements.x)


@unrecorded
def placed_features(b: Builder, x: Tensor) -> Features:
    """Where features [B, I, D] lie in the image, or the condition. Raises Unsupported if the last axis has more
    than one pixel's."""
    if OfCondition in b.map(x).kinds and Value not in b.map(x).kinds:
        return _given_features(b, x)
    try:
        arranged, image, channel, pixel = places(b, x)
    except Unsupported:
        if (of_own := own_places(b, x)) is None:
            raise
        arranged, image, channel, pixel = of_own
    found = Features(arranged, image[:, 0, 0], channel[:, 0], pixel[:, :, 0])
    is_found = (image == found.image[:, None, None]) & (channel == found.channels[:, None])
    if not bool((is_found & (pixel == found.pixel[:, :, None])).all()):
        raise Unsupported(
            f"two maps are multiplied, [.., {x.shape[1]}, {x.shape[2]}], and what is summed over is not the features "
            "of one pixel"
        )
    return found


def _given_features(b: Builder, x: Tensor) -> Features:
    image, live = b.space.decode(x).image, x != 0
    of_row = image.where(live, 0).flatten(1).amax(1)
    if bool(((image != of_row[:, None, None]) & live).any()):
        raise Unsupported("features of a condition are multiplied, which are those of several images")
    first = b.space.relative(x)
    position = torch.arange(x.shape[1]).expand(len(x), -1)
    return Features(first, of_row, first[:, 0], position, of_condition=True)


def averaged(b: Builder, f: Formula, values: Tensor) -> Tensor:
    """Addresses of the averages [B, I, D] of values, addresses [B, J, D], by weights with queries I and keys J."""
    f = _keys_last(f)
    query, key, value = f.frame.left, f.frame.right, placed_features(b, values)
    if not torch.equal(query.image, key.image) or not torch.equal(query.image, value.image):
        raise Unsupported("the pixels of one image are weighed by those of another")
    if query.of_condition or key.of_condition != value.of_condition:
        raise Unsupported("a condition attends to the image, or one's keys weigh the other's values")
    if not torch.equal(key.pixel, value.pixel):
        raise Unsupported("weights for some pixels are multiplied with values of others")
    head, heads = _heads(query, key, value)
    tables = _Tables(b, query, key, head, len(heads))
    size = value.channels.shape[1]

    allowed, uniform = _allowed(tables, f, b.where)
    if not bool((allowed | uniform).any()):
        return torch.zeros(*query.pixel.shape, size, dtype=torch.long)  # of an image of one row, by columns
    asking = _value(b, query, heads)
    given = key.of_condition
    of_key = _given(b, key, heads, True) if given else b.out(_value(b, key, heads))
    of_value = _given(b, value, heads, False) if given else b.out(_value(b, value, heads))

    def emitted(normal: _Normal) -> int:
        source = asking
        if normal.of_queries is not None:
            scale = normal.of_queries.expand(len(heads)).repeat_interleave(query.channels.shape[1])
            source = b.step(asking, [(scale, 0.0)])
        return b.emit(
            Attention,
            len(heads) * size,
            query=Read(b.out(source)),
            key=of_key,
            value=of_value,
            heads=len(heads),
            width=b.space.grid[1],
            allowed=normal.allowed,
            scale=normal.scale,
            added=normal.added,
            factors=normal.factors,
            epsilon=f.epsilon,
            fill=normal.fill,
        )

    out = emitted(_normal_form(tables, f, allowed, uniform))
    if bool(uniform.any()) and bool(allowed.any()):
        has_key = ~uniform.any(0).any(-1).view(b.space.grid).cpu()
        b.where_asked[out] = has_key, emitted(_normal_form(tables, f, allowed, torch.zeros_like(uniform)))
    return _results(b, out, query, head, size)


def weighed(b: Builder, weights: Tensor, values: Tensor) -> Tensor:
    """Addresses of the sums [B, J, D] of values, addresses [B, J, D], by constant weights [1 or B, J, J]: for the
    pixels that values are of."""
    value = placed_features(b, values)
    head, heads = _heads(value)
    table = _Tables(b, value, value, head, len(heads)).table(weights)
    out = summed(b, _value(b, value, heads), len(heads), table)
    return _results(b, out, value, head, value.channels.shape[1])


def summed(b: Builder, value: int, heads: int, table: Tensor) -> int:
    """The source of a value's sums, head by head, by a table of constant weights, [heads or 1, pixels, pixels]."""
    return b.emit(
        Attention,
        b.space.channels(value),
        query=None,
        key=None,
        value=b.out(value),
        heads=heads,
        width=b.space.grid[1],
        allowed=lets_through(table),
        factors=table.contiguous(),
    )


def _results(b: Builder, out: int, query: Features, head: Tensor, size: int) -> Tensor:
    """Addresses [B, I, D] of what an attention gives for queries, of heads [B] with ``size`` channels."""
    y, x = query.pixel // b.space.grid[1], query.pixel % b.space.grid[1]
    channel = head[:, None] * size + torch.arange(size)
    return b.space.at(out, query.image[:, None, None], channel[:, None], y[..., None], x[..., None])


def _keys_last(f: Formula) -> Formula:
    if f.keys == 2:
        return f
    frame = Frame(f.frame.right, f.frame.left)
    factors, cleared, counted = (None if x is None else x.mT for x in (f.factors, f.cleared, f.counted))
    scale, shift = f.scale.mT, f.shift.mT
    return replace(
        f, frame=frame, keys=2, scale=scale, shift=shift, factors=factors, cleared=cleared, counted=counted
    )


def _heads(*features: Features) -> tuple[Tensor, list[int]]:
    """-> (the head of each b; for each head, its first b)"""
    first: dict[tuple, int] = {}
    found = list[int]()
    rows = zip(*(x.channels.tolist() for x in features), strict=True)
    for number, channels in enumerate(rows):
        found.append(first.setdefault(tuple(map(tuple, channels)), number))
    order = sorted(set(found), key=lambda number: features[-1].channels[number].tolist())
    return torch.tensor([order.index(number) for number in found]), order


def _value(b: Builder, x: Features, heads: list[int]) -> int:
    """A value that has the features of head after head."""
    return gathered(b, b.map(x.arranged[:, x.channels[heads].flatten()]), WHOLE)


def _given(b: Builder, x: Features, heads: list[int], are_keys: bool) -> Tensor | ConditionOperand:
    """What ``Attention`` reads of the condition, head after head."""
    found = x.arranged[heads].transpose(0, 1).flatten(1)  # [positions, channels of all heads]
    if are_keys:
        more = found[:1].expand(-len(found) % KEYS_TOGETHER, -1)
        found = torch.cat([found, more]).unflatten(0, (-1, KEYS_TOGETHER)).mT
    return b.imageless.picked(found.flatten())


class _Tables:
    """Brings what is there for b, i and j to [heads, pixels, pixels], with 1 for heads if they are alike."""

    def __init__(self, b: Builder, query: Features, key: Features, head: Tensor, heads: int) -> None:
        self.width, self.pixels = b.space.grid[1], b.space.grid[0] * b.space.grid[1]
        self.keys = key.pixel.shape[1] if key.of_condition else self.pixels
        self._heads = heads
        self._rows = [(query.image == image).nonzero()[:, 0] for image in range(b.space.images)]
        first = self._rows[0]
        self._head, self._query, self._key = head[first], query.pixel[first], key.pixel[first]
        for rows in self._rows:
            alike = zip((head, query.pixel, key.pixel), (self._head, self._query, self._key), strict=True)
            if not all(torch.equal(x[rows], own) for x, own in alike):
                raise Unsupported("pairs of pixels are weighed otherwise in one image than in another")
        one_of_each = len(first) == heads and bool((self._head == torch.arange(heads)).all())
        is_raster = all(
            x.shape[1] == size and bool((x == torch.arange(size)).all())
            for x, size in ((self._query, self.pixels), (self._key, self.keys))
        )
        self._is_usual = one_of_each and is_raster
        self._are_alike = True
        if not self._is_usual:
            pairs = [set[tuple]() for _ in range(heads)]
            for number, *own in zip(self._head.tolist(), self._query, self._key, strict=True):
                pairs[number].add(tuple(tuple(x.tolist()) for x in own))
            self._are_alike = all(own == pairs[0] for own in pairs)
            asked = self._head[:, None] * self.pixels + self._query
            if len(asked.unique()) < asked.numel() or any(len(k.unique()) < len(k) for k in self._key):
                raise Unsupported("a pixel asks, or is a key, several times in one product")

    def table(self, x: Tensor) -> Tensor:
        """x: broadcasts to [B, I, J]. Pairs that are not in the frame have zeros."""
        if x.shape[0] > 1:
            if any(not torch.equal(x[rows], x[self._rows[0]]) for rows in self._rows[1:]):
                raise Unsupported("pairs of pixels are weighed otherwise in one image than in another")
            x = x[self._rows[0].to(x.device)]
        heads = self._heads if len(x) > 1 or not self._are_alike else 1
        check_size(heads, self.pixels, self.keys)
        if self._is_usual:
            return x.expand(-1, self.pixels, self.keys)
        found = x.new_zeros(heads, self.pixels, self.keys)
        for number, (head, query, key) in enumerate(
            zip(self._head.tolist(), self._query, self._key, strict=True)
        ):
            part = x[number if len(x) > 1 else 0].expand(len(query), len(key))
            found[head if heads > 1 else 0, query[:, None], key] = part
        return found


def check_size(heads: int, queries: int, keys: int) -> None:
    if heads * queries * keys > MOST_PAIRS:
        raise Unsupported(f"a table for {heads} times {queries}×{keys} pairs of pixels, which is too large")


class _Normal(NamedTuple):
    """Fields of ``Attention``, and what queries are multiplied with, by head (None: nothing)."""

    allowed: Tensor
    scale: Tensor | None
    added: Tensor | None
    factors: Tensor | None
    fill: float
    of_queries: Tensor | None


def _allowed(tables: _Tables, f: Formula, where: str) -> tuple[Tensor, Tensor]:
    """-> (the pairs that are allowed; those that have a weight although their query is allowed no key)"""
    allowed = tables.table(~f.is_absent)
    if f.counted is not None:
        counted = tables.table(f.counted != 0)
        weighs = torch.ones_like(f.is_absent) if f.factors is None else f.factors != 0
        if bool((weighs & (f.counted == 0) & ~f.is_absent).any()):
            raise Unsupported("pairs of pixels have weights that their total leaves out")
        if bool((f.counted < 0).any()) or (f.epsilon and bool(((f.counted != 0) & (f.counted != 1)).any())):
            raise Unsupported(
                "powers are multiplied by other numbers than 0 and 1, and their total has an ε, or by less than 0: add "
                "the logarithm to the scores"
            )
        if f.epsilon and bool((others := allowed & ~counted).any()):
            is_late = others & tables.table(f.scale != 0)
            if f.frame.right.of_condition or not bool(is_late.triu().any()):
                raise Unsupported(
                    "the largest score that is subtracted is one of more pairs than are counted, and an ε is beside "
                    "the total: mask the scores before, by -1e9"
                )
            raise NotCausal(
                f"{where}: the largest score that is subtracted is one of all pixels, so that later ones count beside "
                "the ε: mask the scores before"
            )
        allowed = allowed & counted
    within = tables.table(torch.ones_like(f.shift[:1, :1, :1], dtype=torch.bool))
    none = within.any(-1, keepdim=True) & ~allowed.any(-1, keepdim=True)
    has_factor = (
        torch.ones_like(none) if f.factors is None else (tables.table(f.factors) != 0).any(-1, keepdim=True)
    )
    uniform = none & _of_uniform(tables, f, none, within, has_factor) if bool(none.any()) else none
    return allowed & has_factor, uniform


def _normal_form(tables: _Tables, f: Formula, allowed: Tensor, uniform: Tensor) -> _Normal:
    """allowed, uniform: as ``_allowed`` finds them, or fewer uniform ones."""
    fill, stand_in = -torch.inf, (f.scale == 0) & f.is_absent & f.shift.isfinite()
    if f.shift.numel() > 1:
        fill = f.shift.where(stand_in, -torch.inf).max().item()
    allowed = allowed | uniform
    scale, of_queries = _scale(tables, f.scale, allowed)
    counted = (
        torch.ones_like(f.scale[:1, :1, :1]) if f.counted is None else f.counted.where(f.counted != 0, 1)
    )
    added = tables.table(f.shift + counted.log())
    of_fill = uniform & tables.table(stand_in)
    if bool(of_fill.any()):  # it counts, as all that a query has: what is left then is far from it
        is_all = of_fill.any(-1, keepdim=True) & (of_fill == uniform).all(-1, keepdim=True)
        added = torch.where(is_all, added - added.where(of_fill, -torch.inf).amax(-1, keepdim=True), added)
    added = added.where(allowed, 0)
    factors = None if f.factors is None else tables.table(f.factors / counted).where(allowed, 1)
    return _Normal(allowed, scale, _unless(added, 0), _unless(factors, 1), fill, of_queries)


def _unless(table: Tensor | None, usual: float) -> Tensor | None:
    """The table, unless all of it is as usual."""
    return None if table is None or bool((table == usual).all()) else table.contiguous()


def _of_uniform(tables: _Tables, f: Formula, none: Tensor, within: Tensor, has_factor: Tensor) -> Tensor:
    """Where pairs of queries to which no key is allowed have a weight: the softmax of equal scores is uniform.
    within: the pairs that there are; has_factor: the queries some of whose factors are not zero."""
    has_score = within & tables.table(f.shift > -torch.inf)
    is_nan = ~has_score.any(-1, keepdim=True)
    mixed = none.new_zeros(1, 1, 1)
    if f.counted is not None:
        counted = tables.table(f.counted != 0)
        mixed = (has_score & ~counted & tables.table(f.scale != 0)).any(-1, keepdim=True)
        has_score = has_score & counted & f.is_centred  # a softmax subtracts the largest, too
        mixed &= has_score.any(-1, keepdim=True)
        is_nan = is_nan & f.is_centred | ~has_score.any(-1, keepdim=True) & (f.epsilon == 0)
    is_cleared = (
        none.new_zeros(1, 1, 1)
        if f.cleared is None
        else (tables.table(f.cleared) | ~within).all(-1, keepdim=True)
    )
    if bool((none & mixed & has_factor).any()):
        raise Unsupported(
            "masked scores are all that a pixel has, and its largest is one that its total leaves out"
        )
    if bool((wrong := none & is_nan & ~is_cleared).any()) and not f.is_safe:
        pixel = int(wrong.any(0)[:, 0].int().argmax())
        y, x = divmod(pixel, tables.width)
        raise Unsupported(
            f"pixel ({y}, {x}) is allowed no key, so its weights are NaN: let it have zeros, as by "
            "masked_fill(mask, 0) after the softmax"
        )
    return has_score & has_factor


def _scale(tables: _Tables, scale: Tensor, allowed: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """-> (the scale of each pair, if some of a head differ; else that of each head, [heads or 1], unless all are 1)"""
    if scale.numel() > 1:
        found, counts = torch.broadcast_tensors(tables.table(scale), allowed)
        first = counts.flatten(1).to(torch.uint8).argmax(1)
        own = found.flatten(1).gather(1, first[:, None])[:, 0]
        if bool(((found != own[:, None, None]) & counts).any()):
            return found.where(counts, 1).contiguous(), None
        scale = own
    return None, None if bool((scale == 1).all()) else scale.flatten()
