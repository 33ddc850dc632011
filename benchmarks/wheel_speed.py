"""How long a wheel's module takes to draw, by the local build's time: python benchmarks/wheel_speed.py dist/*.whl

Both draw the same images by the same Python, each in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from statistics import median

from elsewhere import share_of_baseline
from measuring import Settings

from pixelcnn_fast.bench import report
from pixelcnn_fast.cores import usable

CASES = [("PixelCNN 64 × 7", 1), ("default PixelCNN", 1), ("default PixelCNN", 16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path, help="for this Python")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=usable())
    parser.add_argument(
        "--quick", action="store_true", help="draws something tiny, only to see that this runs"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(given.wheel).extractall(folder)
        how = Settings(given.repeats, given.threads, given.quick, "cpu", Path(folder), Path())
        for name, images in CASES:
            of_wheel, rounds, seconds = share_of_baseline(name, how, images)
            spread = f"{1 / max(rounds):.3f} – {1 / min(rounds):.3f} by round"
            local = report.duration(median(seconds))
            print(
                f"{name}, {images} at once: local {local}, wheel {1 / of_wheel:.3f} of that ({spread})",
                flush=True,
            )


if __name__ == "__main__":
    main()
