"""What ``sample`` and ``complete`` share: options of drawing, and the files that images go to."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast import pictures
from pixelcnn_fast.bench import arguments
from pixelcnn_fast.bench.arguments import Renamed, count, gif, output_file, path, png
from pixelcnn_fast.bench.report import duration
from pixelcnn_fast.bench.streams import complain, say, watched
from pixelcnn_fast.call import fields_among
from pixelcnn_fast.cli import inputs, memory
from pixelcnn_fast.cli.interrupts import interrupts
from pixelcnn_fast.cli.models import Named
from pixelcnn_fast.files import replacing
from pixelcnn_fast.heads import SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes import PRECISIONS, RUNTIMES
from pixelcnn_fast.sampler import Sampler

PARSERS = {int: count, float: arguments.number}  # stricter than Python's own
FILES = ("out", "npz", "gif", "save_noise")  # options that name a file to write
MOST_FRAMES = 64
UNDRAWN = 128  # the grey of what is not drawn yet


def add_arguments(parser: argparse.ArgumentParser, picture: Path) -> None:
    add = parser.add_argument_group("drawing").add_argument
    for option in fields(SamplingOptions):
        shown = {name: option.metadata[name] for name in ("metavar", "help")}
        parse = PARSERS[option.metadata["parse"]]
        add(option_of(option.name), type=parse, default=option.default, **shown)
    add("--seed", type=arguments.seed, default=0, help="seed of the noise")
    add("--noise", type=path, metavar="FILE", help="draw with the noise that --save-noise wrote")
    add("--runtime", choices=RUNTIMES, default="auto", help="auto takes the fastest that works here")
    bf16 = "bf16 halves the memory of the weights, and may be faster, but is not exact"
    add("--precision", choices=PRECISIONS, default="same", help=bf16)
    add("--weights", action=Renamed, to="--precision")
    add("--batch", type=count, metavar="N", help="images drawn at once (default: what fits)")
    add("--progress", action="store_true", help="show a progress bar")
    add = parser.add_argument_group("files").add_argument
    add("--out", type=png, metavar="PNG", help=f"the picture to write (default: {picture})")
    add("--npz", type=path, metavar="FILE", help="also write images, labels and settings here")
    add("--gif", type=gif, metavar="GIF", help="also write the picture as it fills, row by row")
    add("--save-noise", type=path, metavar="FILE", help="also write the noise, as an .npz")
    add("--json", action="store_true", help="say what was done as JSON")
    parser.set_defaults(picture=picture)


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_files(args: argparse.Namespace, named: Named, wanted: int) -> None:
    """Raises ValueError or OSError, before any work, if a file can't be written or shows nothing."""
    files = _files(args, named)
    options = {file.resolve(): name for name, file in files.items()}
    for name, file in files.items():
        if (other := options[file.resolve()]) != name:
            raise ValueError(
                f"{option_of(other)} {file} is also the file of {option_of(name)}: give them different names"
            )
        output_file(file)
    channels, height, width = named.shape
    if not _can_be_shown(named) and {"out", "gif"} & {*files}:
        raise ValueError(
            f"--model {args.model}: a picture has 1 or 3 channels of up to 256 levels, unlike its images: "
            "name a file of arrays, by --npz, and no picture"
        )
    sub_pixels = 9 * channels * height * width  # the level and its noise
    shown = 3 * (height + 1) * (width + 1) * pictures.enlarged((height, width)) ** 2
    shown *= MOST_FRAMES if args.gif else 1
    memory.check_memory(wanted * (sub_pixels + shown), f"{wanted} images of {height}x{width} in one picture")


