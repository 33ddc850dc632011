"""What the CUDA sampler would take for an image if rows above were summed for a chunk of c columns at once.

The CPU sampler does so. The CUDA sampler has c = 1, which takes at most 4 % more than the best, in clusters and on a
block, but for wide vertical stacks on a block: weights of taps in rows above would be read once for c columns, but each
row would start c - 1 columns later, and sums be stored and read again. By the rule of runtimes/cuda/cost.py, on an
H100, as if the chunk's own records took no time: more than c = 1 is not built.

  python benchmarks/chunk_costs.py     Markdown: milliseconds of an image on one block, and on a cluster of eight
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from column_steps import GATED, PIXELCNN, PRIOR, ROW_LSTM, ColumnSteps, Network

from pixelcnn_fast.program.phased import Phase, PhasedProgram
from pixelcnn_fast.runtimes.cuda.cost import cycles
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, Shape

CHUNKS = (1, 2, 3, 4, 6, 8)  # columns
SUM_BYTES = 2 * 2 * 4  # of a channel: float32, in two halves so that no bit changes, written and read


@dataclass(frozen=True)
class Rows:
    """Of a program: the share of weights that multiply rows above, and channels of instructions that also multiply
    their own row."""

    share: float
    mixed_channels: int

    @classmethod
    def of(cls, program: PhasedProgram) -> Rows:
        above = {i: sum(run.weight.numel() for run in i.row_runs) for i in program.instructions}
        own = {i: sum(run.weight.numel() for run in i.pixel_runs) for i in program.instructions}
        mixed = [i for i in program.instructions if above[i] and (own[i] or i.phase is not Phase.ROW)]
        of_above = sum(above.values())
        share = of_above / (of_above + sum(own.values()))
        return cls(share, sum(i.channels for i in mixed))


def milliseconds(steps: ColumnSteps, network: Network, blocks: int, chunk: int) -> float:
    """Of an image that so many blocks share."""
    runtime = steps.runtime(network)
    facts, program = runtime.sampler(Shape(1, blocks)).facts, runtime._program
    rows, (_, height, width), [sweep] = Rows.of(program), network.shape, facts["sweeps"]
    lag = facts["lag"] + chunk - 1
    in_flight = min(-(-width // lag), height)
    sum_bytes = rows.mixed_channels * SUM_BYTES if chunk > 1 else 0
    planned = {
        "steps": sweep["steps"] + (chunk - 1) * (height - 1),
        "records": sweep["records"],
        "weight_bytes": sweep["weight_bytes"] * (1 - rows.share + rows.share / chunk),
        "value_bytes": in_flight * (sweep["value_bytes"] / facts["rows"] + sum_bytes),
    }
    changed = {**facts, "rows": in_flight, "sweeps": [planned]}
    return steps.rates.milliseconds(cycles(changed, runtime.math, 1, blocks, steps.rates.multiprocessors))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    print(f"| one image, ms | blocks | {' | '.join(f'c = {chunk}' for chunk in CHUNKS)} |")
    print("|---" * (len(CHUNKS) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        steps = ColumnSteps("90", Path(folder))
        for network in (PIXELCNN, GATED, ROW_LSTM, PRIOR):
            for blocks in (1, max(CLUSTERS)):
                found = " | ".join(f"{milliseconds(steps, network, blocks, chunk):.1f}" for chunk in CHUNKS)
                print(f"| {network.name} | {blocks} | {found} |")


if __name__ == "__main__":
    main()
