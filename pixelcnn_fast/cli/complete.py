"""``complete``: keeps the known pixels of images, and draws the others."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pixelcnn_fast.bench.arguments import count, file_name, whole
from pixelcnn_fast.cli import drawing, inputs, models

EPILOG = f"""examples:
  python -m pixelcnn_fast sample -n 1 --npz digits.npz
  python -m pixelcnn_fast complete digits.npz --known top-half -n 8 --out completed.png    8 of each, in a column
  python -m pixelcnn_fast complete digits.npz --known-rows 10 --npz completed.npz --gif completed.gif

A mask is black and white, or False and True in an .npz or .npy: white and True are what is known. A pixel sees the
known pixels before it, in the order of reading, and not those after it. Whatever ends the run early, such as Ctrl-C,
the images of the batches that are finished are saved.
{models.EPILOG}"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "complete images of which some pixels are known"
    parser = commands.add_parser("complete", help=about, description=about, epilog=EPILOG)
    inputs.add_arguments(parser, "what is to be completed")
    known = parser.add_mutually_exclusive_group(required=True)
    mask = "what is known: top-half, or a mask of the images' size, a PNG or an .npz"
    known.add_argument("--known", type=file_name, metavar="MASK", help=mask)
    rows = "so many rows at the top are known"
    known.add_argument("--known-rows", type=whole(0), metavar="N", help=rows)
    parser.add_argument("-n", type=count, default=1, metavar="N", help="completions of each image")
    models.add_arguments(parser)
    drawing.add_arguments(parser, Path("completed.png"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = inputs.images(args)
    named = models.named(args, given.shape)
    images = given.levels(named)
    labels = inputs.labels_of(args, given, named.classes)
    many = len(images)
    known = inputs.mask(args.known, args.known_rows, named.shape, many)
    wanted = args.n * many
    drawing.check_files(args, named, wanted)
    if known.dim() == 4 and len(known) > 1:
        known = known.repeat(args.n, 1, 1, 1)
    taken = images.repeat(args.n, 1, 1, 1)
    labels = labels if labels is None else labels.repeat(args.n)
    sampler = named.sampler(args.precision, args.runtime)
    draw = partial(sampler.complete, taken, known)
    columns = many if args.n > 1 else drawing.square(many)
    return drawing.run(args, named, sampler, draw, wanted, labels, columns, known)
