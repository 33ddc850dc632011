"""A wheel's sampling time beside the local build's, in turns: python benchmarks/wheel_speed.py dist/*.whl

Each is a process of its own, with the Python that runs this script. The local build is what that Python imports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from statistics import median

CHILD = """
import sys, time, torch
from pixelcnn_fast import Sampler, checkpoint, native
from pixelcnn_fast.bench.workload import random_model

torch.set_num_threads(int(sys.argv[1]))
digits = Sampler(checkpoint.load("mnist"), (1, 28, 28))
colours = Sampler(random_model(input_channels=3, hidden_channels=64, n_residual=15), (3, 32, 32))
draw = {
    "80 digits": lambda seeded: digits.sample(80, torch.arange(80) % 10, generator=seeded, runtime="cpu"),
    "one of 3x32x32": lambda seeded: colours.sample(1, generator=seeded, runtime="cpu"),
    "16 of 3x32x32": lambda seeded: colours.sample(16, generator=seeded, runtime="cpu"),
}
module = native.required()
print(module.build_info()["compiler"], module.isas()[-1], module.__file__, sep="; ", flush=True)
for name in sys.stdin:
    start = time.perf_counter()
    images = draw[name.strip()](torch.Generator().manual_seed(0))
    print(time.perf_counter() - start, int(images.long().sum()), flush=True)
"""
TIMED = ("80 digits", "one of 3x32x32", "16 of 3x32x32")


class Build:
    """folder: whose pixelcnn_fast it imports; None: what is installed."""

    def __init__(self, folder: Path | None, threads: int) -> None:
        path = os.environ if folder is None else os.environ | {"PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", CHILD, str(threads)]
        pipes = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = pipes(command, env=path, cwd=folder)
        self.description = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def seconds(self, what: str) -> tuple[float, str]:
        """And the sum of the levels drawn, which tells whether the images are the other's."""
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        seconds, total = self._answer().split()
        return float(seconds), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as unpacked:
        zipfile.ZipFile(given.wheel).extractall(unpacked)
        builds = {"local": Build(None, given.threads), "wheel": Build(Path(unpacked), given.threads)}
        for name, build in builds.items():
            print(f"{name}: {build.description}")
        for what in TIMED:
            for build in builds.values():
                build.seconds(what)
            taken: dict[str, list[float]] = {name: [] for name in builds}
            for _ in range(given.repeats):
                drawn = set()
                for name, build in builds.items():
                    seconds, total = build.seconds(what)
                    taken[name].append(1e3 * seconds)
                    drawn.add(total)
            shown = ", ".join(
                f"{name} {median(t):.1f} ms ({min(t):.1f} – {max(t):.1f})" for name, t in taken.items()
            )
            ratio = median(taken["wheel"]) / median(taken["local"])
            same = "same images" if len(drawn) == 1 else "images differ"
            print(f"{what}: {shown}; wheel / local {ratio:.3f}; {same}", flush=True)


if __name__ == "__main__":
    main()
