"""``bench``: the samplers side by side on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import count, count_or_zero, counts, model_of, names, output_folder, size
from pixelcnn_fast.bench.contestants import LABELS
from pixelcnn_fast.bench.measure import check_names, compare
from pixelcnn_fast.bench.workload import workload
from pixelcnn_fast.native import native

EPILOG = f"""runtimes:
{chr(10).join(f"  {name:<10} {label}" for name, label in LABELS.items())}

examples:
  python -m pixelcnn_fast bench
  python -m pixelcnn_fast bench sampling --model mnist --batch 1,10 --naive-pixels 0
  python -m pixelcnn_fast bench sampling --runtimes eager,cpu --batch 64 --size 64

All of them draw with the same noise and take turns. Before any speed-up is shown, every image is checked: one
float64 forward of the model gives each sub-pixel's probabilities, and the noise must lie in the interval of
the level that was drawn with it. If a check fails, the status is 1. Leave the machine alone meanwhile.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "measure the samplers side by side"
    parser = commands.add_parser("bench", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add("what", nargs="?", choices=["sampling"], default="sampling", help="what to measure")
    add(
        "--model",
        default="default",
        help="'default' (PixelCNN(), random weights), 'mnist' or any model's checkpoint",
    )
    add("--batch", type=counts, default=[1, 16], metavar="N,...", help="images at once (default: 1,16)")
    add("--size", type=size, metavar="HxW", help="(default: 28x28 for mnist, else 32x32)")
    add("--runtimes", type=names, metavar="NAME,...", help="(default: all that work here)")
    add("--repeats", type=count, default=5, help="timed runs of each, after one to warm up")
    naive = "pixels that the naive sampler draws; its time is scaled up from them; 0: whole images"
    add("--naive-pixels", type=count_or_zero, default=64, metavar="N", help=naive)
    add("--threads", type=count, help="threads of PyTorch and the compiled sampler (default: PyTorch's choice)")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where the table and the chart go")
    parser.set_defaults(run=run)


def available() -> list[str]:
    """The contestants that work here."""
    return [name for name in LABELS if native() or not name.startswith("cpu")]


def run(args: argparse.Namespace) -> int:
    chosen = args.runtimes or available()
    check_names(chosen)
    folder = output_folder(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = model_of(args.model)
    height, width = args.size or ((28, 28) if args.model == "mnist" else (32, 32))
    found = report.machine()
    comparisons, interrupted = [], False
    try:
        for n in args.batch:
            work = workload(model, n, height, width, args.seed)
            results = compare(work, chosen, args.repeats, args.naive_pixels, progress=sys.stderr.isatty())
            comparisons.append(results)
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(comparisons)} of {len(args.batch)} batch sizes are finished", file=sys.stderr)
    if comparisons:
        model_name = Path(args.model).stem
        title = f"Sampling {model.input_channels}x{height}x{width} images from the {model_name} model"
        paths = report.save(comparisons, folder, "sampling", title, found)
        print(report.about(found), report.markdown(comparisons), "", *paths, sep="\n")
    return 130 if interrupted else 0
