"""Turns pytest-benchmark's JSON into a table (Markdown and CSV, one row per device, op and contestant) and a chart.

python benchmarks/ops_table.py ops.json [--out FOLDER]
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch

from pixelcnn_fast import pictures
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import Parser, folder_name, output_folder
from pixelcnn_fast.files import write_text

HEADER = ["device", "op", "contestant", "median", "fastest", "slowest", "vs plain"]


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument(
        "--out", type=folder_name, default=Path("out"), metavar="FOLDER", help="for ops.md, ops.csv, ops.png"
    )
    args = parser.parse_args()
    folder = output_folder(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, dict]] = defaultdict(dict)
    for entry in json.loads(args.json.read_text(encoding="utf-8"))["benchmarks"]:
        if "contestant" in entry["extra_info"]:
            groups[entry["group"]][entry["extra_info"]["contestant"]] = entry["stats"]
    if not groups:
        parser.error(f"{args.json} holds no benchmark of an op")
    rows, panels = [HEADER], []
    numbers: list[list] = [HEADER]
    for group, found in groups.items():
        op, _, device = group.rpartition(", ")
        device = torch.cuda.get_device_name() if device == "cuda" else report.processor()
        bars = []
        for name, stats in found.items():
            ratio = found["plain"]["median"] / stats["median"] if "plain" in found else float("nan")
            times = [stats[key] for key in ("median", "min", "max")]
            rows.append([device, op, name, *map(report.duration, times), report.factor(ratio)])
            numbers.append([device, op, name, *times, ratio])
            note = f"{report.duration(stats['median'])}   {report.factor(ratio)}"
            bars.append(pictures.Bar(name, stats["median"], note, False))
        panels.append(pictures.Panel(group, bars))
    found = report.machine()
    text = f"{report.about(found)}\n\n{report.table(rows)}\n"
    write_text(f"# The ops side by side\n\n{text}", folder / "ops.md")
    with (folder / "ops.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(numbers)
    pictures.chart(
        panels, folder / "ops.png", "The ops side by side", axis="seconds", warning=report.busy(found)
    )
    print(text, *(folder / f"ops.{suffix}" for suffix in ("md", "csv", "png")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
