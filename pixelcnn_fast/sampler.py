"""The sampler: what a user calls. Captures the model once, then samples, completes or teacher-forces batches."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from pixelcnn_fast.capture.model_arguments import ModelArguments
from pixelcnn_fast.capture.private_copy import eagerly, undisturbed
from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.compiler import compiled, settle, warn_of_what_changes_nothing
from pixelcnn_fast.errors import NonFiniteLogits, PixelCNNFastError, SamplingInterrupted, advising
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.heads import Head
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.perturbation import Observed, observed
from pixelcnn_fast.program.conditions import Given
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.runtimes import PRECISIONS, RUNTIMES, Precision, RuntimeName
from pixelcnn_fast.runtimes.cpu import CpuRuntime, why_not_cpu
from pixelcnn_fast.runtimes.cuda import CudaRuntime, why_not_cuda
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job, Runtime
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from pixelcnn_fast.signatures import takes_arguments_of

BATCH_BYTES = 64 << 20  # the default batch is as large as this much workspace allows
LARGEST_BATCH = 64  # beyond it nothing gets faster, and an interrupt loses more
WAY_OUT = "runtime='reference' samples any causal model, with one full forward per draw"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What ``sample`` and ``complete`` take by keyword, besides the options of drawing."""

    batch_size: int | None = None
    runtime: RuntimeName = "auto"
    progress: bool = False
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: expected 1 or more")


class SamplingArguments(OptionArguments, total=False):
    """All keywords that ``sample`` and ``complete`` share, as type checkers read them."""

    batch_size: int | None
    runtime: RuntimeName
    progress: bool
    condition: Tensor | None


