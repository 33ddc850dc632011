"""A model made ready for sampling: what its runtimes share. It never changes, so other weights make another one."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor, nn

from pixelcnn_fast.capture.generators import undisturbed
from pixelcnn_fast.capture.parts import Held, are_same, described, unwrapped
from pixelcnn_fast.capture.private_copy import copy_or_why_not, drifting, eagerly, in_eval_mode
from pixelcnn_fast.capture.tensors import are_as_good_as_equal, are_equal, overlapping
from pixelcnn_fast.capture.transcript import transcript
from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.compiler import Compiled, compiled, settle
from pixelcnn_fast.cores import as_cores_allow
from pixelcnn_fast.errors import PixelCNNFastError, RuntimeUnavailable, advising
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.perturbation import SOME, Observed, observed
from pixelcnn_fast.program.conditions import Given
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.runtimes import RUNTIMES, Precision, RuntimeName
from pixelcnn_fast.runtimes.cpu import CpuRuntime, why_not_cpu
from pixelcnn_fast.runtimes.cuda import CudaRuntime, why_not_cuda
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Runtime
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from pixelcnn_fast.telling import tell

BATCH_BYTES = 64 << 20  # the default batch is as large as this much workspace allows
# Beyond these, nothing gets faster, and an interrupt loses more.
LARGEST_BATCH: dict[type[Runtime], int] = {EagerRuntime: 64, CpuRuntime: 32, ReferenceRuntime: 4}
LARGEST_ON_GPU = 64
REFERENCE_PIXELS = LARGEST_BATCH[ReferenceRuntime] * 28 * 28  # of a batch: more images if they are smaller
PROBED = 64  # parameters
WAY_OUT = "runtime='reference' samples any causal model, with one full forward per draw"


@dataclass(frozen=True)
class Engine:
    """weights: the tensors that the model has and its forward reads, by path; none once it was pickled; values: what
    else it has, by path; outside: copies of the tensors that its forward reads and it does not have; overlaps: which of
    the weights share memory, with what; sources: parameters that weights may be made of in eval mode; preferred: what
    the runtime 'auto' stands for; compiled: the model's program, or observed: what is known of a model without one."""

    model: WrappedModel
    weights: Mapping[str, Tensor]
    values: Mapping[str, object]
    outside: Sequence[Tensor] = ()
    overlaps: Sequence[tuple[str, str]] = ()
    sources: Mapping[str, Tensor] = field(default_factory=dict)
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
        """Captures the model, or with the runtime 'reference' tests whether it is causal. ``Sampler`` says what it
        raises."""
        with model.in_use():
            held = Held(model.module)
            weights = {
                path: x.detach().clone() if ":" in path or model.kept.is_borrowed else x.detach()
                for path, x in held.tensors.items()
            }
        if runtime == "reference":
            _check_not_narrowed(precision)
            program, seen = None, observed(model)
            with model.in_use():
                model.record()
        else:
            with advising(WAY_OUT):
                program, seen = compiled(model, precision), None
        if model.kept.is_borrowed:
            with model.in_use():
                _ = model.recorded_others  # while it is what it was
        outside = [*model.outside]
        if model.recording is not None:
            read = model.read(by_python=True)
            is_known = model.decisive_others is not None
            weights = {
                path: x for path, x in weights.items() if path in model.paths and (path in read or not is_known)
            }
            # What its first call has kept, if it can't be copied, it did not have before.
            outside += [leaf.tensor for name, leaf in read.items() if name not in weights]
        if not model.kept.is_borrowed:
            model.outside = outside
        overlaps, sources = _between(model, model.overlaps, weights), {}
        if model.drifting:
            sources = _parameters(held, weights)
        found = [x.detach().clone() for x in outside]
        if model.outside:
            each = ", ".join(
                f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in model.outside[:4]
            )
            tell(
                f"the model's forward reads what the model does not hold, as a global variable ({each}): refresh() "
                "and the warning of changes see whether that is written into, and not whether it is replaced. Make it "
                "a buffer, by register_buffer, or an attribute of the model"
            )
        return cls(_own(model, weights), weights, held.values, found, overlaps, sources, runtime, program, seen)

    @property
    def captured(self) -> Compiled:
        """Raises RuntimeError if the model was not captured."""
        if self.compiled is None:
            raise RuntimeError(f"there is no program: {self.why_no_program}")
        return self.compiled

    @property
    def listing(self) -> ProgramListing:
        """The program of what 'auto' stands for. Raises RuntimeError if the model was not captured."""
        return self.captured.listing(self.auto)

    @property
    def precision(self) -> Precision:
        return "same" if self.compiled is None else self.compiled.precision

    def is_still(self, model: nn.Module) -> bool:
        """Whether a model is what it was when it was taken: what it holds, or else what it does."""
        seen, now = self._seen(model)
        return (
            self.weights.keys() <= now.tensors.keys()
            and self._overlaps_alike(now)
            and all(map(are_equal, self.model.outside, self.outside))
            and (different := self._different(now.tensors)) <= self._read_as_numbers
            and (
                (are_same(now.values, self.values) and not different and now.tensors.keys() <= self.model.paths)
                or self._does_the_same(model, seen) is not None
            )
        )

    def _overlaps_alike(self, now: Held) -> bool:
        """Whether the same tensors share memory as before, but for those that are gone."""
        there = [pair for pair in self.overlaps if now.tensors.keys() >= {*pair}]
        return _between(self.model, overlapping(now.tensors), self.weights) == there

    def _different(self, present: Mapping[str, Tensor]) -> set[str]:
        """Which weights are others now. Those that were merged and taken apart may be rounded, if what they are made of
        is the same."""
        found = {path for path, x in self.weights.items() if not are_equal(present[path], x)}
        if not found or not self.sources:
            return found
        made_of = ((path, x) for path, x in self.sources.items() if path not in self.model.drifting)
        if not all(path in present and are_equal(present[path], x) for path, x in made_of):
            return found
        return {
            path
            for path in found
            if path not in self.model.drifting or not are_as_good_as_equal(present[path], self.weights[path])
        }

    @cached_property
    def _read_as_numbers(self) -> set[str]:
        """The weights that the forward reads as nothing else."""
        return set() if self.model.recording is None else self.weights.keys() - self.model.read().keys()

    def _seen(self, model: nn.Module) -> tuple[nn.Module, Held]:
        """A model as it is in eval mode, in which one that can't be copied is already; and what it holds."""
        return (model, Held(model)) if self.model.kept.is_borrowed else in_eval_mode(model)

    def _does_the_same(
        self, model: nn.Module, seen: nn.Module, has_values: bool = False
    ) -> WrappedModel | None:
        """The model as it is now, if its forward does what it did. seen: the same in eval mode; has_values: whether all
        but its tensors is the same."""
        is_copied = seen is not model or self.model.kept.is_borrowed
        copied = seen if is_copied else copy_or_why_not(model, is_apart=False)
        if isinstance(copied, str):
            return None
        present = self.model.run_by(copied)
        return present if self.model.does_the_same(copied, self.weights, has_values) else None

    def having(self, model: nn.Module) -> Engine | str:
        """The same with the present weights of a model, or why only a new one can have them."""
        if not self.values:
            return "it is a copy, or comes out of a pickle"
        if self.model.kept.borrowed not in (None, unwrapped(model)):
            return "its model can't be copied"
        seen, now = self._seen(model)
        if seen is not model and ".modes" not in self.model.told:
            self.model.told.add(".modes")
            tell(
                f"parts of {type(unwrapped(model)).__name__} may set other weights in train() or eval(), so each "
                "refresh() copies the model, which takes longer"
            )
        if (why := self._why_not_having(now)) is not None:
            return why
        has_values = are_same(now.values, self.values)
        branches = self.compiled is None or self.model.branches
        is_guarded = has_values and not branches and now.tensors.keys() <= self.model.paths
        present = None if is_guarded else self._does_the_same(model, seen, has_values)
        if not is_guarded and present is None:
            what = "" if has_values else f": {_differences(now.values, self.values)}"
            return f"the model does something else now{what}"
        if self.compiled is None and any(
            now.tensors.get(a) is not now.tensors.get(b) for a, b in self.overlaps
        ):
            return "weights of the model lie in the same memory"
        taken = _Taken(now.tensors, self.weights)
        program = None if self.compiled is None else self.compiled.having(taken)
        recording = self.model.recording
        if program is None and self.compiled is not None and recording is not None and recording.constants_read:
            present = present or self._does_the_same(model, seen, has_values)
            program = None if present is None else self.compiled.having(taken, does_the_same=True)
        if program is None and self.compiled is not None:
            return "a weight that was zero, or that the forward reads as a number, is another now"
        weights = {path: taken[path] for path in self.weights}
        others: dict[str, Tensor] = {}
        if self.model.recording is None or self.model.may_do_more:  # what else the forward reads is not known
            others = {path: x.detach().clone() for path, x in now.tensors.items() if path not in weights}
        is_another = not has_values and branches and not self.model.kept.is_borrowed
        source = present if is_another and present is not None else self.model
        model_now = source.having({**weights, **others})
        model_now.drifting = drifting(seen, now)
        return replace(
            self,
            model=model_now,
            weights=weights,
            sources=_parameters(now, weights) if model_now.drifting else {},
            values=now.values,
            compiled=program,
            _runtimes={},
            _refusals={},
        )

    def tested(self) -> Engine:
        """The same; without a program, it is tested again, at some pixels, whether the model is causal, and which
        channels are drawn together. Raises NotCausal, as ``observed`` does."""
        if self.observed is None:
            return self
        with undisturbed(self.model.device), as_cores_allow():
            return replace(self, observed=observed(self.model, SOME))

    def _why_not_having(self, now: Held) -> str | None:
        """What can be seen before the weights are evaluated."""
        missing = [path for path in self.weights if path not in now.tensors]
        if missing or any(now.tensors[path].shape != x.shape for path, x in self.weights.items()):
            return "the model's parameters and buffers have other names or shapes now"
        if not self._overlaps_alike(now):
            return "other weights of the model lie in the same memory now"
        present = [(now.tensors[path], x) for path, x in self.weights.items()]
        if any((x.dtype, x.device) != (y.dtype, y.device) for x, y in present):
            return "the model has another dtype or device now"
        if self.model.kept.is_borrowed and self.outside:
            return "it can't be copied, and its first call may have kept something"
        if not all(map(are_equal, self.model.outside, self.outside)):
            return "a tensor that the model reads, and does not have, is another now"
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Without the runtimes, which are built again when they are asked for."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        none: dict[str, Any] = {"weights": {}, "values": {}, "outside": (), "sources": {}}
        none |= {"_runtimes": {}, "_refusals": {}, "_told": set()}
        return {**kept, **none, "model": self.model.without_recording(), "_fingerprint": self.fingerprint()}

    def probe(self) -> list[float] | None:
        """Some of the parameters that the model gives for one fixed image; None if it did not travel in a pickle."""
        if not self.model.kept.is_there:
            return None
        with self.model.in_use(), eagerly:
            found = self.model.parameters(*self.model.example(7, 1)).double().flatten()
        return found[:: max(1, len(found) // PROBED)][:PROBED].tolist()

    def fingerprint(self) -> str:
        """Of what decides the images: the bits of each tensor that the forward read, and what it does with them."""
        if self._fingerprint is not None:
            return self._fingerprint
        decisive: list[object] = [self.precision, *self.model.identity()]
        with self.model.in_use():
            recording, others = self.model.usual(), self.model.decisive_others
        if recording is None or others is None:  # what it does with other examples is not known
            decisive += described(self.values)
            decisive += chain.from_iterable(sorted(self.weights.items()))
        read: dict[str, Tensor] = {}
        before = {x.data_ptr(): y for x, y in zip(self.model.outside, self.outside, strict=False)}
        for each in [*filter(None, [recording]), *(others or ())]:
            decisive += transcript(each)
            read |= {name: leaf.tensor for leaf in each.read().values() for name, _ in leaf.parameters}
            decisive += (before.get(x.data_ptr(), x) for x in each.unnamed())
        return fingerprint(*decisive, *(self.weights.get(name, x) for name, x in read.items()))

    # -- runtimes

    def runtime(self, name: RuntimeName) -> Runtime:
        """The runtime of that name, built when first asked for. Raises ValueError or RuntimeError, saying why."""
        check_choice("runtime", name, RUNTIMES)
        if name != "auto":
            return self._kept(name)
        try:
            return self._kept(self.auto)
        except RuntimeUnavailable as error:
            if self.preferred != "auto":
                raise
            self._refusals[error.runtime] = error.why
            return self.runtime("auto")

    def _kept(self, name: RuntimeName) -> Runtime:
        if name not in self._runtimes:
            self._runtimes[name] = self._build(name)
        return self._runtimes[name]

    def prepared(self, name: RuntimeName, n: int, batch_size: int | None = None) -> tuple[Runtime, list[slice]]:
        """The runtime of that name, ready to draw n images, and their batches. Where what 'auto' stands for turns out
        to be unavailable, this is another runtime."""
        runtime = self.runtime(name)
        parts = self.batches(n, runtime, batch_size)
        try:
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
        program, head = self.captured.program, self.model.head
        if why_not_cpu(program, head) is None and self.precision in ("same", "bf16"):
            return "cpu"
        if (why := self._refusals.get("cuda") or why_not_cuda(program, head)) is None:
            return "cuda"
        if self._is_on_gpu and why not in self._told:
            self._told.add(why)
            tell(f"'auto' takes the runtime 'eager', since 'cuda' can't sample this: {why}")
        return "eager"

    @property
    def _is_on_gpu(self) -> bool:
        return self.captured.program.device.type == "cuda"

    def _build(self, name: RuntimeName) -> Runtime:
        if self.compiled is None:
            if name != "reference":
                raise RuntimeError(f"runtime {name!r} is not available: {self.why_no_program}")
            assert self.observed is not None
            return ReferenceRuntime(self.model, self.observed.draws)
        found, head, precision = self.compiled, self.model.head, self.precision
        if name == "cuda":
            return CudaRuntime(found.program_for(name), found.conditions, head, precision)
        if precision == "fp16" and name == "cpu":
            raise ValueError(f"precision={precision!r} is for runtime 'cuda', not for {name!r}")
        if name == "cpu":
            return CpuRuntime(found.program_for(name), found.conditions, head, precision)
        if name == "eager":
            return EagerRuntime(found.program_for(name), found.conditions, head)
        _check_not_narrowed(precision)
        self.model.kept.check_there()
        return ReferenceRuntime(self.model, draws=len(found.program.outputs))

    @cached_property
    def why_no_program(self) -> str:
        try:
            compiled(copy.copy(self.model))
        except PixelCNNFastError as error:
            return f"the sampler was built with runtime='reference', and the model can't be captured: {error}"
        return "the sampler was built with runtime='reference'; the model can be captured, so leave that out"

    # -- running

    def settle(self, given: Given, parts: list[slice]) -> None:
        """Raises Unsupported for labels or conditions with which the model does something else than its program."""
        if self.compiled is None:
            return
        conditions, whole = self.compiled.conditions, self.compiled.whole
        with self.model.in_use(), eagerly, advising(WAY_OUT):
            for part in parts if conditions.guards else ():
                conditions([], given.part(part), part.stop - part.start)
            if whole is not None and conditions.unsettled:
                settle(whole, conditions, self.model, given)

    def batches(self, n: int, runtime: Runtime, size: int | None) -> list[slice]:
        """n images in batches of this size; by default of equal sizes that fit, and so many that there are finished
        ones if the run is interrupted."""
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
            size = max(1, math.ceil(n / max(1, math.ceil(n / largest))))
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @cached_property
    def _workspace_bytes(self) -> int:
        return self.listing.workspace_bytes


def _between(
    model: WrappedModel, overlaps: Sequence[tuple[str, str]], weights: Container[str]
) -> list[tuple[str, str]]:
    """Those in which a weight and a tensor that the model had from the start share memory."""
    return [(a, b) for a, b in overlaps if {a, b} <= model.paths and (a in weights or b in weights)]


def _parameters(held: Held, but: Container[str]) -> dict[str, Tensor]:
    """Copies of those that are not among some, by path."""
    found = {path: x for path, x in held.tensors.items() if isinstance(x, nn.Parameter) and path not in but}
    return {path: x.detach().clone() for path, x in found.items()}


def _own(model: WrappedModel, weights: Mapping[str, Tensor]) -> WrappedModel:
    """With weights of its own, if the module can't be copied."""
    return model.having(weights) if model.kept.is_borrowed else model


def _differences(now: Mapping[str, object], before: Mapping[str, object]) -> str:
    """What differs first between two modules' values, by path, and how much more does."""
    paths = [path for path in {**before, **now} if now.get(path, now) != before.get(path, now)]
    first = (paths or ["order"])[0].replace(":", ".").strip(".") or "type"
    return f"its {first} is another" + (f", as is what is at {len(paths) - 1} more paths" if paths[1:] else "")


class _Taken(dict[str, Tensor]):
    """Copies of a model's tensors, each made when it is first asked for, and soon read, while it is in the caches."""

    def __init__(self, present: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        self._present, self._before = present, before

    def __missing__(self, name: str) -> Tensor:
        """What it was before, if that is the same, as for masks; else a copy. Raises RuntimeError if it is gone, as
        what was computed in vain may be."""
        if (x := self._present.get(name)) is None:
            raise RuntimeError(f"{name} is gone")
        before = self._before.get(name)
        is_kept = before is not None and not x.requires_grad and are_equal(x, before)
        self[name] = found = before if is_kept and before is not None else x.detach().clone()
        return found


def _check_not_narrowed(precision: Precision) -> None:
    if precision != "same":
        raise ValueError("runtime 'reference' runs the model itself, whose weights are not bf16; use 'eager'")
