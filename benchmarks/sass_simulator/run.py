"""Simulates one block of a launch, or one cluster, and reports."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from sass_simulator import control  # noqa: F401  # it registers what the executor runs
from sass_simulator.clusters import Cluster
from sass_simulator.executor import Executor, Recording, execute
from sass_simulator.kernel import GENERIC, LOCAL, Kernel, Where, is_integer_division
from sass_simulator.machine import Machine, Memory
from sass_simulator.rates import Rates
from sass_simulator.timing import Timed, timed_together


def pack(*parameters: int | bytes | np.generic) -> bytes:
    """A kernel's parameters as it gets them: int as 8 bytes (addresses), bytes as they are (structs, aligned to 8),
    numpy numbers by their size."""
    result = b""
    for value in parameters:
        if isinstance(value, int):
            data = struct.pack("<q", value)
        else:
            data = value if isinstance(value, bytes) else value.tobytes()
        alignment = 8 if isinstance(value, bytes) else len(data)
        result += bytes(-len(result) % alignment) + data
    return result


@dataclass(frozen=True)
class Run:
    """Of a block. Of a cluster, it is the block of rank 0 unless something else is said.

    timed: its ``l2_bytes`` are those of the cluster's block with the most. others: the blocks of rank 1 and on.
    """

    kernel: Kernel
    recording: Recording
    timed: Timed
    others: tuple[Timed, ...] = ()

    @property
    def cycles(self) -> float:
        """From the first instruction to the last one's result; of a cluster's slowest block."""
        return max(block.cycles for block in (self.timed, *self.others))

    @property
    def busy(self) -> dict[str, float]:
        """Cycles that each part was busy: issue slots and pipes (of one scheduler, on average), shared memory, L2."""
        return self.timed.busy

    @property
    def instructions(self) -> int:
        """Of all warps."""
        return sum(self.timed.issued.values())

    @property
    def waits(self) -> dict[str, float]:
        """Cycles that warps waited, all warps together, by reason."""
        result: dict[str, float] = defaultdict(float)
        for (reason, _), cycles in self.timed.waits.items():
            result[reason] += cycles
        return dict(result)

    @property
    def code_bytes(self) -> int:
        """Of the instructions that were executed: the model has no instruction cache, a multiprocessor has."""
        return 16 * len(self.timed.issued)

    def executed(self, names: set[str]) -> int:
        """How often warps executed instructions of these names, in all blocks of a cluster."""
        return self._executed(lambda i: i.name in names)

    @property
    def generic_accesses(self) -> int:
        return self.executed(GENERIC)

    @property
    def local_accesses(self) -> int:
        return self.executed(LOCAL)

    @property
    def integer_divisions(self) -> int:
        return self._executed(is_integer_division)

    def _executed(self, where: Where) -> int:
        blocks = self.timed, *self.others
        return sum(
            n for b in blocks for index, n in b.issued.items() if where(self.kernel.instructions[index])
        )

    def marks(self, warp: int = 0) -> list[float]:
        """When a warp executed each ``asm("pmevent 0;")``."""
        return self.timed.marks[warp]

    def profile(self, rows: int = 20, depth: int = 0) -> str:
        """Source lines by the cycles that warps spent there. depth 0: the line that does it, wherever it is inlined;
        1 and more: the line that calls it, as far outwards."""
        issued: Counter[str] = Counter()
        spent: dict[str, Counter[str]] = {}

        def line(index: int) -> str:
            lines = self.kernel.instructions[index].lines
            if not lines:
                return "?"
            file, number = lines[max(len(lines) - depth, 0) if depth else 0]
            return f"{file.split('/')[-1]}:{number}"

        for index, n in self.timed.issued.items():
            issued[line(index)] += n
            spent.setdefault(line(index), Counter())["issue"] += n
        for (reason, index), cycles in self.timed.waits.items():
            spent.setdefault(line(index), Counter())[reason] += round(cycles)
        everything = sum(sum(c.values()) for c in spent.values())
        text = [f"{'line':28} {'cycles':>10} {'share':>6} {'instructions':>12}  of which"]
        for name, parts in sorted(spent.items(), key=lambda item: -sum(item[1].values()))[:rows]:
            total = sum(parts.values())
            reasons = ", ".join(f"{reason} {cycles}" for reason, cycles in parts.most_common(4))
            text.append(f"{name:28} {total:10} {total / everything:6.1%} {issued[name]:12}  {reasons}")
        return "\n".join(text)


def unknown_instructions(kernel: Kernel) -> list[str]:
    """Those that the simulator does not know, with their places: an error once a simulation comes there."""
    machine = Machine(
        kernel, Memory(), 32, (0, 0, 0), (1, 1, 1), (32, 1, 1), bytes(kernel.parameter_bytes), 16
    )
    return Executor(machine).unknown()


def simulate(
    kernel: Kernel,
    parameters: bytes,
    memory: Memory,
    *,
    threads: int | tuple[int, int, int],
    rates: Rates,
    shared_bytes: int = 0,
    block: tuple[int, int, int] = (0, 0, 0),
    blocks: tuple[int, int, int] = (1, 1, 1),
    l2_rate: float | None = None,
    cluster: int = 1,
) -> Run:
    """Executes one block, or all blocks of a cluster together, which changes ``memory``, and times them.

    parameters: the kernel's, as bytes (``pack``). shared_bytes: dynamic. block: its index among ``blocks``.
    l2_rate: bytes a cycle, of each block; None: what one multiprocessor alone gets. cluster: blocks in a cluster, side
    by side in x; 1: the launch has none. Simulated is the whole cluster that ``block`` belongs to.
    Raises SimulationError where the simulator does not know an instruction, or a GPU would report an error.
    """
    shape = (threads, 1, 1) if isinstance(threads, int) else threads
    shared = -(-(kernel.shared_bytes + shared_bytes) // 16) * 16
    if cluster < 1 or blocks[0] % cluster:
        raise ValueError(f"{blocks[0]} blocks in x are no whole clusters of {cluster}")
    if cluster > 1 and kernel.arch < 90:
        raise ValueError(f"sm_{kernel.arch} has no clusters")
    together: Cluster[Machine] = Cluster(cluster)
    first = block[0] // cluster * cluster
    machines = [
        Machine(
            kernel=kernel,
            memory=memory,
            threads=shape[0] * shape[1] * shape[2],
            block=(first + rank, block[1], block[2]),
            blocks=blocks,
            shape=shape,
            parameters=parameters,
            shared_size=shared,
            cluster=together,
        )
        for rank in range(cluster)
    ]
    recordings = execute(machines)
    l1_bytes = max(rates.l1_bytes - shared, 0)
    rate = rates.l2_bytes if l2_rate is None else l2_rate
    own, *others = timed_together(kernel.instructions, recordings, rates, rate, l1_bytes)
    most = max(of_block.l2_bytes for of_block in (own, *others))
    return Run(kernel, recordings[0], replace(own, l2_bytes=most), tuple(others))
