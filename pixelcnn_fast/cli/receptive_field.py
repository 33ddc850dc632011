"""``receptive-field``: shows what a model's outputs see, and whether that is causal."""

from __future__ import annotations

import argparse

from pixelcnn_fast.bench.arguments import output_file, png
from pixelcnn_fast.bench.streams import say
from pixelcnn_fast.cli import models
from pixelcnn_fast.receptive_field import receptive_field

EPILOG = f"""examples:
  python -m pixelcnn_fast receptive-field
  python -m pixelcnn_fast receptive-field --model pixelcnn_fast.models:GatedPixelCNN --size 16x16 --out field.png
{models.EPILOG}"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "show what a model sees: causal or not, blind spots, the layer that leaks"
    parser = commands.add_parser("receptive-field", help=about, description=about, epilog=EPILOG)
    parser.add_argument("--out", type=png, metavar="PNG", help="also write a picture")
    models.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = models.named(args)
    files = [] if args.out is None else [output_file(args.out)]
    field = receptive_field(found.model, found.shape, **found.arguments)
    for file in files:
        field.picture(file)
    say(field, *files)
    return 0 if field.causal else 1
