"""Drawings as SVG. Each lies on a card of its own colour, so it can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from html import escape

INK, MUTED, PAPER, EDGE = "#1f2328", "#59636e", "#ffffff", "#d1d9e0"
ORANGE, BLUE, GREY = "#f28e2b", "#cfe3f5", "#eceff2"
ROWS = ("#cfe3f5", "#d5efd8", "#fbe3c0")  # where an element comes from: the first, second, third row
SANS, MONO = "Helvetica, Arial, sans-serif", "Menlo, Consolas, 'DejaVu Sans Mono', monospace"
CELL = 44


def provenance(panels: list[tuple[str, list[list[int]]]], caption: list[str]) -> str:
    """A row of tensors of addresses, each with the code that made it; colours follow the rows of the first."""
    origin = {address: y for y, row in enumerate(panels[0][1]) for address in row}
    height = max(len(cells) for _, cells in panels) * CELL
    parts: list[str] = []
    left = 28.0
    for index, (code, cells) in enumerate(panels):
        width = len(cells[0]) * CELL
        column = max(width, 8.4 * len(code))
        x = left + (column - width) / 2
        parts.append(_text(left + column / 2, 38, code, size=14, font=MONO))
        for row, column_, address in _cells(cells):
            fill = ROWS[origin[address]] if address else GREY
            parts.append(_cell(x + column_ * CELL, 58 + row * CELL, str(address), fill))
        left += column
        if index < len(panels) - 1:
            parts.append(_arrow(left + 14, left + 50, 58 + 1.5 * CELL))
            left += 64
    y = 58 + height + 30
    parts += [_text(28, y + 22 * line, text, anchor="start") for line, text in enumerate(caption)]
    title = "Addresses of a feature map that is padded at the top and cropped at the bottom"
    return _card(left + 28, y + 22 * len(caption), title, parts)


def wavefront(
    steps: list[list[int]], now: int, pixel: tuple[int, int], seen: Collection[tuple[int, int]]
) -> str:
    """Left: the step at which each pixel is drawn, and what is done at one of them. Right: what one pixel sees."""
    size, gap = len(steps[0]) * CELL, 72
    left, right, top = 28, 28 + size + gap, 58
    parts = [
        _text(left + size / 2, 38, "The step that draws each pixel", weight="bold"),
        _text(right + size / 2, 38, f"What pixel ({pixel[0]}, {pixel[1]}) sees", weight="bold"),
    ]
    for row, column, step in _cells(steps):
        fill = ORANGE if step == now else BLUE if step < now else PAPER
        weight = "bold" if step == now else "normal"
        parts.append(_cell(left + column * CELL, top + row * CELL, str(step), fill, weight))
        here = (row, column)
        fill = ORANGE if here == pixel else BLUE if here in seen else PAPER
        weight = "bold" if here == pixel else "normal"
        ink = INK if here == pixel or here in seen else MUTED
        parts.append(_cell(right + column * CELL, top + row * CELL, str(step), fill, weight, ink))
    y = top + len(steps) * CELL + 18
    for x, entries in (
        (left, [(BLUE, "drawn before"), (ORANGE, f"drawn at step {now}"), (PAPER, "drawn later")]),
        (right, [(BLUE, f"seen, so drawn before step {now}"), (ORANGE, "the pixel"), (PAPER, "not seen")]),
    ):
        for line, (fill, label) in enumerate(entries):
            parts.append(_box(x, y + 24 * line, 16, fill))
            parts.append(_text(x + 26, y + 24 * line + 13, label, anchor="start"))
    title = f"The wavefront on an image of {len(steps)} by {len(steps[0])} pixels at step {now}"
    return _card(right + size + 48, y + 24 * 3 + 14, title, parts)


def _cells(rows: list[list[int]]) -> Iterator[tuple[int, int, int]]:
    return ((y, x, value) for y, row in enumerate(rows) for x, value in enumerate(row))


def _cell(x: float, y: float, text: str, fill: str, weight: str = "normal", ink: str = INK) -> str:
    return _box(x, y, CELL, fill) + _text(x + CELL / 2, y + CELL / 2 + 5.5, text, 16, weight=weight, ink=ink)


def _box(x: float, y: float, size: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{size}" height="{size}" fill="{fill}" stroke="{MUTED}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    size: int = 14,
    font: str = SANS,
    anchor: str = "middle",
    weight: str = "normal",
    ink: str = INK,
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{font}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{ink}">{escape(text, quote=False)}</text>'
    )


def _arrow(start: float, end: float, y: float) -> str:
    head = f"{end:g},{y:g} {end - 9:g},{y - 5:g} {end - 9:g},{y + 5:g}"
    return (
        f'<line x1="{start:g}" y1="{y:g}" x2="{end - 8:g}" y2="{y:g}" stroke="{INK}" stroke-width="1.5"/>'
        f'<polygon points="{head}" fill="{INK}"/>'
    )


def _card(width: float, height: float, title: str, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8" fill="{PAPER}" '
            f'stroke="{EDGE}"/>',
            *parts,
            "</svg>\n",
        ]
    )
