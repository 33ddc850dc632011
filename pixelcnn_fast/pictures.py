"""Pictures as PNG files: grids of images, and bar charts of times."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.files import replacing

EASILY_SEEN = 56  # screen pixels of an enlarged image
GAP_LEVEL = 255  # white lines between images
LAST_TIME = 2000  # milliseconds
BAR_COLOURS = ("#8d99ae", "#e09f3e", "#2a6f97", "#013a63")


def image_grid(images: Tensor, columns: int, scale: int = 1, gap: int = 1) -> np.ndarray:
    """Images side by side, in reading order -> uint8 [h, w, 3].

    images: uint8 [n, C, H, W], C = 1 (grey) or 3 (red, green, blue); scale: screen pixels
    per image pixel; gap: image pixels between neighbours. Raises ValueError for other
    images, none, and columns or scale below 1.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [n, 1 or 3, H, W]"
        )
    n, _, height, width = images.shape
    if n == 0:
        raise ValueError("there are no images to show")
    if columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"columns is {columns}, scale {scale}, gap {gap}: expected at least 1, 1 and 0")
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), GAP_LEVEL, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        grid[y : y + height, x : x + width] = image  # one channel broadcasts to three
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


def save_grid(images: Tensor, columns: int, path: str | os.PathLike[str], through_links: bool = True) -> None:
    """Writes ``image_grid`` as a PNG, small images enlarged."""
    save_png(image_grid(images, columns, enlarged(images.shape[2:])), path, through_links)


def enlarged(size: Sequence[int]) -> int:
    """How many screen pixels each pixel of an image (H, W) takes to be seen."""
    return max(1, EASILY_SEEN // max(size))


def save_png(array: np.ndarray, path: str | os.PathLike[str], through_links: bool = True) -> None:
    """Writes an array, uint8 [h, w, 3], as PNG. Raises ValueError for another array."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"the picture is {array.dtype} {list(array.shape)}, expected uint8 [h, w, 3]")
    from matplotlib.image import imsave  # here, as it takes long

    with replacing(path, through_links) as file:
        imsave(file, array, format="png")


def save_gif(
    frames: Sequence[np.ndarray], path: str | os.PathLike[str], milliseconds: int = 60, colours: int = 256
) -> None:
    """Writes arrays, uint8 [h, w, 3], as a GIF that shows each for so long, and the last for 2 s."""
    from PIL import Image  # which matplotlib needs, too

    first, *others = [Image.fromarray(frame).quantize(colours, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * len(others) + [LAST_TIME]
    with replacing(path) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=times, loop=0)


@dataclass(frozen=True)
class Bar:
    """One bar, ``seconds`` long, with ``note`` at its end; hatched if it is an estimate."""

    label: str
    seconds: float
    note: str
    estimated: bool = False


def chart(
    panels: Mapping[str, Sequence[Bar]],
    path: str | os.PathLike[str],
    title: str,
    axis: str = "seconds",
    warning: str = "",
) -> None:
    """Bars on one logarithmic axis, as PNG: a panel for each title. Raises ValueError unless they are positive."""
    seconds = [bar.seconds for bars in panels.values() for bar in bars]
    if not seconds or not all(s > 0 for s in seconds):
        raise ValueError(f"bars of {seconds} seconds: a logarithmic chart needs positive ones")
    from matplotlib.figure import Figure

    rows = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(9, 1.2 + sum(0.46 * n + 0.75 for n in rows)), dpi=130, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    if warning:
        figure.supxlabel(warning, x=0.01, ha="left", fontsize=9.5, color="#c1121f")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (heading, bars) in zip(all_axes, panels.items(), strict=True):
        for index, bar in enumerate(bars):
            colour = BAR_COLOURS[index % len(BAR_COLOURS)]
            hatch = {"hatch": "///", "edgecolor": "white", "linewidth": 0} if bar.estimated else {}
            axes.barh(index, bar.seconds, height=0.68, color=colour, **hatch)
            axes.annotate(
                bar.note, (bar.seconds, index), (6, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=9.5)
        axes.invert_yaxis()
        axes.set_title(heading, loc="left", fontsize=10.5)
        axes.set_xscale("log")
        room_for_notes = 2 * (max(seconds) / min(seconds)) ** 0.25
        axes.set_xlim(min(seconds) / 3, max(seconds) * room_for_notes)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[-1].set_xlabel(axis, fontsize=9.5)
    with replacing(path) as file:
        figure.savefig(file, format="png")
