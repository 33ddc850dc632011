"""``sample --shards``: any number of images in numbered files, by any number of processes."""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from pixelcnn_fast import distributed, pictures
from pixelcnn_fast.bench.arguments import count, path
from pixelcnn_fast.bench.report import duration
from pixelcnn_fast.bench.streams import complain, say
from pixelcnn_fast.call import fields_among
from pixelcnn_fast.cli.drawing import FILES, option_of
from pixelcnn_fast.distributed.shards import FORMATS, Shards
from pixelcnn_fast.heads import SamplingOptions
from pixelcnn_fast.sampler import Sampler

PREVIEW_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many images").add_argument
    shards = "write numbered files here instead, and preview.png; the same command goes on with a job that was stopped"
    add("--shards", type=path, metavar="FOLDER", help=shards)
    add("--shard-size", type=count, metavar="N", help=f"images in a file (default: {distributed.SHARD_SIZE})")
    add("--format", choices=FORMATS, help=f"of these files (default: {FORMATS[0]})")


def check_arguments(args: argparse.Namespace) -> None:
    for name in ("shard_size", "format") if args.shards is None else (*FILES, "noise", "json"):
        if getattr(args, name) not in (None, False):
            goes = "needs" if args.shards is None else "does not go with"
            raise ValueError(f"{option_of(name)} {goes} --shards FOLDER")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if args.shards is None and processes > 1:
        raise ValueError(f"{processes} processes would draw the same images: --shards FOLDER shares them out")


def run(args: argparse.Namespace, sampler: Sampler, wanted: int, classes: list[int]) -> int:
    """Draws ``wanted`` images; image k is of class ``classes[k % len(classes)]``."""
    of_class = torch.tensor(classes)
    is_first = int(os.environ.get("RANK", 0)) == 0
    size, file_format = args.shard_size or distributed.SHARD_SIZE, args.format or FORMATS[0]
    shards = Shards(args.shards, wanted, size, file_format)
    start = time.perf_counter()
    try:
        distributed.sample(
            sampler,
            wanted,
            args.shards,
            (lambda images: of_class[images % len(classes)]) if classes else None,
            seed=args.seed,
            shard_size=shards.size,
            file_format=shards.file_format,
            progress=args.progress,
            batch_size=args.batch,
            runtime=args.runtime,
            **asdict(fields_among(SamplingOptions, vars(args))),
        )
    except KeyboardInterrupt as stop:
        if is_first:
            complain(f"stopped: {stop}")
        raise
    if is_first:
        seconds = time.perf_counter() - start
        preview = _preview(shards, len(classes))
        say(
            f"{args.shards}: {wanted} images in {shards.count} files; this run took {duration(seconds)}",
            *preview,
        )
    return 0


def _preview(shards: Shards, classes: int) -> list[Path]:
    images = torch.from_numpy(shards.read(0)["images"])
    if images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        return []
    columns = classes if classes > 1 else min(PREVIEW_ROWS, math.ceil(math.sqrt(len(images))))
    preview = shards.folder / "preview.png"
    pictures.save_grid(images[: PREVIEW_ROWS * columns], columns, preview, through_links=False)
    return [preview]
