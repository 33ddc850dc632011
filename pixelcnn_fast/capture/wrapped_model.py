"""The user's module with what is needed to call it: how it takes images, and how its output is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.float64 import computing
from pixelcnn_fast.capture.generators import undisturbed
from pixelcnn_fast.capture.kept_module import KeptModule
from pixelcnn_fast.capture.labels import HIGHEST, Labels
from pixelcnn_fast.capture.live import standing_for, without_gradients
from pixelcnn_fast.capture.model_arguments import (
    ModelArguments,
    checked_shape,
    dtype_and_device,
    fits,
    head_of,
    integer_of,
    is_integral,
    takes_labels,
)
from pixelcnn_fast.capture.parts import Held, described, unwrapped
from pixelcnn_fast.capture.private_copy import (
    borrowed,
    changes_with_its_mode,
    drifting,
    eagerly,
    private_copy,
)
from pixelcnn_fast.capture.recorder import CONDITION, IMAGE, LABELS, Leaf, Recording
from pixelcnn_fast.capture.replay import Replay
from pixelcnn_fast.capture.tensors import are_equal, duplicate, overlapping, with_tensors
from pixelcnn_fast.capture.tracer import Forward, capture, shared
from pixelcnn_fast.capture.transcript import are_alike
from pixelcnn_fast.errors import ModelFailed, PixelCNNFastError, Unsupported
from pixelcnn_fast.heads import Head, resolved
from pixelcnn_fast.heads.output import Output, picked
from pixelcnn_fast.image_forms import ImageForm, from_levels
from pixelcnn_fast.program.calls import leaves
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, Conditions, Given
from pixelcnn_fast.program.program import ConditionOperand, Program
from pixelcnn_fast.telling import tell

MOST_LABELS = 64  # for all of which two models are compared, if Python reads numbers off them
# Labels or conditions that are tried, to see whether they matter and are as in the model.
FEWEST_DIFFERENT, MOST_DIFFERENT = 4, 16
CHECKED_WORK = 10**10  # weights times pixels of all images with which more than the fewest are tried
CHECKED_PIXELS = 2048  # of all random images that a program is checked on, unless that is less than one image


CONDITIONS = (
    torch.randn,
    torch.rand,
)  # what makes examples of real numbers; the first that a model takes is used


class WrappedModel:
    """``Sampler`` explains the arguments. ``module`` is a copy in eval mode: the user's own is not touched, unless it
    can't be copied.

    ``head`` has its layout once the model is captured.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, int, int],
        *,
        head: Head | None = None,
        levels: int | None = None,
        conditional: bool | None = None,
        image_form: ImageForm = "uint8",
        condition_shape: tuple[int, ...] | None = None,
        condition_dtype: torch.dtype | None = None,
        output: Output = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(f"the model is a {type(module).__name__}, expected a torch.nn.Module")
        module = unwrapped(module)
        self.image_form = image_form
        self.shape = checked_shape(shape)
        self.head = head_of(module, self.shape, head, levels, image_form)
        self.levels = self.head.levels
        if condition_shape is None and (channels := integer_of(module, "condition_channels")):
            condition_shape = (channels, *self.shape[1:])
        self.condition_shape = condition_shape
        self.conditional = takes_labels(module, condition_shape) if conditional is None else conditional
        self.labels = Labels(integer_of(module, "n_classes"))
        self.dtype, self.device = dtype_and_device(module)
        self.head = self.head.of_model_in(self.dtype)
        self.condition_dtype = condition_dtype
        if condition_dtype is not None and condition_dtype != self.dtype and not is_integral(condition_dtype):
            raise ValueError(
                f"condition_dtype is {condition_dtype}: expected the model's own, {self.dtype}, or one of integers"
            )
        self.codes: Labels | None = None  # of a condition of integers
        self._random_condition = CONDITIONS[0]
        memo: dict[int, Any] = {}
        copied, held = private_copy(module, memo), Held(module)
        by_path = {id(x) for x in held.tensors.values()}
        # What only ``copy.deepcopy`` finds.
        self._hidden = [x for x in memo.get(id(memo), ()) if isinstance(x, Tensor) and id(x) not in by_path]
        seen = Held(copied) if copied is not None and changes_with_its_mode(held) else held
        self.paths = frozenset(seen.tensors)  # of what the user's module holds in eval mode
        self.overlaps = overlapping(seen.tensors)  # a copy's tensors may lie apart
        self.drifting = drifting(copied, seen)
        self.kept = KeptModule(module if copied is None else copied, output, is_borrowed=copied is None)
        self._own_dtype = self.dtype  # which the module's code may name; a copy may compute in another
        self.branches: tuple[str, ...] = ()  # what Python reads off the image, once that is known
        self.recording: Recording | None = None  # of its first forward, once it is captured
        self.is_captured = False
        self.outside: Sequence[Tensor] = ()  # what its forward reads that copies of it share
        self.told = set[str]()  # what was said of it once, as of parameters that get no gradients, by path

    def copy_in_float64(self) -> WrappedModel | None:
        """The same model in float64, or None if it is in float64 already or can't be converted."""
        if self.dtype == torch.float64 or self.kept.is_borrowed:
            return None
        try:
            own = Held(self.module).tensors  # some may be in networks that are not registered
            doubles = {path: x.detach().double() for path, x in own.items() if x.is_floating_point()}
            module = with_tensors(self.module, doubles).double()
        except (RuntimeError, TypeError):  # no memory is left, or the device has no float64
            return None
        exact = self.run_by(module)
        exact.dtype = torch.float64
        return exact

    @property
    def module(self) -> nn.Module:
        """What is run. Raises RuntimeError if it is not there, after pickling."""
        return self.kept.module

    @property
    def output(self) -> Output:
        return self.kept.output

    def having(self, weights: Mapping[str, Tensor]) -> WrappedModel:
        """The same model with other weights, by name."""
        other = copy.copy(self)
        other.kept = self.kept.having(weights)
        return other

    def run_by(self, module: nn.Module) -> WrappedModel:
        """The same with another module, which is in eval mode."""
        other = copy.copy(self)
        other.kept = KeptModule(module, self.output, self.kept.is_borrowed)
        return other

    def arguments(self) -> ModelArguments:
        """What another module is wrapped with in the same way."""
        return ModelArguments(
            head=self.head,
            conditional=self.conditional,
            image_form=self.image_form,
            condition_shape=self.condition_shape,
            condition_dtype=self.condition_dtype,
            output=self.output,
        )

    def example(self, seed: int = 0, n: int = EXAMPLE_BATCH, half: int | None = None) -> tuple[Tensor, Given]:
        """Random values [n, C, H, W], and what the model takes besides images. Another seed gives other classes.

        half: 0 or 1 for levels of the lower or the upper half alone; of a real number x, for x / 2 or (x + 1) / 2.
        """
        generator = torch.Generator().manual_seed(seed)
        values = self.head.examples((n, *self.shape), generator).to(self.device)
        if half is not None:
            values = (values + half) / 2 if self.levels is None else values // 2 + half * (self.levels // 2)
        if self.levels is None:
            values = values.to(self.dtype).to(values.dtype)  # as the model sees them
        labels = self.labels.examples(seed, n, self.device) if self.conditional else None
        return values, Given(labels, self._example_condition(n, generator))

    def _example_condition(self, n: int, generator: torch.Generator) -> Tensor | None:
        if self.condition_shape is None:
            return None
        if self.codes is None:
            made = self._random_condition(n, *self.condition_shape, generator=generator)
            return made.to(self.device, self._own_dtype)
        codes = torch.randint(self.codes.accepted, (n, *self.condition_shape), generator=generator)
        return codes.to(self.device, self.condition_dtype)

    def examples_that_differ(self) -> Iterator[tuple[str, Tensor, Given]]:
        """For labels and condition, if the model takes them: its name, and the same image with several of them."""
        many = self._many_labels()
        values, given = self.example(n=max(2, min(many, self.labels.accepted)) if self.conditional else many)
        first = Given(*(x if x is None else x[:1].expand_as(x) for x in given))
        same = values[:1].expand_as(values)
        if given.labels is not None:
            yield "labels", same, first._replace(labels=given.labels)
        if given.condition is not None:
            yield "condition", same, first._replace(condition=given.condition)

    def _many_labels(self) -> int:
        """With how many labels, or conditions, an image is tried: fewer for a large model."""
        weights = sum(p.numel() for p in self.module.parameters()) or 1  # none may be registered
        return max(
            FEWEST_DIFFERENT, min(MOST_DIFFERENT, CHECKED_WORK // (weights * self.shape[1] * self.shape[2]))
        )

    def examples_to_check(self) -> list[tuple[Tensor, Given]]:
        """Other examples than those that are recorded, in batches of other sizes: a dark image, and random ones, with
        every label if these are few and the model is small, and a bright one where images are small."""
        pixels = self.shape[1] * self.shape[2]
        n = max(1, min(63, CHECKED_PIXELS // pixels))
        bright = [self.example(2, 4, half=1)] if n > 3 else []
        if self.conditional:
            n = max(n, min(self._many_labels(), self.labels.accepted))
        if n in (EXAMPLE_BATCH, EXAMPLE_BATCH + 1):
            n = EXAMPLE_BATCH + 2 if self.conditional else 1
        return [self.example(1, 1, half=0), *bright, *self._drawn_in_part(), self.example(3, n)]

    def _drawn_in_part(self) -> Iterator[tuple[Tensor, Given]]:
        """If the model reads numbers off the image, images as sampling meets them: of the lowest level everywhere, or
        from the second pixel, the second row or the middle on; and one of the highest level."""
        if self.levels is not None and (self.branches or IMAGE in self._read):
            values, given = self.example(4)
            values[1:] = values[:1]  # two of one image: its statistics are those of the batch
            _, height, width = self.shape
            for drawn in (0, 1, width, height * width // 2):
                pixels = torch.arange(height * width, device=values.device).view(height, width)
                yield values.where(pixels < drawn, 0), given
            yield torch.full_like(values, self.levels - 1), given

    def captured(self, values: Tensor, given: Given) -> tuple[Program, Conditions, Tensor, Replay]:
        """Records the model on an example -> (program, conditions, parameters [N, D, H, W, P], what was recorded)."""
        examples = [(self.encode(values), given.in_dtype(self.dtype))]
        for seed in (1, 2):  # a statistic of the whole image shall differ
            others, given = self.example(seed, EXAMPLE_BATCH + 1, half=seed % 2)
            examples.append((self.encode(others), given.in_dtype(self.dtype)))
        levels = None
        if self.levels is not None:
            levels = self.encode(torch.arange(self.levels).view(1, 1, 1, -1)).flatten()
        with _scripted_parts_named(self.module), _returning(self.module, self.output):
            found = capture(self.module, examples, self.head, levels, self.n_classes, not self.kept.is_borrowed)
        self.head, self.weights, self.recording = found.head, found.weights, found.recording
        self.outside, self.is_captured = [*found.outside, *self._found_hidden(found.recording)], True
        self.branches = found.program.branches
        return found.program, found.conditions, found.parameters, found.replay

    def record(self) -> None:
        """Records one forward, if that goes, for a model that is not captured."""
        with suppress(PixelCNNFastError, RuntimeError), undisturbed(self.device):
            one, two = (self._forward(self._another()).recording for _ in range(2))
            if not are_alike(one, two):
                return
            self.recording, self.outside = one, [*shared(one, two), *self._found_hidden(one)]
        if LABELS in self._read and self._can_try:
            self.labels.explore(self._takes_label)

    @property
    def may_do_more(self) -> bool:
        """Whether its forward may do something else for other examples than the one that was recorded."""
        return bool(self._read)

    @property
    def _read(self) -> frozenset[str]:
        """What the numbers depend on by which Python may have decided. A program does for all images what is done for
        one, whatever they were."""
        escapes = () if self.recording is None else self.recording.escapes
        taken = (x.of for x in escapes if IMAGE not in x.of or not self.is_captured)
        return frozenset[str]().union(*taken)

    def _found_hidden(self, recording: Recording) -> list[Tensor]:
        """Those of the module's tensors that no path leads to and that the forward reads."""
        unnamed = [leaf.tensor for leaf in recording.read().values() if not leaf.parameters]
        return [x for x in self._hidden if any(are_equal(x.detach(), y) for y in unnamed)]

    def _another(self) -> nn.Module:
        """Another copy of the module, which has never run, if it can be copied."""
        return self.module if self.kept.is_borrowed else duplicate(self.kept.untouched)

    @cached_property
    def _recorded_again(self) -> Recording | None:
        """As ``recording``, of a module that has run before, and has kept what it made then; None if it made that of
        weights, which may be others while it stays."""
        module, other = self._another(), self._another()
        shared = {id(x) for x in Held(module).tensors.values()}  # such as the user's own, that a function holds
        with torch.no_grad():
            for x in Held(other).tensors.values():
                if x.is_floating_point() and id(x) not in shared:
                    x.mul_(1.5).add_(0.1)
        had = Held(module).tensors
        for each in (module, other):
            self._forward(each)
        again, kept = self._forward(module).recording, Held(other).tensors
        for leaf in again.read().values():
            for name in {name for name, _ in leaf.parameters} - had.keys():
                if name not in kept or not are_equal(kept[name], leaf.tensor):
                    return None
        return again

    def usual(self) -> Recording | None:
        """What a module does that has perhaps run before, if it keeps anything then; so it does not matter whether the
        user's has."""
        if self.recording is None or self.kept.is_borrowed:
            return self.recording
        module = self._another()
        had = Held(module).tensors.keys()
        with undisturbed(self.device), suppress(PixelCNNFastError, RuntimeError):
            self._forward(module)
            if Held(module).tensors.keys() != had:
                return self._recorded_again or self.recording
        return self.recording

    def _is_recorded_again(self, now: Recording, weights: Container[str]) -> bool:
        """Whether a module that has run before does what this one would do then. What its copies share with it, such as
        what a function holds, must be what it was."""
        assert self.recording is not None
        if self.kept.is_borrowed or not are_alike(self.recording, self._forward(self._another()).recording):
            return False
        return self._recorded_again is not None and are_alike(self._recorded_again, now, weights)

    def read(self, by_python: bool = False) -> dict[str, Leaf]:
        """What it reads of the tensors that it holds, by path; by_python: also as numbers."""
        recordings = [*filter(None, [self.recording]), *(self.decisive_others or ())]
        leaves = chain.from_iterable(each.read(by_python).values() for each in recordings)
        return {name: leaf for leaf in leaves for name, _ in leaf.parameters}

    @property
    def decisive_others(self) -> list[Recording] | None:
        """As ``recorded_others``; none for a program, which does the same for all examples, or they are refused."""
        return [] if self.is_captured else self.recorded_others

    @cached_property
    def recorded_others(self) -> list[Recording] | None:
        """What it does for other examples after the first one, if it may do more than for that; None if that can't be
        tried."""
        if not self._examples_that_matter:
            return []
        with undisturbed(self.device), suppress(PixelCNNFastError, RuntimeError):
            self._forward(module := self._another())
            return [self._forward(module, each).recording for each in self._examples_that_matter]
        return None

    def _forward(self, module: nn.Module, example: tuple[Tensor, Given] | None = None) -> Forward:
        values, given = example or self.example()
        with eagerly, _returning(module, self.output):
            encoded, given = self.encode(values), given.in_dtype(self.dtype)
            return Forward(module, encoded, given, self.head, allows_autocast=not self.is_captured)

    def without_recording(self) -> WrappedModel:
        """The same for a pickle, or a copy that stands alone."""
        other = copy.copy(self)
        other.recording, other.outside, other._hidden = None, (), []
        for name in ("_recorded_again", "recorded_others", "_examples_that_matter"):
            vars(other).pop(name, None)
        return other

    def does_the_same(self, module: nn.Module, weights: Container[str], has_values: bool = False) -> bool:
        """Whether another module, in eval mode, makes the calls that were recorded of this one, with its own tensors;
        if none were, whether it gives the same for an example. weights: the paths of those that may be others;
        has_values: whether all but its tensors is known to be the same."""
        try:
            with undisturbed(self.device):
                if self.recording is None:
                    return self._gives_the_same(module, *self.example())
                now = self._forward(module).recording
                if not are_alike(self.recording, now, weights) and not self._is_recorded_again(now, weights):
                    return False
                if has_values and not self.branches:
                    return True
                if (others := self.recorded_others) is None:
                    return False
                present = (self._forward(module, each).recording for each in self._examples_that_matter)
                return all(are_alike(one, two, weights) for one, two in zip(others, present, strict=True))
        except (PixelCNNFastError, RuntimeError):
            return False

    @cached_property
    def _examples_that_matter(self) -> list[tuple[Tensor, Given]]:
        """For what may be done otherwise, as Python has read numbers."""
        read = self._read
        found = self.examples_to_check() if self.branches or IMAGE in read or CONDITION in read else []
        if CONDITION in read:
            found += [self.example(seed, n=1) for seed in range(MOST_DIFFERENT)]
        if LABELS in read:
            labels = range(self.labels.accepted)
            spread = labels[:: -(-len(labels) // MOST_LABELS)]
            found += map(self._with_label, sorted({*spread, labels[-1]}))
        return found

    def _gives_the_same(self, module: nn.Module, values: Tensor, given: Given) -> bool:
        """Whether another module gives the same parameters, bit by bit, as this one would with its tensors."""
        if self.kept.is_borrowed:
            return False
        one, other = self.having(Held(module).tensors), self.run_by(module)
        with eagerly:
            return torch.equal(one.parameters(values, given), other.parameters(values, given))

    @torch.no_grad()
    def parameters(self, values: Tensor, given: Given) -> Tensor:
        """values: [N, C, H, W] -> what the head reads, [N, D, H, W, P]."""
        with computing(self.dtype, self._own_dtype):
            output = picked(self.run(values, given), self.output)
            head = resolved(self.head, output, (len(values), *self.shape))
            return head.arranged(output, self.shape[0])

    def log_probability(self, values: Tensor, given: Given, live: nn.Module | None = None) -> Tensor:
        """ln p of images, [n, C, H, W] -> [n], under a module of the user's, through whose tensors gradients go; by
        default under its own."""
        with (
            self.in_use(),
            eagerly,
            computing(self.dtype, self._own_dtype),
            nullcontext(self.module)
            if live is None
            else standing_for(live, self.device, self.dtype, self.read) as module,
        ):
            output = picked(given.in_dtype(self.dtype).call(module, self.encode(values)), self.output)
            head = resolved(self.head, output, (len(values), *self.shape))
            drawn = self.encode(values) if self.levels is None else values.to(self.device)
            result = -head.nll(head.arranged(output, self.shape[0]), drawn)
        found = () if live is None or not torch.is_grad_enabled() else without_gradients(live, result)
        if new := [path for path in found if path not in self.told]:
            self.told.update(new)
            tell(
                f"log_prob gives no gradients to {', '.join(new)}: eval mode, in which it is computed, computes "
                f"without them, as parts of {type(live).__name__} set other weights in train() or eval(): to train "
                "these, compute the loss from the model itself, in train mode"
            )
        return result

    def replayed(self, values: Tensor, given: Given, replay: Callable[[Tensor, Given], Tensor]) -> Tensor:
        """As ``parameters``, by what takes the place of the module and picks of its output what is read."""
        return self.head.arranged(replay(self.encode(values), given.in_dtype(self.dtype)), self.shape[0])

    @torch.no_grad()
    def run(self, values: Tensor, given: Given) -> Any:
        """values: [N, C, H, W] -> what the module returns."""
        with computing(self.dtype, self._own_dtype):
            return given.in_dtype(self.dtype).call(self.module, self.encode(values))

    # -- what is found out by trying

    def settle_condition(self) -> None:
        """Finds out whether the condition may be negative, and whether it is of integers if the user does not say."""
        if self.condition_shape is None:
            return
        if self.condition_dtype is not None and not self.condition_dtype.is_floating_point:
            self._takes_codes(self.condition_dtype)
            return
        given, self.condition_dtype = self.condition_dtype, self.dtype
        if (failed := self._failure()) is None:
            return
        for self._random_condition in CONDITIONS[::-1]:
            if self._failure() is None:
                return
        if given is None:
            self._takes_codes(torch.long)
        if self._failure() is not None and isinstance(failed, ModelFailed):
            raise failed

    def _takes_codes(self, dtype: torch.dtype) -> None:
        self.condition_dtype = dtype
        most = 1 if dtype == torch.bool else torch.iinfo(dtype).max
        self.codes = Labels(None, "the integers of the condition", min(HIGHEST, most))

    def _failure(self) -> Exception | None:
        """Why the model can't be run, or gives NaN, if so. What its first forward keeps must not come from a trial."""
        kept = self.kept
        if not self.kept.is_borrowed:
            self.kept = copy.deepcopy(kept)
        try:
            output = self.run(*self.example())
        except ModelFailed as failed:
            return failed
        finally:
            self.kept = kept
        is_nan = any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in leaves(output))
        return ValueError("it gives NaN") if is_nan else None

    def explore(self, conditions: Conditions, operands: Sequence[ConditionOperand]) -> None:
        """Finds out, from the captured conditions and then from the model, which labels and codes it takes."""
        for which, (labels, example, takes) in enumerate(
            (
                (self.labels if self.conditional else None, self._with_label, self._takes_label),
                (self.codes, self._with_code, self._takes_code),
            )
        ):
            if labels is not None and labels.classes is None and self.device.type != "cpu":
                labels.classes = conditions.rows_looked_up(which)
                labels.accepted = labels.classes or labels.accepted
            elif labels is not None and labels.classes is None:

                def taken_there(label: int, example: Any = example) -> bool:
                    try:
                        conditions(operands, example(label)[1], 1)
                    except (ModelFailed, Unsupported):  # it raises, or a branch would fall otherwise
                        return False
                    return True

                labels.explore(taken_there)
                labels.restrict(takes)

    @property
    def n_classes(self) -> int | None:
        """How many labels there are, if the model says so or it was found out."""
        return self.labels.classes

    def _with_label(self, label: int) -> tuple[Tensor, Given]:
        values, given = self.example(n=1)
        return values, given._replace(labels=torch.tensor([label], device=self.device))

    def _takes_label(self, label: int) -> bool:
        return self._takes(*self._with_label(label))

    def _with_code(self, code: int) -> tuple[Tensor, Given]:
        values, given = self.example(n=1)
        assert given.condition is not None
        return values, given._replace(condition=torch.full_like(given.condition, code))

    def _takes_code(self, code: int) -> bool:
        return self._takes(*self._with_code(code))

    @property
    def _can_try(self) -> bool:
        """A wrong index leaves CUDA unusable."""
        return self.device.type == "cpu" and self.kept.is_there

    def _takes_condition(self, condition: Tensor) -> bool:
        """Its integers may mean different things, and each have a range of its own."""
        if not self._can_try:
            return False
        values, given = self.example(n=len(condition))
        return self._takes(values, given._replace(condition=condition))

    def _takes(self, values: Tensor, given: Given) -> bool:
        try:
            with self.in_use():
                self.run(values, given)
        except ModelFailed:
            return False
        return True

    # -- what users give

    def encode(self, values: Tensor) -> Tensor:
        """Converts values as they are drawn to images as the module takes them."""
        values = values.to(self.device)
        if self.levels is None:
            return values.to(self.dtype)
        return from_levels(values, self.image_form, self.levels, self.dtype)

    def checked_images(self, images: Tensor) -> Tensor:
        """A copy of the values of images from a user, as the head draws them: [n, C, H, W]. Codes may come without
        the axis of channels. Raises ValueError for bad images."""
        images = torch.as_tensor(images)
        is_codes = self.image_form == "codes" and images.dim() == 3
        expected = self.shape[1:] if is_codes else self.shape
        if images.dim() != 1 + len(expected) or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {list(images.shape)}, expected [n, {', '.join(map(str, expected))}]"
            )
        return self.head.checked(images[:, None] if is_codes else images)

    def as_images(self, values: Tensor) -> Tensor:
        """Drawn values as users get them: codes as the model takes them, int64 [n, H, W]."""
        images = self.head.as_images(values)
        return images[:, 0].long() if self.image_form == "codes" else images

    def checked_given(self, labels: Tensor | None, condition: Tensor | None, n: int) -> Given:
        """What a user gave besides n images, on the model's device. Raises ValueError if the model does not take it."""
        return Given(self._checked_labels(labels, n), self._checked_condition(condition, n))

    def _checked_labels(self, labels: Tensor | None, n: int) -> Tensor | None:
        if not self.conditional:
            if labels is not None:
                raise ValueError(
                    "labels were given, but the sampler was built for a model without labels: if its forward takes "
                    "labels, build the sampler with conditional=True"
                )
            return None
        if labels is None:
            raise ValueError(f"this model is conditional: pass labels, integers [{n}]")
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"labels are no tensor ({error}), expected integers [{n}]") from error
        if labels.shape != (n,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{n}]")
        labels, takes = labels.long(), self._takes_label if self._can_try else None
        if n and (why := self.labels.why_not(int(labels.min()), int(labels.max()), takes)) is not None:
            raise ValueError(why)
        return labels.to(self.device, torch.long)

    def _checked_condition(self, condition: Tensor | None, n: int) -> Tensor | None:
        shape = self.condition_shape
        if shape is None:
            if condition is not None:
                raise ValueError(
                    "a condition was given, but the sampler was built without one: pass condition_shape= to Sampler"
                )
            return None
        dtype = self.condition_dtype or self.dtype
        kind = "numbers" if dtype.is_floating_point else "integers"
        try:
            condition = None if condition is None else torch.as_tensor(condition)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the condition is no tensor ({error}), expected {kind} {[n, *shape]}") from error
        if condition is None or tuple(condition.shape) != (n, *shape) or not fits(condition.dtype, dtype):
            found = "missing" if condition is None else f"{condition.dtype} {list(condition.shape)}"
            raise ValueError(f"the condition is {found}, expected {kind} {[n, *shape]}")
        if self.codes is not None and condition.numel():
            takes = self._takes_code if self._can_try else None
            low, high = int(condition.min()), int(condition.max())
            if low < 0 and self.codes.classes is None and (takes is None or takes(low)):
                low = 0  # they are numbers, which may be negative
            why = self.codes.why_not(low, high, takes)
            if why is not None and not self._takes_condition(condition.to(self.device, dtype)):
                raise ValueError(why)
        return condition.to(self.device, dtype)

    def identity(self) -> Iterator[object]:
        """What tells this model from others besides its forward: how it takes images and is read."""
        yield from (self.shape, self.dtype, self.image_form, type(self.head).__qualname__)
        around = nn.Module()
        vars(around)["head"] = self.head  # which may hold anything
        held = Held(around)
        yield from described(held.values)
        yield from chain.from_iterable(sorted(held.tensors.items()))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The context in which the module may be run: autocast is off, and a module that could not be copied is locked
        and in eval mode."""
        with ExitStack() as stack:
            if self.kept.borrowed is not None:
                stack.enter_context(borrowed(self.kept.borrowed))
            for device in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield


@contextmanager
def _returning(module: nn.Module, output: Output) -> Iterator[None]:
    """Within the context, the module returns the part of its output that is to be read."""
    if output is None:
        yield
        return
    with module.register_forward_hook(lambda module, images, returned: picked(returned, output)):
        yield


@contextmanager
def _scripted_parts_named(module: nn.Module) -> Iterator[None]:
    """Within the context, a model that can't be captured is refused with the name of its first scripted part."""
    try:
        yield
    except (Unsupported, RuntimeError) as error:
        scripted = [name for name, each in module.named_modules() if isinstance(each, torch.jit.ScriptModule)]
        if not scripted or isinstance(error, ModelFailed):
            raise
        why = str(error).removeprefix("cannot sample from this model: ")
        raise Unsupported(
            f"cannot sample from this model: {scripted[0] or 'the model'} is a torch.jit.ScriptModule, which is not "
            f"followed ({why}): use the module that it was made from"
        ) from error
