"""Column steps of the CUDA sampler, simulated: what a block takes for one once all rows are in flight.

Needs a compiler of kernels (NVRTC) and nvdisasm; but no GPU.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sass_simulator
import torch
from sass_simulator import RATES, Kernel, Memory, Rates, Run, simulate
from torch import nn

from pixelcnn_fast import compiler
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from pixelcnn_fast.program.schema import Job
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda.compilers import Compiler
from pixelcnn_fast.runtimes.cuda.compilers import compiler as found_compiler
from pixelcnn_fast.runtimes.cuda.driver import NAME, Launch
from pixelcnn_fast.runtimes.cuda.kernels import Instance, sources
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, CudaRuntime, Limits, Shape, largest_cluster
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

# What a block may have of shared memory, by architecture: "Technical Specifications per Compute Capability" in NVIDIA's
# CUDA C++ Programming Guide. KB.
SHARED = {99: ("86", "89", "120"), 163: ("80",), 227: ("90", "100")}
FEW, MANY = 1, 3  # column steps of the two runs whose difference counts: the first one also fills the stream


@dataclass(frozen=True)
class Network:
    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, int, int]


PIXELCNN = Network("PixelCNN, 3x32x32", PixelCNN, (3, 32, 32))
GATED = Network("Gated PixelCNN, 1x28x28", lambda: GatedPixelCNN(1), (1, 28, 28))
ROW_LSTM = Network("Row LSTM, 3x32x32", lambda: PixelRNN("row_lstm"), (3, 32, 32))
PRIOR = Network(
    "Gated PixelCNN of 128 channels, 15 layers, 1x32x32",
    lambda: GatedPixelCNN(1, 128, (1,) * 15),
    (1, 32, 32),
)
SMALL = Network("PixelCNN of 32 channels, 3 blocks, 1x28x28", lambda: PixelCNN(1, 32, 3), (1, 28, 28))
DIAGONAL = Network("Diagonal BiLSTM, 3x32x32", lambda: PixelRNN("diagonal_bilstm"), (3, 32, 32))


class Refused(Exception):
    """The runtime can't serve a network, and says why."""


class Planned:
    """In place of a GPU's kernels, for a runtime that only plans: as many clusters run as there are multiprocessors
    for."""

    def get(self, instance: Instance) -> Planned:
        return self

    def clusters_at_once(self, how: Launch) -> int:
        return sys.maxsize

    def launch(self, how: Launch, parameters: bytes, stream: int) -> None:
        raise AssertionError("it only plans")


def needed_compiler() -> Compiler:
    found = found_compiler()
    if found is None:
        raise RuntimeError("there is no compiler of kernels: pip install nvidia-cuda-nvrtc")
    return found


class Counts(NamedTuple):
    """Of a run. l2_bytes: that a block asks of L2; forbidden: instructions executed that are generic accesses, local
    accesses or begin integer divisions."""

    cycles: float
    l2_bytes: float
    forbidden: int


def counts(run: Run) -> Counts:
    forbidden = run.generic_accesses + run.local_accesses + run.integer_divisions
    return Counts(run.cycles, run.timed.l2_bytes, forbidden)


@dataclass(frozen=True)
class Step:
    """What a sweep of a batch takes, of which one block was simulated. cycles: of a column step; start: until the first
    begins, of the runs; steps: column steps of the sweep; turns: how often it is done for an image; blocks: at once;
    waves: how many blocks a multiprocessor has one after the other; moved_bytes: that a block's step asks of L2,
    weights apart; forbidden: as in ``Counts``; run: MANY column steps, unless what they take was known.
    """

    cycles: float
    start: float
    steps: int
    turns: int
    blocks: int
    waves: int
    moved_bytes: float
    forbidden: float
    run: Run | None

    def milliseconds(self, rates: Rates) -> float:
        """Of the whole batch: the start and the steady step times all column steps, ramps included: each of them
        computes all sites, whether they are in the grid or not. Values of all blocks pass DRAM, weights stay in L2."""
        from_dram = self.blocks * self.moved_bytes / rates.dram_bytes * rates.clock * 1e9
        steady = self.steps * max(self.cycles, from_dram)
        return rates.milliseconds(self.waves * self.turns * (self.start + steady))


