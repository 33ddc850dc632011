"""A model made ready for sampling, with its runtimes; other weights make another engine."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor, nn

from pixelcnn_fast.capture.record.transcript import transcript
from pixelcnn_fast.check.conditioning import verify_conditioning
from pixelcnn_fast.check.perturbation import PIXELS_TESTED_AGAIN, Observed, observed
from pixelcnn_fast.compiler import Compiled, compile_model
from pixelcnn_fast.cores import as_cores_allow
from pixelcnn_fast.errors import PixelCNNFastError, RuntimeUnavailable, advising
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.refresh.behaviour import Behaviour
from pixelcnn_fast.refresh.snapshot import Snapshot
from pixelcnn_fast.runtimes import ON_CPU, RUNTIMES, Precision, RuntimeName
from pixelcnn_fast.runtimes.cpu import CpuRuntime, why_not_cpu
from pixelcnn_fast.runtimes.cuda import CudaRuntime, why_not_cuda
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Runtime
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import described
from pixelcnn_fast.user_model.private_copy import eagerly
from pixelcnn_fast.user_model.random_state import random_state_kept
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

BATCH_BYTES = 128 << 20  # of workspace for the default batch
# Beyond these, nothing gets faster, and an interrupt loses more.
LARGEST_BATCH: dict[type[Runtime], int] = {EagerRuntime: 64, CpuRuntime: 32, ReferenceRuntime: 4}
LARGEST_ON_GPU = 64
REFERENCE_PIXELS = LARGEST_BATCH[ReferenceRuntime] * 28 * 28  # of a batch: more images if they are smaller
PROBED = 64  # parameters
WAY_OUT = "runtime='reference' samples any causal model, with one full forward per draw"


@dataclass(frozen=True)
class Engine:
    """A model that is ready for sampling. Nothing changes but the fields that begin with an underscore.

    snapshot: the model as it was taken; preferred: what the runtime 'auto' stands for; compiled: its program;
    observed: what is known of a model without one.
    """

    snapshot: Snapshot
    preferred: RuntimeName = "auto"
    compiled: Compiled | None = None
    observed: Observed | None = None
    _runtimes: dict[RuntimeName, Runtime] = field(default_factory=dict)
    # Of runtimes that failed here, and why; and what a user has been told of that.
    _refusals: dict[str, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _fingerprint: str | None = None  # once it was pickled

    @classmethod
    def built(cls, model: WrappedModel, precision: Precision, runtime: RuntimeName) -> Engine:
        """Captures the model, or tests its causality for 'reference'. Raises what ``Sampler`` raises."""
        held, weights = model.contents()  # before its forward, which may write into them
        if runtime == "reference":
            _check_not_narrowed(precision)
            compiled, seen = None, observed(model)
            with model.in_use():
                behaviour = Behaviour.without_program(model)
        else:
            with advising(WAY_OUT):
                compiled, seen = compile_model(model, precision), None
            assert compiled.behaviour is not None
            behaviour = compiled.behaviour
        return cls(Snapshot.taken(model, behaviour, held, weights), runtime, compiled, seen)

    @property
    def model(self) -> WrappedModel:
        """What the runtime 'reference' runs."""
        return self.snapshot.model

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(D * uniforms, H, W) of the noise that an image is drawn with."""
        head, (channels, height, width) = self.model.head, self.model.shape
        return head.uniforms * head.distributions(channels), height, width

    def require_compiled(self) -> Compiled:
        """The model's program. Raises RuntimeError, saying why, if there is none."""
        if self.compiled is None:
            raise RuntimeError(f"there is no program: {self.why_no_program}")
        return self.compiled

    @property
    def listing(self) -> ProgramListing:
        """The program that the runtime 'auto' executes. Raises RuntimeError if there is none."""
        return self.require_compiled().listing(self.auto)

    @property
    def precision(self) -> Precision:
        return "same" if self.compiled is None else self.compiled.precision

    def with_weights(self, module: nn.Module) -> Engine | str:
        """The engine with a model's present weights, or why it must be built anew."""
        present = self.snapshot.follow(module)
        if isinstance(present, str):
            return present
        compiled, before = None, self.compiled
        # The program copies weights as it reads them; the snapshot below keeps the same copies.
        if before is not None:
            compiled = before.with_weights(present.weights)
            if compiled is None and present.does_the_same_with_other_numbers():
                compiled = before.with_weights(present.weights, does_the_same=True)
            if compiled is None:
                return "a weight that was zero, or that the forward reads as a number, is another now"
        return replace(self, snapshot=present.snapshot(), compiled=compiled, _runtimes={}, _refusals={})

    def tested(self) -> Engine:
        """The engine, with a model without a program tested again at some pixels. Raises NotCausal."""
        if self.observed is None:
            return self
        with random_state_kept(self.model.device), as_cores_allow():
            return replace(self, observed=observed(self.model, PIXELS_TESTED_AGAIN))

    def __getstate__(self) -> dict[str, Any]:
        """Without runtimes, which are built when needed, and what only this process can use."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        snapshot = Snapshot(self.model, Behaviour(self.model), {}, {})  # nothing can be compared with it
        none = {"snapshot": snapshot, "_runtimes": {}, "_refusals": {}, "_told": set()}
        return {**kept, **none, "_fingerprint": self.fingerprint()}

    def probe(self) -> list[float] | None:
        """Some of the parameters for one fixed image; None if the model did not travel in a pickle."""
        if not self.model.held.is_there:
            return None
        with self.model.in_use(), eagerly:
            found = self.model.distribution_parameters(*self.model.example(7, 1)).double().flatten()
        return found[:: max(1, len(found) // PROBED)][:PROBED].tolist()

    def fingerprint(self) -> str:
        """A hash of each tensor that the forward read, and of what it does with them."""
        if self._fingerprint is not None:
            return self._fingerprint
        snapshot, behaviour = self.snapshot, self.snapshot.behaviour
        decisive: list[object] = [self.precision, *self.model.identity()]
        with self.model.in_use():
            recording, others = behaviour.steady_recording(), behaviour.decisive_others
        if recording is None or others is None:  # what it does with other examples is not known
            decisive += described(snapshot.settings)
            decisive += chain.from_iterable(sorted(snapshot.weights.items()))
        read: dict[str, Tensor] = {}
        before = {x.data_ptr(): y for x, y in zip(behaviour.outside, snapshot.outside, strict=False)}
        for each in [*filter(None, [recording]), *(others or ())]:
            decisive += transcript(each)
            read |= {name: leaf.tensor for leaf in each.read().values() for name, _ in leaf.parameters}
            decisive += (before.get(x.data_ptr(), x) for x in each.unnamed())
        return fingerprint(*decisive, *(snapshot.weights.get(name, x) for name, x in read.items()))

    # -- runtimes

    def prepared(
        self, name: RuntimeName, n: int = 0, batch_size: int | None = None
    ) -> tuple[Runtime, list[slice]]:
        """-> (the runtime of that name, or an available one for 'auto', ready to draw n
        images; the slice of these that each batch has). Raises ValueError or RuntimeError,
        saying why."""
        check_choice("runtime", name, RUNTIMES)
        chosen = self.auto if name == "auto" else name
        try:
            if chosen not in self._runtimes:
                self._runtimes[chosen] = self._build(chosen)
            runtime = self._runtimes[chosen]
            parts = self.batches(n, runtime, batch_size) if n else []
            for size in {part.stop - part.start for part in parts}:
                runtime.prepare(size)
        except RuntimeUnavailable as error:
            if name != "auto" or self.preferred != "auto":
                raise
            self._refusals[error.runtime] = error.why
            return self.prepared(name, n, batch_size)
        return runtime, parts

    @property
    def auto(self) -> RuntimeName:
        """The name of the runtime that 'auto' stands for."""
        if self.preferred != "auto":
            return self.preferred
        program, head = self.require_compiled().program, self.model.head
        if why_not_cpu(program, head) is None and self.precision in ON_CPU:
            return "cpu"
        if (why := self._refusals.get("cuda") or why_not_cuda(program, head)) is None:
            return "cuda"
        if self._is_on_gpu and why not in self._told:
            self._told.add(why)
            tell(f"'auto' takes the runtime 'eager', since 'cuda' can't sample this: {why}")
        return "eager"

    @property
    def _is_on_gpu(self) -> bool:
        return self.require_compiled().program.device.type == "cuda"

    def _build(self, name: RuntimeName) -> Runtime:
        if self.compiled is None:
            if name != "reference":
                raise RuntimeError(f"runtime {name!r} is not available: {self.why_no_program}")
            assert self.observed is not None
            return ReferenceRuntime(self.model, self.observed.draws)
        found, head, precision = self.compiled, self.model.head, self.precision
        if name == "cuda":
            return CudaRuntime(found.program_for(name), found.conditions, head, precision)
        if name == "cpu" and precision not in ON_CPU:
            raise ValueError(f"precision={precision!r} is for runtime 'cuda', not for {name!r}")
        if name == "cpu":
            return CpuRuntime(found.program_for(name), found.conditions, head, precision)
        if name == "eager":
            return EagerRuntime(found.program_for(name), found.conditions, head)
        _check_not_narrowed(precision)
        self.model.held.check_there()
        return ReferenceRuntime(self.model, draws=len(found.program.outputs))

    @cached_property
    def why_no_program(self) -> str:
        try:
            compile_model(copy.copy(self.model))
        except PixelCNNFastError as error:
            return f"the sampler was built with runtime='reference', and the model can't be captured: {error}"
        return "the sampler was built with runtime='reference'; the model can be captured, so leave that out"

    # -- running

    def verify_conditioning(self, given: Conditioning, parts: list[slice]) -> None:
        """Raises Unsupported if, for what is given, the model does something else than its program."""
        if self.compiled is None:
            return
        conditions, whole = self.compiled.conditions, self.compiled.whole
        with self.model.in_use(), eagerly, advising(WAY_OUT):
            for part in parts if conditions.guards else ():
                conditions([], given.part(part), part.stop - part.start)
            if whole is not None and conditions.read_by_python:
                with random_state_kept(self.model.device):
                    verify_conditioning(whole, conditions, self.model, given)

    def batches(self, n: int, runtime: Runtime, size: int | None) -> list[slice]:
        """n images in batches of this size; by default of equal sizes that fit into memory,
        and small enough that an interrupted run has finished some."""
        if size is None:
            if isinstance(runtime, CudaRuntime):
                largest = runtime.largest_batch()
            else:
                each = self.observed.output_bytes if self.observed else self._workspace_bytes
                most = LARGEST_BATCH[type(runtime)] if self.model.device.type == "cpu" else LARGEST_ON_GPU
                if isinstance(runtime, ReferenceRuntime):
                    height, width = self.model.shape[1:]
                    small = REFERENCE_PIXELS // (height * width)
                    # Of large images, there are always several batches: they take long.
                    most = small if small > most else min(most, max(1, n // 2))
                largest = max(1, min(most, BATCH_BYTES // each))
                largest = runtime.together(min(n, largest))
            size = max(1, math.ceil(n / max(1, math.ceil(n / largest))))
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @cached_property
    def _workspace_bytes(self) -> int:
        return self.listing.workspace_bytes


def _check_not_narrowed(precision: Precision) -> None:
    if precision != "same":
        raise ValueError("runtime 'reference' runs the model itself, whose weights are not bf16; use 'eager'")
