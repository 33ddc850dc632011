"""Images, masks and other arrays that a command reads, from PNGs or NumPy's files."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.bench.arguments import path
from pixelcnn_fast.cli.models import Named


def array(file: Path, name: str, option: str = "") -> np.ndarray:
    """The array of numbers in an .npy, or in an .npz the one of this name or the only one.

    option: that gave the name, which then counts. Raises ValueError if it can't be had.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _numbers(loaded)
        with loaded:
            if name in loaded.files:
                return _numbers(loaded[name])
            if len(loaded.files) == 1 and not option:
                return _numbers(loaded[loaded.files[0]])
            found = ", ".join(loaded.files) or "none"
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file}: NumPy can't read it ({error}): write it by np.savez(file, {name}=...)"
        ) from error
    remedy = f"{option} takes one of these" if option else f"call one {name}"
    raise ValueError(f"{file} has no array {name!r}, but {found}: {remedy}")


def _numbers(found: np.ndarray) -> np.ndarray:
    if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise ValueError(f"an array of {found.dtype}, expected numbers of 64 bits at most")
    return found


def pixels(file: Path) -> np.ndarray:
    """A picture -> uint8 [1 or 3, H, W], grey ones as one channel. Raises ValueError for another file."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode not in ("1", "L", "P", "RGB", "LA", "RGBA"):
                raise ValueError(f"{file}: a PNG of mode {image.mode}: save it with 8 bits a channel")
            if "A" in image.mode and image.getchannel("A").getextrema()[0] != 255:
                raise ValueError(f"{file} is transparent in part: put it on a background first")
            found = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it is not the file's content
            raise
        raise ValueError(f"{file} is no picture that can be read ({error}): expected a PNG") from error
    return found[:1] if (found == found[:1]).all() else found


@dataclass(frozen=True)
class Images:
    """Images as they were read. values: integers [n, C, H, W]; names: what each is called;
    labels: [n], if the file has them; are_pictures: PNGs, of 256 shades."""

    source: Path
    values: np.ndarray
    names: Sequence[str]
    labels: Tensor | None = None
    are_pictures: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.values.shape
        return channels, height, width

    def levels(self, named: Named) -> Tensor:
        """As a model takes them: int64 [n, C, H, W]. Raises ValueError if they do not fit it."""
        values, (channels, height, width), levels = self.values, named.shape, named.levels
        if values.shape[2:] != (height, width):
            raise ValueError(
                f"{self.source}: the images are {values.shape[2]}x{values.shape[3]}, and --size is {height}x{width}: "
                "leave it out, or resize them"
            )
        if self.are_pictures and channels == 3 and values.shape[1] == 1:
            values = values.repeat(3, axis=1)
        if values.shape[1] != channels:
            how = "make them grey, " if self.are_pictures and channels == 1 else ""
            raise ValueError(
                f"{self.source}: the images have {_channels(values.shape[1])}, and the model takes "
                f"{_channels(channels)}: {how}convert them or choose another --model"
            )
        if levels is None:
            raise ValueError("--head: the model's images are real numbers: do it in Python, with Sampler")
        given = values.astype(np.int64)
        if self.are_pictures and levels < 256:
            shades = np.arange(levels) * 255 // (levels - 1)
            found = np.searchsorted(shades, given).clip(max=levels - 1)
            if (wrong := shades[found] != given).any():
                raise ValueError(
                    f"{self.source}: shade {given[wrong][0]} of 0...255 is none of the model's {levels} levels, which "
                    f"are shown evenly from black to white: round the images to these, or give levels as an .npz"
                )
            given = found
        if given.size and not 0 <= given.min() <= given.max() < levels:
            raise ValueError(
                f"{self.source}: the images hold {given.min()}...{given.max()}, and the model has levels "
                f"0...{levels - 1}: scale them, or say --levels"
            )
        return torch.from_numpy(given)


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    where = "a folder of PNGs, a PNG, or an .npz of integers [n, C, H, W], [n, H, W] or [n, H, W, C]"
    parser.add_argument("images", type=path, metavar="IMAGES", help=f"{what}: {where}")
    many = "which array of an .npz holds them (default: images, or the only one)"
    parser.add_argument("--array", metavar="NAME", help=many)
    label = "their class (default: the array labels of the .npz)"
    parser.add_argument("--label", help=label)


def images(args: argparse.Namespace) -> Images:
    """Those that the arguments name. Raises ValueError or OSError if there are none."""
    source: Path = args.images
    if source.suffix.lower() in (".npz", ".npy"):
        return _of_arrays(source, args.array)
    if args.array is not None:
        raise ValueError(f"--array {args.array}: {source} is no .npz: leave --array out")
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() == ".png")
        if not files:
            raise ValueError(f"{source} is a folder without PNGs: name one with *.png in it, or an .npz")
    found = [pixels(file) for file in files]
    for file, one in zip(files, found, strict=True):
        if one.shape[1:] != found[0].shape[1:]:
            (height, width), first = one.shape[1:], found[0].shape
            raise ValueError(
                f"{file} is {height}x{width}, and {files[0].name} is {first[1]}x{first[2]}: resize them to one size"
            )
    channels = max(len(one) for one in found)
    values = np.stack([one.repeat(channels // len(one), axis=0) for one in found])
    return Images(source, values, [file.name for file in files], are_pictures=True)


def labels_of(args: argparse.Namespace, found: Images, classes: int | None) -> Tensor | None:
    """[n], for a model of classes. Raises ValueError if there are none, or more than it takes."""
    if classes is None:
        if args.label is not None:
            raise ValueError(f"--label {args.label}: this model has no classes; leave --label out")
        return None
    count = len(found.values)
    if args.label is not None:
        if args.label not in map(str, range(classes)):
            raise ValueError(f"--label {args.label}: expected 0...{classes - 1}")
        return torch.full((count,), int(args.label))
    if found.labels is None or found.labels.shape != (count,):
        raise ValueError(
            f"{found.source}: the model takes a class for each image: say --label 0...{classes - 1} for all, or give "
            f"an .npz that has an array labels of {count} integers, too"
        )
    return found.labels


def mask(text: str, rows: int | None, shape: tuple[int, int, int], count: int) -> Tensor:
    """--known and --known-rows -> bool, [C or 1, H, W] or [count, C, H, W]. Raises ValueError if it does not fit."""
    channels, height, width = shape
    if text == "top-half":
        rows = height // 2
    if rows is not None:
        if rows > height:
            raise ValueError(f"--known-rows {rows}: the images have {height} rows")
        return (torch.arange(height) < rows)[:, None].expand(1, height, width)
    file = Path(text)
    found = array(file, "known") if file.suffix.lower() in (".npz", ".npy") else pixels(file)[:1]
    highest = found.max(initial=0) or 1
    if not np.isin(found, (0, highest)).all() or highest not in (1, 255):
        raise ValueError(
            f"--known {file}: a mask is black and white, or False and True: white is what is known"
        )
    known = torch.from_numpy(np.atleast_2d(found != 0))
    known = known[None] if known.dim() == 2 else known
    try:
        known.expand(count, channels, height, width)
    except RuntimeError:
        raise ValueError(
            f"--known {file}: the mask is {_size(found.shape)}, and images are {_size((count, *shape))}: give one of "
            f"{height}x{width}"
        ) from None
    return known


def _of_arrays(source: Path, name: str | None) -> Images:
    values = array(source, name or "images", "--array" if name else "")
    if values.dtype.kind not in "iu" or values.ndim not in (3, 4) or 0 in values.shape:
        raise ValueError(
            f"{source}: the images are {values.dtype} {_size(values.shape)}: expected the levels, integers [n, C, H, W]"
        )
    values = values[:, None] if values.ndim == 3 else values
    if values.shape[3] in (1, 3) and values.shape[1] not in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    labels = None
    if source.suffix.lower() == ".npz":
        with np.load(source) as loaded:
            has_labels = "labels" in loaded.files
        if has_labels and (found := array(source, "labels")).dtype.kind in "iu":
            labels = torch.from_numpy(found.astype(np.int64))
    return Images(source, values, [str(k) for k in range(len(values))], labels)


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count != 1 else ''}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
