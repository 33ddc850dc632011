"""``nll``: how likely a model finds images, in bits per dimension."""

from __future__ import annotations

import argparse
import json
import math

import torch

from pixelcnn_fast.bench.arguments import count
from pixelcnn_fast.bench.streams import complain, say, watched
from pixelcnn_fast.cli import inputs, models
from pixelcnn_fast.progress import progress_bar

EPILOG = f"""examples:
  python -m pixelcnn_fast sample -n 1 --npz digits.npz
  python -m pixelcnn_fast nll digits.npz
  python -m pixelcnn_fast nll digits.npz --label 3 --json

It is the negative log-likelihood, to the base 2, over the number of sub-pixels (C * H * W): of each image, and their
mean. Ctrl-C keeps those of the batches that are finished.
{models.EPILOG}"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "say how likely images are, in bits per dimension"
    parser = commands.add_parser("nll", help=about, description=about, epilog=EPILOG)
    inputs.add_arguments(parser, "what is scored")
    parser.add_argument("--batch", type=count, default=64, metavar="N", help="images at once")
    parser.add_argument("--json", action="store_true", help="say it as JSON")
    parser.add_argument("--progress", action="store_true", help="show a progress bar, also if nobody watches")
    models.add_arguments(parser)
    parser.set_defaults(run=run, runtime="auto")


def run(args: argparse.Namespace) -> int:
    given = inputs.images(args)
    named = models.named(args, given.shape)
    images = given.levels(named)
    labels = inputs.labels_of(args, given, named.classes)
    sampler = named.sampler()
    bits: list[float] = []
    stop: KeyboardInterrupt | None = None
    try:
        with progress_bar(shown=watched(args.progress), total=len(images), unit="image") as bar:
            for start in range(0, len(images), args.batch):
                part = slice(start, start + args.batch)
                with torch.no_grad():
                    found = sampler.log_prob(images[part], None if labels is None else labels[part])
                bits += (found.double() / -math.log(2) / math.prod(named.shape)).tolist()
                bar.update(len(found))
    except KeyboardInterrupt as error:
        if not bits:
            raise
        complain(f"stopped: {len(bits)} of {len(images)} images are finished")
        stop = error
    scored, mean = dict(zip(given.names, bits, strict=False)), sum(bits) / len(bits)
    if args.json:
        say(json.dumps({"model": args.model, "mean": mean, "bits_per_dim": scored}))
    else:
        say(*(f"{value:9.4f}  {name}" for name, value in scored.items()))
        say(f"{mean:9.4f}  bits per dimension, the mean of {len(bits)} images")
    if stop:
        raise stop
    return 0
