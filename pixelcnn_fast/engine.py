"""A model made ready for sampling: what its runtimes share. It never changes, so other weights make another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.parts import are_equal, attributes, named_tensors, settings, structure
from pixelcnn_fast.capture.private_copy import eagerly, unwrapped
from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.compiler import Compiled, compiled, settle
from pixelcnn_fast.errors import PixelCNNFastError, RuntimeUnavailable, advising
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.perturbation import Observed, observed
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
WAY_OUT = "runtime='reference' samples any causal model, with one full forward per draw"


@dataclass(frozen=True)
class Engine:
    """weights: the model's parameters and buffers, by name, none once it was pickled; structure, settings: of its
    module; attributes: tensors that it has as plain attributes, by path, which the program read; preferred: what the
    runtime 'auto' stands for; compiled: the model's program, or observed: what is known of a model without one."""

    model: WrappedModel
    weights: Mapping[str, Tensor]
    structure: tuple[object, ...]
    settings: Sequence[tuple[str, str, object]]
    attributes: Mapping[str, Tensor]
    preferred: RuntimeName = "auto"
    compiled: Compiled | None = None
    observed: Observed | None = None
    _runtimes: dict[RuntimeName, Runtime] = field(default_factory=dict)
    # Of runtimes that failed here, and why; and what a user has been told of that.
    _refusals: dict[str, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    @classmethod
    def built(cls, model: WrappedModel, precision: Precision, runtime: RuntimeName) -> Engine:
        """Captures the model, or with the runtime 'reference' tests whether it is causal. ``Sampler`` says what it
        raises."""
        weights = {name: x.detach() for name, x in named_tensors(model.module)}
        kind = structure(model.module, weights), settings(model.module)
        if model.kept.is_borrowed:
            weights = {name: x.clone() for name, x in weights.items()}
        plain = attributes(model.module)
        there = {name: x.detach().clone() for name, x in plain.items()}
        if runtime == "reference":
            _check_not_narrowed(precision)
            return cls(_own(model, weights), weights, *kind, {}, runtime, observed=observed(model))
        with advising(WAY_OUT):
            program = compiled(model, precision)
        assert program.weights is not None
        constants = program.weights.constants
        read = {name: x for name, x in there.items() if _is_among(plain[name], x, constants)}
        if model.kept.is_borrowed and len(constants) > len(read):  # its first call may have kept something
            read[""] = torch.empty(0)  # which no model has
        return cls(_own(model, weights), weights, *kind, read, runtime, compiled=program)

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

    def difference(self, model: nn.Module, present: Mapping[str, Tensor]) -> str | None:
        """How a model differs from that which it was built from in more than its numbers, if it does. present: its
        parameters and buffers."""
        if present.keys() != self.weights.keys() or any(
            x.shape != self.weights[name].shape for name, x in present.items()
        ):
            return "the model's parameters and buffers have other names or shapes now"
        if structure(model, present) != self.structure:
            return "the model has other modules now, or other weights that lie in the same memory"
        return None

    def having(self, model: nn.Module, known: nn.Module | None) -> Engine | str:
        """The same with the present weights of a model, or why only a new one can have them. known: the model whose
        weights it has, if it is there."""
        present = dict(named_tensors(model))
        if (why := self._why_not_having(model, present, known)) is not None:
            return why
        taken = _Taken(present, self.weights)
        program = None if self.compiled is None else self.compiled.having(taken)
        if program is None and self.compiled is not None:
            return "a weight that was zero, or that the forward reads as a number, is another now"
        weights = {name: taken[name] for name in present}
        plain = attributes(model) if self.model.kept.has_attributes else {}
        tensors = {**weights, **{name: x.detach().clone() for name, x in plain.items()}}
        model_now = self.model.having(tensors)
        return replace(self, model=model_now, weights=weights, compiled=program, _runtimes={}, _refusals={})

    def _why_not_having(
        self, model: nn.Module, present: Mapping[str, Tensor], known: nn.Module | None
    ) -> str | None:
        """What can be seen before the weights are evaluated."""
        if not self.weights:
            return "it is a copy, or comes out of a pickle"
        if self.model.kept.borrowed not in (None, unwrapped(model)):
            return "its model can't be copied"
        if self.compiled is not None and self.compiled.program.branches:
            return "the model reads numbers off the image, and may read others now"
        if (difference := self.difference(model, present)) is not None:
            return difference
        if known is not unwrapped(model) and settings(model) != self.settings:
            return "that model has other settings"
        if any(
            (x.dtype, x.device) != (self.weights[name].dtype, self.weights[name].device)
            for name, x in present.items()
        ):
            return "the model has another dtype or device now"
        if "" in self.attributes:
            return "it can't be copied, and its first call may have kept something"
        there = attributes(model) if self.attributes else {}
        if not all(name in there and are_equal(x, there[name]) for name, x in self.attributes.items()):
            return "a tensor that the model has as a plain attribute is another now"
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Without the runtimes, which are built again when they are asked for."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        none: dict[str, Any] = {"weights": {}, "structure": (), "settings": (), "attributes": {}}
        return {**kept, **none, "_runtimes": {}, "_refusals": {}, "_told": set()}

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
            compiled(self.model)
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
            if whole is not None:
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


def _own(model: WrappedModel, weights: Mapping[str, Tensor]) -> WrappedModel:
    """With weights of its own, if the module can't be copied."""
    return model.having(weights) if model.kept.is_borrowed else model


def _is_among(x: Tensor, before: Tensor, constants: Sequence[Tensor]) -> bool:
    """Whether a tensor, which was another ``before`` the model ran, is one of the constants."""
    storage = x.untyped_storage().data_ptr()
    return any(c.untyped_storage().data_ptr() == storage or are_equal(c, before) for c in constants)


class _Taken(dict[str, Tensor]):
    """Copies of a model's tensors, each made when it is first asked for, and soon read, while it is in the caches."""

    def __init__(self, present: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        self._present, self._before = present, before

    def __missing__(self, name: str) -> Tensor:
        """What it was before, if that is the same, as for masks; else a copy."""
        x, before = self._present[name], self._before[name]
        self[name] = found = before if not x.requires_grad and are_equal(x, before) else x.detach().clone()
        return found


def _check_not_narrowed(precision: Precision) -> None:
    if precision != "same":
        raise ValueError("runtime 'reference' runs the model itself, whose weights are not bf16; use 'eager'")