def run(
    args: argparse.Namespace,
    named: Named,
    sampler: Sampler,
    draw: Callable[..., Tensor],
    wanted: int,
    labels: Tensor | None,
    columns: int,
    known: Tensor | None = None,
) -> int:
    """Draws images and saves them -> the exit status. draw: takes arguments of ``Sampler.sample`` by name;
    known: what was not drawn, bool, which broadcasts to the images."""
    options = fields_among(SamplingOptions, vars(args))
    seed = args.seed if args.noise is None else None
    if seed is not None:
        noise = noise_of(seed, range(wanted), sampler.noise_shape)
    else:
        noise = torch.from_numpy(inputs.array(args.noise, "noise"))
    start = time.perf_counter()
    stop: BaseException | None = None
    try:
        images = draw(
            labels=labels,
            noise=noise,
            batch_size=args.batch,
            runtime=args.runtime,
            progress=watched(args.progress),
            **asdict(options),
        )
    except BaseException as error:  # raised once images are saved
        finished = getattr(error, "images", None)
        if finished is None or not len(finished):
            raise
        images, stop = finished, error
    with interrupts.wait():
        seconds = time.perf_counter() - start
        done = len(images)
        drawn = labels if labels is None else labels[:done].numpy()
        arrays = {"images": images.numpy(), "labels": drawn, "seed": seed, "checkpoint": args.model}
        grid = partial(_grid, images, named, columns)
        writers: dict[str, Callable[[Path], None]] = {
            "out": lambda file: pictures.save_png(grid(), file),
            "npz": partial(_save_arrays, arrays | asdict(options)),
            "gif": lambda file: pictures.save_gif(_frames(grid, named.shape[1], known, done), file),
            "save_noise": partial(_save_arrays, {"noise": noise[:done].numpy()}),
        }
        saved, failed = _save({writers[name]: file for name, file in _files(args, named).items()})
        if stop is not None:
            complain(f"stopped: {done} of {wanted} images are finished")
        if args.json:
            told = {"images": done, "seconds": seconds, "files": [*map(str, saved)], "model": args.model}
            say(json.dumps(told | {"shape": named.shape, "seed": seed} | asdict(options)))
        else:
            say(*saved, f"{done} images in {duration(seconds)}, {duration(seconds / done)} per image")
    if ended := stop or failed:
        raise ended
    return 0


def labels_of(wanted: list[str], classes: int | None) -> list[int]:
    """--label, as numbers of classes. Raises ValueError for those that there are not."""
    if classes is None:
        if wanted:
            raise ValueError(f"--label {wanted[0]}: this model has no classes; leave --label out")
        return []
    known = {str(label) for label in range(classes)}
    for text in wanted:
        if text not in known:
            raise ValueError(
                f"--label {arguments.shortened(text)}: expected 0...{classes - 1}, or 'all' once"
            )
    return [int(text) for text in wanted]


def square(count: int) -> int:
    """How many columns so many images have, if nothing else decides it."""
    return math.ceil(math.sqrt(count))


def _can_be_shown(named: Named) -> bool:
    return named.shape[0] in (1, 3) and named.levels is not None and named.levels <= 256


def _files(args: argparse.Namespace, named: Named) -> dict[str, Path]:
    """Those that are wanted: the picture, unless the images can't be shown and are saved otherwise."""
    files = {name: file for name in FILES if (file := getattr(args, name)) is not None}
    return files if "npz" in files and not _can_be_shown(named) else {"out": args.picture} | files


def _grid(images: Tensor, named: Named, columns: int, undrawn: Tensor | None = None) -> np.ndarray:
    """A picture of levels of any number, from black to white, undrawn ones grey."""
    _, height, width = size = named.shape
    shown = images.reshape(len(images), *size).long() * 255 // ((named.levels or 256) - 1)
    shown = shown if undrawn is None else shown.masked_fill(undrawn, UNDRAWN)
    return pictures.image_grid(shown.to(torch.uint8), columns, pictures.enlarged((height, width)))


def _frames(
    grid: Callable[..., np.ndarray], height: int, known: Tensor | None, done: int
) -> list[np.ndarray]:
    rows = torch.arange(height)[:, None]
    unknown = torch.tensor(True) if known is None else ~(known[:done] if known.dim() == 4 else known)
    tops = range(0, height, -(-height // MOST_FRAMES))
    return [grid(undrawn=(rows >= top) & unknown) for top in tops] + [grid()]


def _save_arrays(named: dict[str, Any], file: Path) -> None:
    with replacing(file) as opened:  # np.savez would add a suffix
        np.savez_compressed(opened, **{name: value for name, value in named.items() if value is not None})


def _save(writers: dict[Callable[[Path], None], Path]) -> tuple[list[Path], Exception | None]:
    """-> the files written, each even if others fail; why one was not."""
    saved: list[Path] = []
    failed: Exception | None = None
    for write, file in [*writers.items()][::-1]:  # the arrays first
        try:
            write(file)
            saved.insert(0, file)
        except Exception as error:  # a full disk, or too little memory
            failed = error
    return saved, failed
