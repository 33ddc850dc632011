"""Grids hold every image in its place; charts refuse what a logarithmic axis can't show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pixelcnn_fast.pictures import GAP_LEVEL, Bar, chart, image_grid, save_grid, save_png


@pytest.mark.parametrize("gap", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_images_in_reading_order(channels: int, gap: int) -> None:
    images = torch.randint(
        256, (5, channels, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    grid = image_grid(images, columns=2, scale=3, gap=gap)
    assert grid.shape == (3 * (3 * 4 + 2 * gap), 3 * (2 * 3 + gap), 3) and grid.dtype == np.uint8
    small = grid[::3, ::3]
    assert np.array_equal(small.repeat(3, axis=0).repeat(3, axis=1), grid)
    for index, image in enumerate(images):
        y, x = index // 2 * (4 + gap), index % 2 * (3 + gap)
        expected = image.permute(1, 2, 0).expand(4, 3, 3).numpy()
        assert np.array_equal(small[y : y + 4, x : x + 3], expected)
    assert (small[4 : 4 + gap] == GAP_LEVEL).all() and (small[:, 3 : 3 + gap] == GAP_LEVEL).all()
    assert (small[2 * (4 + gap) :, 3 + gap :] == GAP_LEVEL).all()  # where a sixth would be


def test_grid_is_no_wider_than_its_images() -> None:
    assert image_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), columns=10).shape == (4, 9, 3)


@pytest.mark.parametrize(("size", "width"), [((4, 9), 9 * 6), ((9, 4), 4 * 6), ((3, 70), 70)])
def test_small_images_are_enlarged_by_their_longer_side(size, width, tmp_path):
    save_grid(torch.zeros(1, 1, *size, dtype=torch.uint8), 1, tmp_path / "grid.png")
    assert imread(tmp_path / "grid.png").shape[1] == width


@pytest.mark.parametrize(
    ("shape", "dtype", "how", "message"),
    [
        ((2, 2, 4, 4), torch.uint8, (1,), "1 or 3"),
        ((2, 4, 4), torch.uint8, (1,), "1 or 3"),
        ((2, 1, 4, 4), torch.float32, (1,), "float32"),
        ((0, 1, 4, 4), torch.uint8, (1,), "no images"),
        ((2, 1, 4, 4), torch.uint8, (0,), "columns is 0, scale 1, gap 1: expected at least 1, 1 and 0"),
        ((2, 1, 4, 4), torch.uint8, (1, 0), "scale 0, gap 1"),
        ((2, 1, 4, 4), torch.uint8, (1, 1, -1), "scale 1, gap -1"),
    ],
)
def test_grid_refuses(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(torch.zeros(shape, dtype=dtype), *how)


def test_png_comes_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    save_png(picture, tmp_path / "picture")
    back = imread(tmp_path / "picture", format="png")
    assert np.array_equal((back[..., :3] * 255).round().astype(np.uint8), picture)
    for other in (picture.astype(float), picture[..., 0], picture[..., :2]):
        with pytest.raises(ValueError, match="expected uint8"):
            save_png(other, tmp_path / "other.png")


def test_chart(tmp_path: Path) -> None:
    panels = {"1 image": [Bar("slow", 50.0, "50 s", estimated=True), Bar("fast", 0.05, "50 ms  1,000×")]}
    chart(panels, tmp_path / "chart.png", "Title")
    height, width = imread(tmp_path / "chart.png").shape[:2]
    assert width > height > 100
    chart(panels, tmp_path / "busy.png", "Title", warning="the machine was busy")
    plain, warned = (imread(tmp_path / f"{name}.png")[..., :3] for name in ("chart", "busy"))
    red = (warned[..., 0] > warned[..., 1] + 0.3) & (warned[..., 2] < 0.3)
    assert red.any() and not ((plain[..., 0] > plain[..., 1] + 0.3) & (plain[..., 2] < 0.3)).any()
    with pytest.raises(ValueError, match="positive"):
        chart({"some": [Bar("one", 1.0, ""), Bar("never", 0.0, "")]}, tmp_path / "other.png", "Title")
    with pytest.raises(ValueError, match="positive"):
        chart({}, tmp_path / "other.png", "Title")


def test_a_chart_has_a_bar_for_each_from_the_top_on_one_axis(tmp_path: Path, monkeypatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    many = [Bar(f"bar {index}", 2.0**index, f"{index} s", estimated=index == 1) for index in range(6)]
    panels = {"many": many, "one": [Bar("short", 0.001, "1 ms")]}
    chart(panels, tmp_path / "chart.png", "Title", axis="seconds per image")
    ((first, last),) = [figure.axes for figure in drawn]
    for axes, (title, bars) in zip((first, last), panels.items(), strict=True):
        found = [
            Bar(label.get_text(), bar.get_width(), note.get_text(), bool(bar.get_hatch()))
            for label, bar, note in zip(axes.get_yticklabels(), axes.patches, axes.texts, strict=True)
        ]
        assert found == bars and axes.get_title(loc="left") == title
        assert axes.yaxis_inverted() and axes.get_xscale() == "log"
    assert first.get_xlim() == last.get_xlim() and first.get_xlim()[0] < 0.001 and first.get_xlim()[1] > 32
    assert (first.get_xlabel(), last.get_xlabel()) == ("", "seconds per image")
