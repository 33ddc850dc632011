"""``sample``: draw images from a checkpoint and save them, as one picture or as many files."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast import checkpoint, pictures
from pixelcnn_fast.bench.arguments import Renamed, count, output_file, size
from pixelcnn_fast.bench.report import duration
from pixelcnn_fast.cli import shards
from pixelcnn_fast.errors import SamplingInterrupted
from pixelcnn_fast.heads import SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes import PRECISIONS, RUNTIMES
from pixelcnn_fast.sampler import Sampler

PICTURE = Path("samples.png")
EPILOG = """examples:
  python -m pixelcnn_fast sample --label 3 -n 64 --out threes.png
  python -m pixelcnn_fast sample --label all -n 8 --temperature 0.9       one column for each class
  python -m pixelcnn_fast sample --checkpoint my.safetensors --size 32x32 --npz images.npz
  torchrun --nproc-per-node 8 -m pixelcnn_fast sample -n 100000 --shards digits    on 8 processes

The same seed gives the same images, whatever the runtime, the batch and the number of processes, and image k is the
same for every -n. Checkpoints are written by pixelcnn_fast.checkpoint.save. Ctrl-C saves the images of the batches, or
shards, that are finished. docs/jobs.md explains shards, and jobs on several machines.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "draw images from a checkpoint"
    parser = commands.add_parser("sample", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add("--checkpoint", default="mnist", help="'mnist', which comes with the package, or a file")
    add(
        "--label",
        action="append",
        help="class to draw; may be repeated; 'all' for every class (default: all)",
    )
    per_class = "images of each class, or in all if there are no classes"
    add("-n", type=count, default=16, metavar="N", help=per_class)
    # Not shown, since torchrun takes --n for its own options that begin so.
    add("--n", type=count, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--size", type=size, default=(28, 28), metavar="HxW", help="(default: 28x28)")
    for option in fields(SamplingOptions):
        flag, known = f"--{option.name.replace('_', '-')}", option.metadata
        add(flag, type=known["parse"], default=option.default, metavar=known["metavar"], help=known["help"])
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--runtime", choices=RUNTIMES, default="auto", help="auto takes the fastest that works here")
    add(
        "--precision",
        choices=PRECISIONS,
        default="same",
        help="bf16 halves the memory of the weights but is not exact",
    )
    add("--weights", action=Renamed, to="--precision")
    add("--batch", type=count, metavar="N", help="images drawn at once (default: what fits)")
    add("--out", type=Path, metavar="PNG", help=f"the picture to write (default: {PICTURE})")
    add("--npz", type=Path, help="also write images, labels and settings here")
    add("--progress", action="store_true", help="show a progress bar")
    shards.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    shards.check_arguments(args)
    options = _options(args)
    if args.shards is None:
        args.out = args.out or PICTURE
        if args.out.suffix.lower() != ".png":
            raise ValueError(f"--out {args.out}: the picture is a PNG, so name it .png")
        for path in filter(None, (args.out, args.npz)):
            output_file(path)
    model = checkpoint.load(args.checkpoint)
    classes = _classes(args.label, model)
    wanted = args.n * max(len(classes), 1)
    sampler = Sampler(model, (model.input_channels, *args.size), precision=args.precision)
    if args.shards is not None:
        return shards.run(args, sampler, wanted, classes, options)
    labels = torch.tensor(classes).repeat(args.n) if classes else None
    start = time.perf_counter()
    interrupted = False
    try:
        images = sampler.sample(
            wanted,
            labels,
            noise=noise_of(args.seed, range(wanted), sampler.noise_shape),
            batch_size=args.batch,
            runtime=args.runtime,
            progress=args.progress,
            **asdict(options),
        )
    except SamplingInterrupted as stop:
        images, interrupted = stop.images, True
    seconds = time.perf_counter() - start
    if interrupted:
        print(f"interrupted: {len(images)} of {wanted} images are finished", file=sys.stderr)
    if len(images):
        columns = len(classes) if len(classes) > 1 else math.ceil(math.sqrt(wanted))
        _save(images, labels, columns, args)
        print(f"{len(images)} images in {duration(seconds)}, {duration(seconds / len(images))} per image")
    return 130 if interrupted else 0


def _options(args: argparse.Namespace) -> SamplingOptions:
    return SamplingOptions(**{option.name: getattr(args, option.name) for option in fields(SamplingOptions)})


def _classes(wanted: list[str] | None, model: checkpoint.Model) -> list[int]:
    """The classes to draw; none for a model without classes."""
    if model.n_classes is None:
        if wanted:
            raise ValueError(f"--label {wanted[0]}: this model has no classes; leave --label out")
        return []
    if wanted is None or wanted == ["all"]:
        return list(range(model.n_classes))
    for text in wanted:
        if not text.isdecimal() or int(text) >= model.n_classes:
            raise ValueError(f"--label {text}: expected 0...{model.n_classes - 1}, or 'all' once")
    return [int(text) for text in wanted]


def _save(images: Tensor, labels: Tensor | None, columns: int, args: argparse.Namespace) -> None:
    pictures.save_grid(images, columns, args.out)
    print(args.out)
    if args.npz:
        settings = {"seed": args.seed, "checkpoint": args.checkpoint}
        settings |= {name: value for name, value in asdict(_options(args)).items() if value is not None}
        kept = {} if labels is None else {"labels": labels[: len(images)].numpy()}
        with args.npz.open("wb") as file:  # np.savez would add a suffix to a name without one
            arrays: dict[str, Any] = {"images": images.numpy(), **kept, **settings}
            np.savez_compressed(file, **arrays)
        print(args.npz)
