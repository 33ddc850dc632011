"""``sample``: saves images from a model, as one picture or as many files."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from pixelcnn_fast.bench.arguments import count
from pixelcnn_fast.cli import drawing, models, shards

EPILOG = f"""examples:
  python -m pixelcnn_fast sample --label 3 -n 64 --out threes.png
  python -m pixelcnn_fast sample --label all -n 8 --temperature 0.9       one column for each class
  python -m pixelcnn_fast sample -n 2 --npz digits.npz --gif digits.gif   arrays, and the picture as it fills
  python -m pixelcnn_fast sample --model pixelcnn_fast.models:GatedPixelCNN --size 16x16 -n 4
  torchrun --nproc-per-node 2 -m pixelcnn_fast sample -n 100 --shards digits    on 2 processes

The same seed gives the same images, whatever the runtime, the batch and the number of processes, and image k is the
same for every -n. Checkpoints are written by pixelcnn_fast.checkpoint.save. Whatever ends the run early, such as Ctrl-C
or SIGTERM, the images of the batches, or shards, that are finished are saved. -n, --batch and --top-k are whole
numbers, 1 or more; --temperature is 0 or more; --top-p is more than 0 and at most 1. docs/jobs.md explains shards, and
jobs on several machines; docs/command_line.md has more examples.
{models.EPILOG}
A model that takes more than images and labels is sampled in Python, where condition_shape= says what else it takes.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "draw images from a model"
    parser = commands.add_parser("sample", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    label = "class to draw; may be repeated; 'all' for every class (default: all)"
    add("--label", action="append", help=label)
    per_class = "images of each class, or in all if there are no classes"
    add("-n", type=count, default=16, metavar="N", help=per_class)
    # Not shown, since torchrun takes --n for its own options that begin so.
    add("--n", type=count, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    models.add_arguments(parser)
    drawing.add_arguments(parser, Path("samples.png"))
    shards.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    shards.check_arguments(args)
    named = models.named(args)
    is_all = named.classes is not None and args.label in (None, ["all"])
    classes = [*range(named.classes or 0)] if is_all else drawing.labels_of(args.label or [], named.classes)
    wanted = args.n * max(len(classes), 1)
    if args.shards is None:
        drawing.check_files(args, named, wanted)
    sampler = named.sampler(args.precision, args.runtime)
    if args.shards is not None:
        return shards.run(args, sampler, wanted, classes)
    labels = torch.tensor(classes).repeat(args.n) if classes else None
    columns = len(classes) if len(classes) > 1 else drawing.square(wanted)
    return drawing.run(args, named, sampler, partial(sampler.sample, wanted), wanted, labels, columns)