class Sampler:
    """Exact ancestral sampling from a causal model, one pixel after the other, computing only what is new.

    model: an ``nn.Module`` that takes images [N, C, H, W], and labels [N] if it is conditional, and returns what the
    head reads. The sampler works on a copy in eval mode, on every runtime: the model itself is not touched, and after
    more training, build a new sampler. A wrapper such as ``DataParallel`` or ``torch.compile`` is taken off first, and
    autocast around a call is ignored.
    shape: (C, H, W) of the images to sample. head: how the model's output gives the distribution of levels, from
    ``heads``; by default one logit for each of ``levels`` (the model's attribute of that name, else 256), in the only
    layout that fits the output's shape.
    precision: 'same' as the model's, or 'bf16' to store weights in fewer bits (sums stay float32; not exact, but faster
    where memory bandwidth is the limit), or on a GPU also 'fp16' or 'tf32', which its tensor cores multiply.
    conditional: whether the model takes labels; by default, it does if it has ``n_classes`` or if its forward needs
    something besides images and the condition. Labels are 0...K-1, where K is ``n_classes`` or is found by trying.
    image_form: the form in which the model takes images: 'uint8', 'int64', 'codes'
    (int64 [N, H, W], one channel), or in floating point 'unit' (0...1), 'centred' (-1...1) or 'levels' (0...L-1).
    condition_shape: the shape of a further tensor that the model takes, without its batch axis, such as
    (channels, H, W) for a feature map; by default (condition_channels, H, W) if the model has that attribute. The
    tensor is passed as ``condition=`` if the model's forward has such an argument, else last. condition_dtype: the
    dtype in which the model takes it, its own or one of integers, such as torch.long for codes; by default its own
    unless it raises then. output: which part of what the model returns the head reads, if it returns more than one
    tensor: a key, an index, the name of an attribute, or a function that takes what it returns.
    runtime: what 'auto' stands for in ``sample``, ``complete`` and ``logits``; by default the fastest that works. With
    'reference', the model is not captured and may be any causal one, with attention, pooling or strides: each draw is
    a full forward, and other runtimes are refused. Whether it is causal, and which channels are drawn together, is
    then tested on images that differ from some sub-pixel on. That takes about as long as drawing one image, and misses
    a leak that shows in none of them.

    Raises ModelFailed if the model itself raises, saying what it was given; NotCausal if an output sees its own or a
    later pixel, naming the layer and the tap, or both sub-pixels with runtime='reference'; Unsupported for a call that
    has no place in a causal program, naming module and call, or for an output that depends on other images or chance;
    UnknownLayout, with the alternatives, if the output fits no head or several; CaptureMismatch if the program's
    distributions differ from the model's on other random images, conditions and batch sizes.
    """

    @takes_arguments_of(WrappedModel, renamed={"weights": "precision"})
    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        *,
        precision: Precision = "same",
        runtime: RuntimeName = "auto",
        **arguments: Unpack[ModelArguments],
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        check_choice("runtime", runtime, RUNTIMES)
        self._model = WrappedModel(model, shape, **arguments)
        self._preferred = runtime
        self._runtimes: dict[RuntimeName, Runtime] = {}
        self._observed: Observed | None = None  # else there is no program
        with undisturbed(self._model.device):
            if runtime == "reference":
                _check_not_narrowed(precision)
                self._observed = observed(self._model)
            else:
                with advising(WAY_OUT):
                    self._compiled = compiled(self._model, precision)
            warn_of_what_changes_nothing(self._model)
        self.runtime("auto")

    def __getstate__(self) -> dict[str, Any]:
        """Without the runtimes, which are built again when they are asked for."""
        return {**self.__dict__, "_runtimes": {}}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self._model.shape

    @property
    def head(self) -> Head:
        """How the model's output is read."""
        return self._model.head

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(D * uniforms, H, W) of the noise that an image is drawn with."""
        channels, height, width = self.shape
        return self.head.uniforms * self.head.distributions(channels), height, width

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    def fingerprint(self) -> str:
        """SHA-256 of what, besides the arguments of ``sample``, decides the images: the model's weights, how it takes
        images and how it is read. It is the same on every device."""
        precision = "same" if self._observed is not None else self._compiled.precision
        return fingerprint(precision, *self._model.identity())

    @property
    def program(self) -> ProgramListing:
        """What was captured, to print or to ask for its costs. Raises RuntimeError with runtime='reference'."""
        if self._observed is not None:
            raise RuntimeError(f"there is no program: {self._why_no_program}")
        return self._compiled.listing

    # -- what a user calls

    @overload
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: Literal[False] = False,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: Literal[True],
        **arguments: Unpack[SamplingArguments],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: bool,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    @takes_arguments_of(SamplingOptions, RunSettings)
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: bool = False,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws n images -> [n, C, H, W], on the CPU: uint8 (int32 beyond 256 levels), or what the head gives.

        labels: [n] integers for a conditional model. temperature: logits are divided by it; 0 takes the most likely
        level. generator: what the noise is drawn from. noise: u [n, C, H, W] in [0, 1) to use instead (for a head of
        your own, [n, D * uniforms, H, W]); same noise, same image, whatever the batch size. log_probability: return
        (images, ln p [n] float64), where p is the probability of the sub-pixels drawn under the model itself, at
        temperature 1 and with all levels. ``heads.SamplingOptions`` explains further options of drawing, such as top_k
        and top_p.
        batch_size: images drawn at once; by default what fits. runtime: 'auto', 'cpu' or 'cuda' (compiled), 'eager'
        (plain PyTorch with caches) or 'reference' (a full forward per pixel). progress: show a bar.
        condition: [n, *condition_shape], numbers, or integers if the model takes those.
        Raises ValueError for bad arguments before any work, NonFiniteLogits (a ValueError) if the model gives NaN,
        SamplingInterrupted on Ctrl-C, with the finished images.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise ValueError(f"n is {n!r}: the number of images must be an integer, and can't be negative")
        values = torch.zeros(n, *self.shape, dtype=self.head.value_dtype)
        return self._sampled(values, None, labels, temperature, generator, noise, log_probability, arguments)

    @overload
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: Literal[False] = False,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor: ...

    @overload
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: Literal[True],
        **arguments: Unpack[SamplingArguments],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: bool,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    @takes_arguments_of(SamplingOptions, RunSettings)
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        log_probability: bool = False,
        **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Keeps the known sub-pixels of images and samples the rest in raster order -> [n, C, H, W].

        images: integer levels [n, C, H, W]; known: bool, broadcasts to the images ([H, W] for one mask).
        A pixel sees the known pixels before it, never those after it. The other arguments, the
        result and the errors are as for ``sample``.
        """
        values = self._model.checked_images(images)
        known = torch.as_tensor(known)
        if known.dtype != torch.bool:
            raise ValueError(f"known is {known.dtype}, expected torch.bool")
        try:
            known = known.cpu().expand(values.shape).contiguous()
        except RuntimeError:
            raise ValueError(
                f"known {list(known.shape)} does not broadcast to images {list(values.shape)}"
            ) from None
        values = values.masked_fill(~known, 0)
        return self._sampled(values, known, labels, temperature, generator, noise, log_probability, arguments)

    def logits(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        runtime: RuntimeName = "auto",
        condition: Tensor | None = None,
    ) -> Tensor:
        """The model's logits for given images, computed by a runtime pixel by pixel: teacher-forced.

        images: integer levels [n, C, H, W] -> [n, C, H, W, L] in the model's dtype; for a head that reads no logits,
        the parameters of each distribution, [n, D, H, W, P]. For checks; the model's own forward gives the same,
        faster.
        """
        values = self._model.checked_images(images)
        n, channels, height, width = values.shape
        output = self._observed or self._compiled.program
        distributions = self.head.distributions(channels)
        out = torch.zeros(n, distributions, height, width, output.parameters, dtype=output.dtype)
        known = torch.ones_like(values, dtype=torch.bool)
        unused = torch.zeros(n, self.head.uniforms * distributions, height, width, dtype=torch.float64)
        settings = RunSettings(runtime=runtime, condition=condition)
        self._run(values, known, labels, None, unused, SamplingOptions(), settings, parameters=out)
        normalised = self._observed is None and self._compiled.normalised
        return out.log_softmax(-1) if normalised else out

    def with_reference(self, model: nn.Module) -> Sampler:
        """The same sampler, whose runtime 'reference' runs another module of the same meaning: for benchmarks."""
        other = copy.copy(self)
        other._model = WrappedModel(model, self.shape, head=self.head, image_form=self._model.image_form)
        other._runtimes = {}
        return other

    def runtime(self, name: RuntimeName) -> Runtime:
        """The runtime of that name, built when first asked for. Raises ValueError or RuntimeError, saying why."""
        check_choice("runtime", name, RUNTIMES)
        if name == "auto":
            name = self._preferred if self._preferred != "auto" else self._fastest()
        if name not in self._runtimes:
            self._runtimes[name] = self._build(name)
        return self._runtimes[name]

    def _fastest(self) -> RuntimeName:
        program, head = self._compiled.program, self.head
        if why_not_cpu(program, head) is None and self._compiled.precision in ("same", "bf16"):
            return "cpu"
        if (why := why_not_cuda(program, head)) is None:
            return "cuda"
        if program.device.type == "cuda" and "eager" not in self._runtimes:
            warnings.warn(
                f"'auto' takes the runtime 'eager', since 'cuda' can't sample this: {why}", stacklevel=4
            )
        return "eager"

    def _build(self, name: RuntimeName) -> Runtime:
        if self._observed is not None:
            if name != "reference":
                raise RuntimeError(f"runtime {name!r} is not available: {self._why_no_program}")
            return ReferenceRuntime(self._model, self._observed.draws)
        program, conditions = self._compiled.program, self._compiled.conditions
        head, precision = self.head, self._compiled.precision
        if name == "cuda":
            return CudaRuntime(program, conditions, head, precision)
        if precision == "tf32" or (precision == "fp16" and name == "cpu"):
            raise ValueError(f"precision={precision!r} is for runtime 'cuda', not for {name!r}")
        if name == "cpu":
            return CpuRuntime(program, conditions, head, precision)
        if name == "eager":
            return EagerRuntime(program, conditions, head)
        _check_not_narrowed(precision)
        return ReferenceRuntime(self._model, draws=len(program.outputs))

    @cached_property
    def _why_no_program(self) -> str:
        try:
            compiled(self._model)
        except PixelCNNFastError as error:
            return f"the sampler was built with runtime='reference', and the model can't be captured: {error}"
        return "the sampler was built with runtime='reference'; the model can be captured, so leave that out"

    # -- running

    def _sampled(
        self,
        values: Tensor,
        known: Tensor | None,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        noise: Tensor | None,
        log_probability: bool,
        arguments: Mapping[str, Any],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What ``sample`` and ``complete`` return; ``values`` are filled where they are not known."""
        if not isinstance(temperature, (int, float)):
            raise ValueError(f"temperature is {temperature!r}, expected a number")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator is a {type(generator).__name__}, expected a torch.Generator")
        options = _fields_among(SamplingOptions, arguments, temperature=temperature)
        self.head.check_options(options)
        settings = _fields_among(RunSettings, arguments)
        found = torch.zeros(values.shape, dtype=torch.float64) if log_probability else None
        images = self._run(values, known, labels, generator, noise, options, settings, log_probability=found)
        return images if found is None else (images, found.sum((1, 2, 3)))

    def _run(
        self,
        values: Tensor,
        known: Tensor | None,
        labels: Tensor | None,
        generator: torch.Generator | None,
        noise: Tensor | None,
        options: SamplingOptions,
        settings: RunSettings,
        *,
        log_probability: Tensor | None = None,
        parameters: Tensor | None = None,
    ) -> Tensor:
        """Fills ``values`` [n, C, H, W], and the other outputs as in ``Job``, batch by batch -> the images."""
        n, height = values.shape[0], self.shape[1]
        given = self._model.checked_given(labels, settings.condition, n)
        noise = self._checked_noise(noise, torch.Size((n, *self.noise_shape)), generator)
        engine = self.runtime(settings.runtime)
        size = settings.batch_size or self._default_batch(n, engine)
        parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        if self._observed is None and not isinstance(engine, ReferenceRuntime):
            self._settle(given, parts)
        finished = 0
        with self._model.in_use(), tqdm(total=n * height, unit="row", disable=not settings.progress) as bar:
            try:
                for part in parts:
                    count = part.stop - part.start

                    def on_row(y: int, count: int = count) -> None:
                        bar.update(count if y else 0)

                    engine.run(
                        Job(
                            values=values[part],
                            known=None if known is None else known[part],
                            noise=noise[part],
                            given=given.part(part),
                            options=options,
                            parameters=None if parameters is None else parameters[part],
                            log_probability=None if log_probability is None else log_probability[part],
                            on_row=on_row,
                        )
                    )
                    bar.update(count)
                    finished = part.stop
            except NonFiniteLogits as error:
                image, *rest = error.location
                raise NonFiniteLogits(image + part.start, *rest) from None
            except KeyboardInterrupt:
                raise SamplingInterrupted(self.head.as_images(values[:finished]), n) from None
        return self.head.as_images(values)

    def _settle(self, given: Given, parts: Sequence[slice]) -> None:
        """Raises Unsupported for labels or conditions with which the model does something else."""
        conditions, whole = self._compiled.conditions, self._compiled.whole
        with self._model.in_use(), eagerly, advising(WAY_OUT):
            for part in parts if conditions.guards else ():
                conditions([], given.part(part), part.stop - part.start)
            if whole is not None:
                settle(whole, conditions, self._model, given)

    def _default_batch(self, n: int, engine: Runtime) -> int:
        if isinstance(engine, CudaRuntime):
            largest = engine.largest_batch()
        else:
            each = self._observed.output_bytes if self._observed else self.program.workspace_bytes
            largest = max(1, min(LARGEST_BATCH, BATCH_BYTES // each))
        batches = max(1, math.ceil(n / largest))
        return max(1, math.ceil(n / batches))  # of equal size

    def _checked_noise(
        self, noise: Tensor | None, shape: torch.Size, generator: torch.Generator | None
    ) -> Tensor:
        if noise is None:
            device = generator.device if generator is not None else "cpu"
            return torch.rand(shape, generator=generator, dtype=torch.float64, device=device).cpu()
        noise = torch.as_tensor(noise)
        if noise.shape != shape or not noise.is_floating_point():
            raise ValueError(
                f"noise is {noise.dtype} {list(noise.shape)}, expected floating point {list(shape)}"
            )
        if noise.numel() and not bool(((noise >= 0) & (noise < 1)).all()):
            raise ValueError("noise must lie in [0, 1), but some of it is outside or NaN")
        return noise.double().cpu().contiguous()


def _check_not_narrowed(precision: Precision) -> None:
    if precision != "same":
        raise ValueError("runtime 'reference' runs the model itself, whose weights are not bf16; use 'eager'")


Fields = TypeVar("Fields")


def _fields_among(kind: type[Fields], arguments: Mapping[str, Any], **more: Any) -> Fields:
    """The dataclass ``kind``, made from those of the arguments that are its fields."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # both kinds are dataclasses
    return kind(**more, **{name: value for name, value in arguments.items() if name in names})
