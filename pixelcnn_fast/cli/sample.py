"""``sample``: saves images from a checkpoint, as one picture or as many files."""

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
from pixelcnn_fast.bench import arguments
from pixelcnn_fast.bench.arguments import Renamed, count, file_name, output_file, path, png, size
from pixelcnn_fast.bench.report import duration
from pixelcnn_fast.bench.streams import complain, say
from pixelcnn_fast.call import fields_among
from pixelcnn_fast.cli import memory, shards
from pixelcnn_fast.cli.interrupts import interrupts
from pixelcnn_fast.files import replacing
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
same for every -n. Checkpoints are written by pixelcnn_fast.checkpoint.save. Whatever ends the run early, such as Ctrl-C
or SIGTERM, the images of the batches, or shards, that are finished are saved. -n, --batch and --top-k are whole
numbers, 1 or more; --temperature is 0 or more; --top-p is more than 0 and at most 1. docs/jobs.md explains shards, and
jobs on several machines.

A model of your own is sampled in Python. image_form= says in what form it takes images, levels= how many levels there
are, conditional= whether it takes labels, and condition_shape= what else:
  Sampler(model, (3, 32, 32), image_form="unit").sample(64)                        floats, 0...1
  Sampler(prior, (1, 32, 32), levels=512, image_form="codes").sample(64)           a prior over codes of a VQ-VAE
"""

PARSERS = {int: count, float: arguments.number}  # stricter than Python's own


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "draw images from a checkpoint"
    parser = commands.add_parser("sample", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=file_name,
        default="mnist",
        help="'mnist', which comes with the package, or a file",
    )
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
        shown = {name: option.metadata[name] for name in ("metavar", "help")}
        parse = PARSERS[option.metadata["parse"]]
        add(f"--{option.name.replace('_', '-')}", type=parse, default=option.default, **shown)
    add("--seed", type=arguments.seed, default=0, help="seed of the noise")
    add("--runtime", choices=RUNTIMES, default="auto", help="auto takes the fastest that works here")
    add(
        "--precision",
        choices=PRECISIONS,
        default="same",
        help="bf16 halves the memory of the weights, and may be faster, but is not exact",
    )
    add("--weights", action=Renamed, to="--precision")
    add("--batch", type=count, metavar="N", help="images drawn at once (default: what fits)")
    add("--out", type=png, metavar="PNG", help=f"the picture to write (default: {PICTURE})")
    add("--npz", type=path, metavar="FILE", help="also write images, labels and settings here")
    add("--progress", action="store_true", help="show a progress bar")
    shards.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    shards.check_arguments(args)
    options, (height, width) = fields_among(SamplingOptions, vars(args)), args.size
    model = checkpoint.load(args.checkpoint)
    classes = _classes(args.label, model)
    wanted = args.n * max(len(classes), 1)
    memory.check_memory(memory.to_capture(model, height, width), f"--size {height}x{width}")
    if args.shards is None:
        _check_picture(args, model, wanted)
    sampler = Sampler(model, (model.input_channels, height, width), precision=args.precision)
    draw = _one_picture if args.shards is None else shards.run
    return draw(args, sampler, wanted, classes, options)


def _one_picture(
    args: argparse.Namespace, sampler: Sampler, wanted: int, classes: list[int], options: SamplingOptions
) -> int:
    labels = torch.tensor(classes).repeat(args.n) if classes else None
    columns = len(classes) if len(classes) > 1 else math.ceil(math.sqrt(wanted))
    start = time.perf_counter()
    stop: BaseException | None = None
    try:
        images = sampler.sample(
            wanted,
            labels,
            noise=noise_of(args.seed, range(wanted), sampler.noise_shape),
            batch_size=args.batch,
            runtime=args.runtime,
            progress=args.progress and sys.stderr is not None,
            **asdict(options),
        )
    except BaseException as error:  # raised once images are saved
        finished = getattr(error, "images", None)
        if finished is None or not len(finished):
            raise
        images, stop = finished, error
    with interrupts.wait():
        seconds = time.perf_counter() - start
        saved, failed = _save(images, labels, columns, args, options)
        if stop is not None:
            complain(f"stopped: {len(images)} of {wanted} images are finished")
        per_image = duration(seconds / len(images))
        say(*saved, f"{len(images)} images in {duration(seconds)}, {per_image} per image")
    if ended := stop or failed:
        raise ended
    return 0


def _files(args: argparse.Namespace) -> list[Path]:
    out = args.out or PICTURE
    return [out] if args.npz is None else [out, args.npz]


def _check_picture(args: argparse.Namespace, model: checkpoint.Model, wanted: int) -> None:
    files = _files(args)
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"--npz {args.npz} is the picture of --out: give them different names")
    for file in files:
        output_file(file)
    height, width = args.size
    if model.input_channels not in (1, 3) or getattr(model, "levels", 256) > 256:
        raise ValueError(
            f"--checkpoint {args.checkpoint}: a picture has 1 or 3 channels of up to 256 levels, unlike its images; "
            "use --shards, or draw them in Python, with pixelcnn_fast.Sampler"
        )
    sub_pixels = 9 * model.input_channels * height * width  # the level and its noise
    shown = 3 * (height + 1) * (width + 1) * pictures.enlarged(args.size) ** 2
    memory.check_memory(wanted * (sub_pixels + shown), f"{wanted} images of {height}x{width} in one picture")


def _classes(wanted: list[str] | None, model: checkpoint.Model) -> list[int]:
    if model.n_classes is None:
        if wanted:
            raise ValueError(f"--label {wanted[0]}: this model has no classes; leave --label out")
        return []
    if wanted is None or wanted == ["all"]:
        return list(range(model.n_classes))
    known = [str(label) for label in range(model.n_classes)]
    for text in wanted:
        if text not in known:
            shown = arguments.shortened(text)
            raise ValueError(f"--label {shown}: expected 0...{model.n_classes - 1}, or 'all' once")
    return [int(text) for text in wanted]


def _save(
    images: Tensor, labels: Tensor | None, columns: int, args: argparse.Namespace, options: SamplingOptions
) -> tuple[list[Path], Exception | None]:
    """-> the files written, one even if the other fails; why one was not."""
    drawn = labels if labels is None else labels[: len(images)].numpy()
    named = {"images": images.numpy(), "labels": drawn, "seed": args.seed, "checkpoint": args.checkpoint}
    arrays: Any = {name: value for name, value in (named | asdict(options)).items() if value is not None}
    saved: list[Path] = []
    failed: Exception | None = None
    for file in _files(args)[::-1]:  # the arrays first
        try:
            if file is args.npz:
                with replacing(file) as opened:  # np.savez would add a suffix
                    np.savez_compressed(opened, **arrays)
            else:
                pictures.save_grid(images, columns, file)
            saved.insert(0, file)
        except Exception as error:  # a full disk, or too little memory
            failed = error
    return saved, failed
