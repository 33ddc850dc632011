"""``receptive-field``: shows what a model's outputs see, and whether that is causal."""

from __future__ import annotations

import argparse

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench.arguments import file_name, output_file, png, size
from pixelcnn_fast.bench.streams import say
from pixelcnn_fast.cli import memory
from pixelcnn_fast.receptive_field import receptive_field

EPILOG = """examples:
  python -m pixelcnn_fast receptive-field
  python -m pixelcnn_fast receptive-field --checkpoint my.safetensors --size 32x32 --out field.png

For a model of your own: print(pixelcnn_fast.receptive_field(model, (3, 32, 32))).
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "show what a model sees: causal or not, blind spots, the layer that leaks"
    parser = commands.add_parser("receptive-field", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=file_name,
        default="mnist",
        help="'mnist', which comes with the package, or a file",
    )
    add("--size", type=size, default=(28, 28), metavar="HxW", help="(default: 28x28)")
    add("--out", type=png, metavar="PNG", help="also write a picture")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    model = checkpoint.load(args.checkpoint)
    height, width = args.size
    memory.check_memory(memory.to_capture(model, height, width), f"--size {height}x{width}")
    files = [] if args.out is None else [output_file(args.out)]
    field = receptive_field(model, (model.input_channels, height, width))
    for file in files:
        field.picture(file)
    say(field, *files)
    return 0 if field.causal else 1