@dataclass
class ColumnSteps:
    """Simulates them. Cubins go to the folder; sources: the kernels', by name; precision: as for ``Sampler``; known:
    what runs take, by a fingerprint of all that they are made of. They are not simulated; those that are join them."""

    arch: str
    folder: Path
    sources: Mapping[str, str] = field(default_factory=sources)
    blocks: int = max(CLUSTERS)  # that may share their images, at most
    precision: Precision = "bf16"
    known: dict[str, Counts] = field(default_factory=dict)
    _runtimes: dict[str, CudaRuntime] = field(default_factory=dict)
    _kernels: dict[Instance, Kernel] = field(default_factory=dict)
    _runs: dict[tuple[str, Shape, float, int], tuple[Counts, Counts, Run | None]] = field(
        default_factory=dict
    )
    _others: dict[int, ColumnSteps] = field(default_factory=dict)

    def with_clusters_of(self, blocks: int) -> ColumnSteps:
        """The same, if at most so many blocks share their images (1: none do)."""
        self._others.setdefault(self.blocks, self)
        if blocks not in self._others:
            self._others[blocks] = replace(self, blocks=blocks, _runtimes={}, _runs={})
        return self._others[blocks]

    @property
    def largest_cluster(self) -> int:
        """That the architecture has."""
        major, minor = divmod(int(self.arch), 10)
        return largest_cluster((major, minor))

    @property
    def rates(self) -> Rates:
        return RATES[self.arch]

    def milliseconds(self, network: Network, images: int) -> float:
        """Of a batch: all of its sweeps."""
        return sum(step.milliseconds(self.rates) for step in self.of_sweeps(network, images))

    def of_sweeps(self, network: Network, images: int) -> list[Step]:
        sweeps = len(self.runtime(network).facts(images)["sweeps"])
        return [self.step(network, images, sweep) for sweep in range(sweeps)]

    def step(self, network: Network, images: int, sweep: int = 0) -> Step:
        """Of a batch. Raises Refused where the runtime can't serve the network; RuntimeError where the kernel does not
        compile, or does not do what the planner wants."""
        runtime = self.runtime(network)
        shape = runtime.shape(images)
        facts = runtime.sampler(shape).facts
        blocks = -(-images // shape.images) * shape.cluster
        waves = -(-blocks // self.rates.multiprocessors)
        at_once = min(blocks, self.rates.multiprocessors)
        of_sweep = facts["sweeps"][sweep]
        few, many, run = self._simulated(network, shape, self.l2_rate(at_once), sweep)
        cycles, l2_bytes, forbidden = ((b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True))
        if l2_bytes < of_sweep["weight_bytes"]:
            raise RuntimeError(
                f"a column step reads {l2_bytes:,.0f} bytes, fewer than its {of_sweep['weight_bytes']:,} of weights: "
                "have the sources changed since planning?"
            )
        return Step(
            cycles=cycles,
            start=few.cycles - FEW * cycles,
            steps=of_sweep["steps"],
            turns=facts["turns"],
            blocks=at_once,
            waves=waves,
            moved_bytes=l2_bytes - of_sweep["weight_bytes"],
            forbidden=forbidden,
            run=run,
        )

    def l2_rate(self, blocks: int) -> float:
        """Bytes a cycle that L2 gives each of so many blocks: what one gets alone, as long as all of them together
        don't exceed what all multiprocessors get."""
        all_together = self.rates.multiprocessors * self.rates.l2_bytes_shared
        return min(self.rates.l2_bytes, all_together / blocks)

    def runtime(self, network: Network) -> CudaRuntime:
        """For this architecture. Raises Refused where it can't serve the network."""
        if network.name not in self._runtimes:
            say(f"{network.name}: planning")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = WrappedModel(network.model().eval(), network.shape)
            found = compiler.compile_model(model)
            (kilobytes,) = (kb for kb, archs in SHARED.items() if self.arch in archs)
            blocks = min(self.blocks, self.largest_cluster)
            limits = Limits(kilobytes << 10, self.rates.multiprocessors, blocks)
            try:
                self._runtimes[network.name] = CudaRuntime(
                    found.program_for("cuda"), found.conditions, model.head, self.precision, Planned(), limits
                )
            except RuntimeError as error:
                raise Refused(str(error)) from error
        return self._runtimes[network.name]

    def kernel(self, network: Network, images: int) -> Kernel:
        """That a batch is sampled by."""
        runtime = self.runtime(network)
        return self._kernel(runtime.math, runtime.facts(images))

    def _kernel(self, math: str, facts: dict[str, Any]) -> Kernel:
        instance = Instance(math, facts["tiles"], facts["cluster"])
        if instance not in self._kernels:
            say(f"compiling the kernel {instance}")
            options = [*instance.options, "-lineinfo"]
            cubin = self.folder / f"{instance}-sm_{self.arch}.cubin"
            cubin.write_bytes(needed_compiler().compiled(self.sources, int(self.arch), options))
            self._kernels[instance] = Kernel.load(cubin, NAME.decode())
        return self._kernels[instance]

    def _simulated(
        self, network: Network, shape: Shape, l2_rate: float, sweep: int
    ) -> tuple[Counts, Counts, Run | None]:
        """FEW column steps of a cluster's sweep, and MANY, from the middle of an image on; and the run of these."""
        key = (network.name, shape, l2_rate, sweep)
        if key not in self._runs:
            facts = self.runtime(network).sampler(shape).facts
            of_sweep = facts["sweeps"][sweep]
            before = max(0, min(of_sweep["steps"] // 2, of_sweep["steps"] - MANY))
            where = sweep, facts["turns"] // 2, of_sweep["first_step"] + of_sweep["columns"] * before
            few, _ = self._run(network, shape, l2_rate, where, FEW)
            self._runs[key] = few, *self._run(network, shape, l2_rate, where, MANY)
        return self._runs[key]

    def _run(
        self,
        network: Network,
        shape: Shape,
        l2_rate: float,
        where: tuple[int, int, int],
        steps: int,
    ) -> tuple[Counts, Run | None]:
        """where: the sweep, the row and the first column step. No run where what it takes is known."""
        runtime = self.runtime(network)
        sampler, images, program = runtime.sampler(shape), shape.images, described(runtime)
        compiler = needed_compiler()
        kernel = [
            self.arch,
            *device_sources(self.sources),
            str(compiler),
            compiler.identity,
            *other_sources(),
        ]
        made_of = fingerprint(*program, *shape, *where, steps, l2_rate, self.rates, sampler.facts, *kernel)
        if made_of in self.known:
            return self.known[made_of], None
        memory, sub_pixels = Memory(), images * int(np.prod(network.shape))
        job = Job(
            images=images,
            values=memory.place(4 * sub_pixels),
            noise=memory.place(np.random.default_rng(0).random(sub_pixels)),
            conditions=[],
            options=SamplingOptions(),
        )
        parameters = sampler.parameters(
            job,
            constants=memory.place(sampler.constants()),
            workspace=memory.place(sampler.workspace_bytes(images)),
            error=memory.place(np.array([-1])),
            part=(*where, steps),
        )
        begun = time.monotonic()
        run = simulate(
            self._kernel(runtime.math, sampler.facts),
            parameters,
            memory,
            threads=sampler.facts["threads"],
            rates=self.rates,
            shared_bytes=sampler.facts["shared_bytes"],
            l2_rate=l2_rate,
            blocks=(shape.cluster, 1, 1),
            cluster=shape.cluster,
        )
        of_what = "block" if shape.cluster == 1 else f"cluster of {shape.cluster} blocks"
        say(
            f"{network.name}: {steps} column steps, {images} image{'s' * (images > 1)} "
            f"a {of_what}, simulated in {time.monotonic() - begun:.0f} s"
        )
        self.known[made_of] = counts(run)
        return self.known[made_of], run


def described(runtime: CudaRuntime) -> list[object]:
    """What the planner gets: of the program, what is not a field's default, and its tensors, whose place is in it."""
    tensors = runtime._borrowed
    number = {tensor.data_ptr(): f"tensor {k}" for k, tensor in enumerate(tensors)}

    def text(x: Any) -> Any:
        if isinstance(x, list):
            return [*map(text, x)]
        if not dataclasses.is_dataclass(x):
            return number.get(x, x) if isinstance(x, int) else x
        values = [(f, getattr(x, f.name)) for f in dataclasses.fields(x)]
        return {f.name: text(value) for f, value in values if value != f.default}

    return [runtime.math, runtime._limits, text(runtime._description), *tensors]


def device_sources(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Without what only the host needs of the tables, which it shares with the kernels."""
    return sorted((name, text.split("#ifndef __CUDACC_RTC__  //")[0]) for name, text in texts.items())


@cache
def other_sources() -> list[object]:
    """The planner's, the simulator's, and of what calls it. (What csrc/program.h changes, a plan's facts show.)"""
    csrc = Path(__file__).parents[1] / "csrc"
    files = [
        *Path(sass_simulator.__file__).parent.glob("*.py"),
        *csrc.glob("cuda/*.h"),
        *csrc.glob("cuda/plan/*"),
    ]
    texts = [file.read_bytes() for file in sorted([*files, csrc / "wavefront.h"])]
    return [inspect.getsource(ColumnSteps._run), inspect.getsource(ColumnSteps._kernel), *texts]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
