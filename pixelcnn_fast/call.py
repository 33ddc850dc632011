"""Runs one call of a sampler: its settings, its noise, and its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from pixelcnn_fast.engine import Engine
from pixelcnn_fast.errors import NonFiniteLogits, SamplingInterrupted
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.program.conditions import Condition
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.job import Job
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from pixelcnn_fast.user_model.conditioning import checked_conditioning


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The keywords that ``distributed.sample`` shares with ``sample`` and ``complete``."""

    batch_size: int | None = None
    runtime: RuntimeName = "auto"
    progress: bool = False
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and not _is_integer(self.batch_size, 1):
            raise ValueError(f"batch_size is {self.batch_size!r}: expected an integer of 1 or more")


@dataclass(frozen=True, kw_only=True)
class CallSettings(RunSettings):
    """What ``sample`` and ``complete`` are told besides the options of drawing."""

    labels: Tensor | None = None
    generator: torch.Generator | None = None
    noise: Tensor | None = None
    log_probability: bool = False
    device: torch.device | str | None = None

    @cached_property
    def results_on(self) -> torch.device:
        """Raises ValueError if nothing can be there."""
        if self.device is None:
            return torch.device("cpu")
        return _usable(self.device, "device is", "without device=, results are on the CPU")


class SamplingArguments(OptionArguments, total=False):
    """What ``sample`` and ``complete`` share, for type checkers."""

    batch_size: int | None
    runtime: RuntimeName
    progress: bool
    condition: Condition | None
    device: torch.device | str | None


def run(
    engine: Engine,
    values: Tensor,
    known: Tensor | None,
    options: SamplingOptions,
    settings: CallSettings,
    parameters: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Fills ``values`` and ``parameters``, as in ``Job`` -> the images, and ln p [n] if wanted."""
    (n, _, height, _), finished = values.shape, 0
    scores = torch.zeros_like(values, dtype=torch.float64) if settings.log_probability else None

    def results() -> tuple[Tensor, Tensor | None]:
        images = engine.model.as_images(values[:finished]).to(settings.results_on)
        return images, None if scores is None else scores[:finished].sum((1, 2, 3)).to(images.device)

    try:
        given = checked_conditioning(engine.model, settings.labels, settings.condition, n)
        shape, noise = torch.Size((n, *engine.noise_shape)), settings.noise
        if noise is not None:
            noise = _checked_noise(noise, shape)
        runtime, parts = engine.prepared(settings.runtime, n, settings.batch_size)
        if not isinstance(runtime, ReferenceRuntime):
            engine.verify_conditioning(given, parts)
        if noise is None:  # a call that is refused leaves the generator as it is
            noise = _drawn_noise(shape, settings.generator)
        whole = Job(
            values=values,
            noise=noise,
            given=given,
            options=options,
            known=known,
            parameters=parameters,
            log_probability=scores,
        )
        with (
            engine.model.in_use(),
            progress_bar(shown=settings.progress, total=n * height, unit="row") as bar,
        ):

            def job(part: slice) -> Job:
                return whole.part(part, on_row=lambda y: bar.update(part.stop - part.start if y else 0))

            for done in runtime.run_each(map(job, parts)):
                finished += len(done.values)
                bar.update(len(done.values))
    except BaseException as error:
        images, log_probabilities = results()
        if isinstance(error, NonFiniteLogits):
            error = error.moved(finished)
        elif isinstance(error, KeyboardInterrupt):
            error = SamplingInterrupted(images, n)
        # Not by setattr, which a user's own error may not allow.
        vars(error).update(finished=finished, images=images, log_probabilities=log_probabilities)
        raise error from error.__cause__
    return results()


def _drawn_noise(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if generator is None else generator.device
    device = _usable(device, "generator is on", "pass one on the CPU")
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device)


def _checked_noise(noise: Tensor, shape: torch.Size) -> Tensor:
    noise = torch.as_tensor(noise)
    _usable(noise.device, "noise is on", "pass it on the CPU")
    if noise.shape != shape or not noise.is_floating_point():
        raise ValueError(f"noise is {noise.dtype} {list(noise.shape)}, expected floating point {list(shape)}")
    if noise.numel() and not bool(((noise >= 0) & (noise < 1)).all()):
        raise ValueError("noise must lie in [0, 1), but some of it is outside or NaN")
    return noise.double().contiguous()


def _is_integer(x: object, least: int) -> bool:
    return isinstance(x, Integral) and not isinstance(x, bool) and int(x) >= least


def check_count(n: object) -> None:
    if not _is_integer(n, 0):
        raise ValueError(f"n is {n!r}: the number of images must be an integer, and can't be negative")


def _usable(device: torch.device | str, what: str, instead: str) -> torch.device:
    """The device, with its number. Raises ValueError if it can't hold float64."""
    try:
        found = torch.empty(0, dtype=torch.float64, device=device).device
        if found.type == "meta":
            raise RuntimeError("its tensors have no values")
    except (RuntimeError, TypeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{what} {str(device)!r}, which can't be used here: {why}; {instead}") from error
    return found


Fields = TypeVar("Fields")


def fields_among(kind: type[Fields], arguments: Mapping[str, Any], **more: Any) -> Fields:
    """A dataclass of this kind, from those of the arguments that are its fields."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # both kinds are dataclasses
    return kind(**more, **{name: value for name, value in arguments.items() if name in names})
