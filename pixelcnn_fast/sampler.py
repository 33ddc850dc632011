"""The sampler captures a model once, and then samples, completes or teacher-forces batches."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pixelcnn_fast.call import CallSettings, RunSettings, SamplingArguments, check_count, fields_among, run
from pixelcnn_fast.check.conditioning import warn_of_what_changes_nothing
from pixelcnn_fast.cores import as_cores_allow, one_thread
from pixelcnn_fast.engine import Engine
from pixelcnn_fast.heads import Head
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.housekeeping import gc_paused
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.program.conditions import Condition
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.refresh.live_model import LiveModel
from pixelcnn_fast.runtimes import PRECISIONS, RUNTIMES, Precision, RuntimeName
from pixelcnn_fast.runtimes.job import Runtime
from pixelcnn_fast.signatures import takes_arguments_of
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.conditioning import checked_conditioning
from pixelcnn_fast.user_model.contents import NotPartOfModel, ranks_averaged_over, unwrapped
from pixelcnn_fast.user_model.model_arguments import ModelArguments
from pixelcnn_fast.user_model.random_state import random_state_kept
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

_telling = threading.Lock()


class Sampler(NotPartOfModel):
    """Exact ancestral sampling from a causal model, one pixel after the other, computing only what is new.

    model: takes images [N, C, H, W], and labels [N] if it is conditional, and returns what
    the head reads. The sampler works on a copy in eval mode; ``refresh`` takes the weights
    of more training. Wrappers such as ``DataParallel`` or ``torch.compile`` are taken off,
    and autocast is ignored.
    shape: (C, H, W) of the images. head: how the output gives the distribution of values,
    from ``heads``; by default one logit for each of ``levels`` (the model's attribute, else
    256), in the only layout that fits.
    precision: of the weights: 'same' as the model's; 'bf16', which is not exact, but faster
    where memory is the limit or the processor multiplies bf16; or on a GPU 'fp16', with
    three bits more. Sums stay float32.
    conditional: whether the model takes labels, 0...K-1, where K is ``n_classes`` or is
    found by trying; by default, if it has ``n_classes`` or if its forward needs something
    besides images and the condition.
    image_form: the form in which the model takes images: 'uint8', 'int64', 'codes' (int64
    [N, H, W], one channel), or in floating point 'unit' (0...1), 'centred' (-1...1) or
    'levels' (0...L-1); ``image_forms.Normalize(mean, std)`` or ``image_forms.ChannelsLast(form)``.
    condition_shape: of a further tensor that the model takes, without its batch axis; by
    default (condition_channels, H, W) if the model has that attribute. It is passed as
    ``condition=`` if the forward has such an argument, else last. Of several, a tuple or a
    dict of shapes: a dict is passed as keyword arguments if the forward has arguments of
    these names, else as one would be; those in a tuple are arguments of their own, last,
    unless there is a ``condition``, which then is the tuple. condition_dtype: the
    model's own, the default unless the model raises then, or one of integers; or a tuple or
    a dict.
    output: which part the head reads, if the model returns more: a key, an index, an attribute or a function.
    runtime: what 'auto' stands for; by default the fastest that works. With 'reference',
    the model may be any causal one, with attention, pooling or strides: each draw is a full
    forward, and other runtimes are refused. Its causality is then tested on images that
    differ from some sub-pixel on, which takes about as long as drawing one image, and
    misses a leak that shows in none of them.

    Building leaves the generators of PyTorch, Python and NumPy as they were: another thread
    that draws meanwhile may get the same numbers twice. Raises ModelFailed if the model
    itself raises; NotCausal if an output depends on its own sub-pixel or a later one,
    naming the layer and the tap or, with runtime='reference', both sub-pixels; Unsupported
    for a call that has no place in a causal program, naming module and call, or an output
    that depends on other images or chance; UnknownLayout, with the alternatives, if the
    output fits no head or several; CaptureMismatch if the program differs from the model.
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
        with torch.inference_mode(False):
            wrapped = WrappedModel(model, shape, **arguments)
            with random_state_kept(wrapped.device), as_cores_allow():
                engine = Engine.built(wrapped, precision, runtime)
                warn_of_what_changes_nothing(wrapped)
            self._use(engine, model)

    def _use(self, engine: Engine, model: nn.Module) -> None:
        """Draws from this engine, which was built from the model, from now on."""
        engine.prepared("auto")  # if it raises, the sampler stays as it was
        self._engine, self._has_told = engine, False
        # None in a copy, or what comes out of a pickle.
        self._live_model: LiveModel | None = LiveModel(unwrapped(model), engine.snapshot)
        self._ranks = ranks_averaged_over(model)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, stands alone: it does not know the model any more."""
        return {**self.__dict__, "_live_model": None}

    def __repr__(self) -> str:
        model, engine = self._engine.model, self._engine
        channels, height, width = self.shape
        classes = f" 0...{n - 1}" if (n := model.labels.classes) else ""
        labels = f", labels{classes}" if model.conditional else ""
        conditions = "".join(
            f", {x.what.removeprefix('the ')} {[*x.shape]}" for x in model.conditions.values()
        )
        precision = "" if engine.precision == "same" else f", precision {engine.precision!r}"
        size = "" if engine.compiled is None else f", {engine.listing.weight_bytes / 1e6:.3g} MB of weights"
        return (
            f"<Sampler of {model.held.name}: images {channels}x{height}x{width}, {self.head}{labels}{conditions}, "
            f"runtime {engine.auto!r}{precision}{size}>"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self._engine.model.shape

    @property
    def head(self) -> Head:
        """How the model's output is read."""
        return self._engine.model.head

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(D * uniforms, H, W) of the noise that an image is drawn with."""
        return self._engine.noise_shape

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._engine.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._engine.model.dtype

    def fingerprint(self) -> str:
        """SHA-256 of what decides the images besides the arguments of ``sample``: what the
        forward reads and computes. It is the same on all devices on which PyTorch makes the
        same calls."""
        return self._engine.fingerprint()

    def probe(self) -> list[float] | None:
        """Numbers by which processes check that they hold the same model, up to rounding:
        some of what it gives for a fixed image. None after a pickle without a module."""
        return self._engine.probe()

    @property
    def program(self) -> ProgramListing:
        """What 'auto' executes, to print or to ask for costs; RuntimeError with runtime='reference'."""
        return self._engine.listing

    # -- the model's present weights

    def refresh(self, model: nn.Module | None = None) -> Sampler:
        """Takes the model's present weights, in a few percent of the time of building a sampler -> itself.

        If a number, a function or a hook that the model holds is another, one forward
        is recorded to find out whether that matters. If it does, or if a weight that
        was zero no longer is, the sampler is built anew, with a warning. Parts whose
        ``train()`` or ``eval()`` do more than set the mode are copied into eval mode
        each time. If a forward reads what the model does not hold, such as a global
        number, a change of that is not seen. Samples that other threads are drawing are
        still from the weights that they began with.
        model: another one of the same kind, such as a moving average, from which it draws
        from now on; by default the one that it knows. A copy, or what comes out of a
        pickle, knows none.
        Raises ValueError if it knows none, or what ``Sampler`` raises, and then stays as it was.
        """
        known = None if self._live_model is None else self._live_model.model
        model = known if model is None else model
        if model is None:
            why = "it is gone" if self._live_model is not None else "this is a copy, or comes out of a pickle"
            raise ValueError(f"there is no model to take weights from, since {why}: pass refresh(model)")
        if not isinstance(model, nn.Module):
            raise ValueError(f"the model is a {type(model).__name__}, expected a torch.nn.Module")
        # No other thread may run a module that can't be copied meanwhile. The work is in many
        # small parts, for which more threads take longer.
        with gc_paused(), torch.inference_mode(False):
            with self._engine.model.in_use(), one_thread():
                engine = self._engine.with_weights(model)
            if isinstance(engine, Engine):
                engine = engine.tested()
            else:
                tell(f"the sampler is built anew, which takes longer: {engine}")
                wrapped = WrappedModel(model, self.shape, **self._engine.model.arguments())
                wrapped.told = self._engine.model.told
                # It may be on another device now.
                with random_state_kept(wrapped.device), as_cores_allow():
                    engine = Engine.built(wrapped, self._engine.precision, self._engine.preferred)
            self._use(engine, model)
        return self

    def _tell_of_changes(self) -> None:
        if self._live_model is None or self._has_told:
            return
        with self._engine.model.in_use():
            changed = self._live_model.has_changed()
        with _telling:
            tells, self._has_told = changed and not self._has_told, changed or self._has_told
        if tells:
            tell(
                "the model has changed since this sampler was built, or refreshed: it draws from the model as it was "
                "then. sampler.refresh() takes the present weights"
            )

    # -- what a user calls

    @overload
    def sample(
        self, n: int, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: Literal[False] = False, **arguments: Unpack[SamplingArguments],
    ) -> Tensor: ...  # fmt: skip

    @overload
    def sample(
        self, n: int, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: Literal[True], **arguments: Unpack[SamplingArguments],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    @overload
    def sample(
        self, n: int, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: bool, **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip

    @takes_arguments_of(SamplingOptions, CallSettings)
    def sample(
        self, n: int, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: bool = False, **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Draws n images -> [n, C, H, W]: uint8 (int32 beyond 256 levels), or what the head
        gives. Codes (image_form='codes') come as the model takes them, int64 [n, H, W],
        here and below.

        labels: [n] integers for a conditional model.
        temperature: logits are divided by it; 0 takes the most likely level;
        ``heads.SamplingOptions`` explains the further options of drawing.
        generator: draws the noise, for all n images at once and on its device; with one
        seed, images depend on n and on the device, but never on the batch size.
        noise: u in [0, 1) to use instead, [n, C, H, W], or for a mixture or a head of your own
        [n, D * uniforms, H, W], on any device; same noise, same image.
        log_probability: return (images, ln p [n] float64) of the sub-pixels drawn, at
        temperature 1 and with all levels.
        device: where the results are to be, by default on the CPU; on the model's own
        device, they never leave it.
        batch_size: images drawn at once; by default some tens, fewer if they are large, or
        with 'cuda' as many as keep the GPU busy and fit into its memory.
        runtime: 'auto', 'cpu' or 'cuda' (compiled), 'eager' (PyTorch with caches) or
        'reference' (a full forward per pixel). progress: show a bar.
        condition: [n, *condition_shape], or a tuple or a dict of such tensors.
        Raises ValueError for bad arguments before any work, NonFiniteLogits (a ValueError)
        if the model gives NaN, and SamplingInterrupted on Ctrl-C. Whatever ends a run
        carries what was finished: ``images``, ``log_probabilities`` if they were asked for,
        and ``finished``, how many.
        """
        check_count(n)
        self._tell_of_changes()
        where = self._workplace(arguments.get("device"))
        values = torch.zeros(int(n), *self.shape, dtype=self.head.value_dtype, device=where)
        given = dict(labels=labels, temperature=temperature, generator=generator, noise=noise)
        return self._sampled(values, None, **given, log_probability=log_probability, **arguments)

    @overload
    def complete(
        self, images: Tensor, known: Tensor, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: Literal[False] = False, **arguments: Unpack[SamplingArguments],
    ) -> Tensor: ...  # fmt: skip

    @overload
    def complete(
        self, images: Tensor, known: Tensor, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: Literal[True], **arguments: Unpack[SamplingArguments],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    @overload
    def complete(
        self, images: Tensor, known: Tensor, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: bool, **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip

    @takes_arguments_of(SamplingOptions, CallSettings)
    def complete(
        self, images: Tensor, known: Tensor, labels: Tensor | None = None, temperature: float = 1.0,
        generator: torch.Generator | None = None, noise: Tensor | None = None, *,
        log_probability: bool = False, **arguments: Unpack[SamplingArguments],
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Keeps the known sub-pixels of images and samples the rest in raster order -> [n, C, H, W].

        images: integer levels [n, C, H, W], or what the head gives, also where they are not
        known; known: bool, broadcasts to the images ([H, W] for one mask). A pixel sees the known
        pixels before it, never those after it. The rest is as for ``sample``.
        """
        where = self._workplace(arguments.get("device"))
        try:
            values = self._engine.model.checked_images(images).to(where)
        except ValueError as error:
            raise ValueError(f"{error} (at pixels that are not known, too: 0 will do there)") from error
        known = torch.as_tensor(known)
        if self._engine.model.image_form == "codes" and known.dim() == 3:
            known = known[:, None]
        if known.dtype != torch.bool:
            raise ValueError(f"known is {known.dtype}, expected torch.bool")
        try:
            known = known.to(where).expand(values.shape).contiguous()
        except RuntimeError:
            raise ValueError(
                f"known {list(known.shape)} does not broadcast to images {list(values.shape)}"
            ) from None
        self.head.check_known(known)
        values = values.masked_fill(~known, 0)
        self._tell_of_changes()
        given = dict(labels=labels, temperature=temperature, generator=generator, noise=noise)
        return self._sampled(values, known, **given, log_probability=log_probability, **arguments)

    def logits(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        runtime: RuntimeName = "auto",
        condition: Condition | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The model's logits for given images, computed by a runtime pixel by pixel, for checks.

        images: integer levels [n, C, H, W] -> [n, C, H, W, L] in the model's dtype; for a
        head that reads no logits, the parameters of each distribution, [n, D, H, W, P].
        Other arguments, and errors: as for ``sample``.
        """
        values = self._engine.model.checked_images(images).to(self._workplace(device))
        n, channels, height, width = values.shape
        self._tell_of_changes()
        engine = self._engine
        described = engine.observed if engine.compiled is None else engine.compiled.program
        assert described is not None
        distributions = self.head.distributions(channels)
        out = values.new_zeros(n, distributions, height, width, described.parameters, dtype=described.dtype)
        known = torch.ones_like(values, dtype=torch.bool)
        unused = values.new_zeros(n, *self.noise_shape, dtype=torch.float64)
        settings = CallSettings(
            labels=labels, noise=unused, runtime=runtime, condition=condition, device=device
        )
        run(engine, values, known, SamplingOptions(), settings, parameters=out)
        out = out.log_softmax(-1) if engine.compiled is not None and engine.compiled.normalised else out
        return out.to(settings.results_on)

    def log_prob(
        self, images: Tensor, labels: Tensor | None = None, condition: Condition | None = None
    ) -> Tensor:
        """ln p of images under the model's present weights -> [n], in nats, from one forward in eval mode.

        images: integer levels [n, C, H, W]. A model in eval mode that ``accelerate`` has made
        faster is run as it is, and what its forward writes stays written; any other in a plain
        copy. Differentiable in the model's parameters; ``DistributedDataParallel`` does not
        average these gradients. Where the sampler knows no model, it is of its own weights,
        without gradients. Raises ValueError for images, labels or conditions that the model
        does not take, and if the head has no log-probability.
        """
        engine, model = self._engine, None if self._live_model is None else self._live_model.model
        self.head.check_scored()
        values = engine.model.checked_images(images)
        given = checked_conditioning(engine.model, labels, condition, len(values))
        with nullcontext() if model is not None else torch.no_grad():
            read = engine.snapshot.behaviour.read
            return engine.model.log_probability(values, given, model, read, self._ranks)

    def prepare(self, n: int, *, batch_size: int | None = None, runtime: RuntimeName = "auto") -> Sampler:
        """Does what the first call that draws n images would do besides drawing -> itself.

        On a CPU, it tries in which order such a batch is drawn the fastest, for up to 0.2 s;
        where that is too short, the first batches go on with it. On a GPU, it compiles the kernel,
        in some ten seconds the first time, and loads it; while a CUDA graph is captured,
        neither can be. Raises ValueError or RuntimeError, saying why, if a runtime that is
        named can't be had.
        """
        check_count(n)
        prepared, parts = self._engine.prepared(
            runtime, int(n), RunSettings(batch_size=batch_size).batch_size
        )
        for size in {part.stop - part.start for part in parts}:
            prepared.tune(size)
        return self

    def runtime(self, name: RuntimeName) -> Runtime:
        """The runtime, built when first asked for. Raises ValueError or RuntimeError, saying why."""
        return self._engine.prepared(name)[0]

    # -- running

    def _workplace(self, device: torch.device | str | None) -> torch.device:
        """Where values are filled, for results on ``device``: on the CPU, or with the model."""
        results_on = CallSettings(device=device).results_on
        return results_on if results_on.type == "cpu" else self.device

    def _sampled(
        self, values: Tensor, known: Tensor | None, **arguments: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not isinstance(generator := arguments["generator"], torch.Generator | None):
            raise ValueError(f"generator is a {type(generator).__name__}, expected a torch.Generator")
        options, settings = fields_among(SamplingOptions, arguments), fields_among(CallSettings, arguments)
        self.head.check_options(options)
        if settings.log_probability:
            self.head.check_scored()
        images, log_probability = run(self._engine, values, known, options, settings)
        return images if log_probability is None else (images, log_probability)
