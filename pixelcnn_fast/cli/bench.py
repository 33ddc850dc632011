"""``bench``: the samplers side by side on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from pixelcnn_fast.bench import arguments, report
from pixelcnn_fast.bench.contestants import LABELS, Result
from pixelcnn_fast.bench.measure import check_names, compare, wrong_images
from pixelcnn_fast.bench.streams import complain, say, watched
from pixelcnn_fast.cli import memory, models
from pixelcnn_fast.native import native

EPILOG = f"""runtimes:
{chr(10).join(f"  {name:<10} {label}" for name, label in LABELS.items())}

examples:
  python -m pixelcnn_fast bench
  python -m pixelcnn_fast bench sampling --model mnist --batch 1,10 --naive-pixels 0
  python -m pixelcnn_fast bench sampling --model mnist --runtimes eager,cpu --batch 4 --size 14

All of them draw with the same noise and take turns. Before any speed-up is shown, every image is checked: one
float64 forward of the model gives each sub-pixel's probabilities, and the noise must lie in the interval of
the level that was drawn with it. bf16 weights must be the model's own, rounded, and the images right for these, or,
where the processor multiplies bf16, right for the model up to twice what bf16 in plain PyTorch moves a probability. Who
fails is marked WRONG, without a speed-up, and the status is 1. Leave the machine alone meanwhile.
{models.EPILOG}"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "measure the samplers side by side"
    parser = commands.add_parser("bench", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add("what", nargs="?", choices=["sampling"], default="sampling", help="what to measure")
    at_once = "images at once (default: 1,16)"
    add("--batch", type=arguments.counts, default=[1, 16], metavar="N,...", help=at_once)
    every = "(default: all that work here)"
    add("--runtimes", type=lambda text: text.split(","), metavar="NAME,...", help=every)
    add("--repeats", type=arguments.rounds, default=5, help="timed runs of each, after one to warm up")
    naive = "pixels that the naive sampler draws; its time is scaled up from them; 0: whole images"
    add("--naive-pixels", type=arguments.count_or_zero, default=64, metavar="N", help=naive)
    threads = "threads of PyTorch and the compiled sampler (default: PyTorch's choice)"
    add("--threads", type=arguments.threads, help=threads)
    add("--seed", type=arguments.seed, default=0, help="seed of the noise")
    where = "where the table and the chart go"
    add("--out", type=arguments.path, default=Path("out"), metavar="FOLDER", help=where)
    models.add_arguments(parser, "default")
    parser.set_defaults(run=run)


def available() -> list[str]:
    """The contestants that work here."""
    return [name for name in LABELS if native() or not name.startswith("cpu")]


def run(args: argparse.Namespace) -> int:
    chosen = args.runtimes or available()
    check_names(chosen)
    named = models.named(args)
    channels, height, width = named.shape
    forward = 4 * channels * (named.levels or 1) * height * width
    memory.check_memory(max(args.batch) * forward, f"{max(args.batch)} images of {height}x{width} at once")
    folder = arguments.output_folder(args.out, *report.files("sampling"))
    if args.threads:
        torch.set_num_threads(args.threads)
    found = report.machine()
    comparisons: list[list[Result]] = []
    try:
        for n in args.batch:
            work = named.workload(n, args.seed)
            comparisons.append(compare(work, chosen, args.repeats, args.naive_pixels, progress=watched()))
    except KeyboardInterrupt:
        if not comparisons:
            raise
    title = f"Sampling {channels}x{height}x{width} images from the {named.title} model"
    status = finish(comparisons, folder, "sampling", title, found)
    if len(comparisons) < len(args.batch):
        complain(f"interrupted: {len(comparisons)} of {len(args.batch)} batch sizes are finished")
        raise KeyboardInterrupt
    return status


def finish(
    comparisons: list[list[Result]], folder: Path, stem: str, title: str, found: dict[str, Any]
) -> int:
    """Saves and prints a report -> the exit status."""
    paths = report.save(comparisons, folder, stem, title, found)
    say(report.about(found), report.markdown(comparisons), "", *paths)
    failures = [*filter(None, map(wrong_images, comparisons))]
    for failure in failures:
        complain(f"check failed, so no speed-up is reported: {failure}")
    return 1 if failures else 0
