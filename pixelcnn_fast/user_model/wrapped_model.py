"""Wraps the user's module: runs it, and reads its output as the parameters of distributions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.heads import Head, resolved
from pixelcnn_fast.heads.output import Output, picked
from pixelcnn_fast.image_forms import Form, ImageForm, form_of, from_levels
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, Conditioning, OneOrMore, like, named
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import Contents, described, unwrapped
from pixelcnn_fast.user_model.differentiable_copy import standing_for, without_gradients
from pixelcnn_fast.user_model.float64 import computing
from pixelcnn_fast.user_model.held_module import HeldModule
from pixelcnn_fast.user_model.labels import Labels
from pixelcnn_fast.user_model.model_arguments import (
    ModelArguments,
    checked_shape,
    dtype_and_device,
    head_of,
    integer_of,
    takes_labels,
)
from pixelcnn_fast.user_model.of_one_batch import as_of_several, with_any_batch
from pixelcnn_fast.user_model.private_copy import (
    changes_with_its_mode,
    drifting,
    eagerly,
    exclusively,
    private_copy,
)
from pixelcnn_fast.user_model.taken_condition import checked_shapes, taken_conditions
from pixelcnn_fast.user_model.tensors import overlapping

# Labels or conditions that are tried, to see whether they matter and are as in the model.
FEWEST_DIFFERENT, MOST_DIFFERENT = 4, 16
CHECKED_WORK = 10**10  # weights times pixels of all images, up to which more are tried
CHECKED_PIXELS = 2048  # of all random images on which a program is checked, unless one has more


class WrappedModel:
    """A model as capture, checks and runtimes use it; ``Sampler`` explains the arguments.

    ``module`` is a copy in eval mode, or the user's own if that can't be copied. A recorded
    forward tells its head's layout, ``branches`` and ``reads_images``; trials tell its
    labels, and its conditions' dtypes.
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
        condition_shape: OneOrMore[tuple[int, ...]] | None = None,
        condition_dtype: OneOrMore[torch.dtype | None] = None,
        output: Output = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(f"the model is a {type(module).__name__}, expected a torch.nn.Module")
        module = unwrapped(module)
        self.image_form = image_form
        self.shape = checked_shape(shape)
        self.head = head_of(module, self.shape, head, levels, image_form)
        self.levels = self.head.drawn_levels
        if condition_shape is None and (channels := integer_of(module, "condition_channels")):
            condition_shape = (channels, *self.shape[1:])
        self.condition_shape = checked_shapes(condition_shape)
        self.conditional = takes_labels(module, self.condition_shape) if conditional is None else conditional
        self.dtype, self.device = dtype_and_device(module)
        self.labels = Labels(integer_of(module, "n_classes"))
        self.head = self.head.of_model_in(self.dtype)
        self.conditions = taken_conditions(self.condition_shape, condition_dtype, self.dtype)
        memo: dict[int, Any] = {}
        copied, contents = private_copy(module, memo), Contents(module)
        seen = Contents(copied) if copied is not None and changes_with_its_mode(contents) else contents
        self.drifting = drifting(copied, seen)
        self.paths = frozenset(seen.tensors)  # of what the user's module holds in eval mode
        self.overlaps = overlapping(seen.tensors)  # a copy's tensors may lie apart
        known = {id(x) for x in contents.tensors.values()}
        # Tensors that only ``copy.deepcopy`` reaches, which keeps the originals in
        # memo[id(memo)]; a pickle leaves them out.
        self.hidden = [x for x in memo.get(id(memo), ()) if isinstance(x, Tensor) and id(x) not in known]
        self.held = HeldModule(module if copied is None else copied, output, is_uncopyable=copied is None)
        self._own_dtype = self.dtype  # which its code may name; a copy may compute in another
        # What Python reads off the image, which a program takes for granted.
        self.branches: tuple[str, ...] = ()
        self.reads_images = False  # whether Python reads numbers off the image
        self.told = set[str]()  # what was said once: paths without gradients, ".ranks", ".modes"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hidden": []}

    @property
    def module(self) -> nn.Module:
        """Raises RuntimeError if it did not travel in a pickle."""
        return self.held.module

    @property
    def output(self) -> Output:
        return self.held.output

    @property
    def form(self) -> Form:
        return form_of(self.image_form)

    def contents(self) -> tuple[Contents, dict[str, Tensor]]:
        """-> (what the module holds; its tensors by path, as copies where others may write into them)."""
        with self.in_use():
            held, is_shared = Contents(self.module), self.held.is_uncopyable
            tensors = {path: x.detach() for path, x in held.tensors.items()}
            return held, {path: x.clone() if ":" in path or is_shared else x for path, x in tensors.items()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> WrappedModel:
        """The same model with other weights, by name."""
        other = copy.copy(self)
        other.held = self.held.with_weights(weights)
        return other

    def run_by(self, module: nn.Module) -> WrappedModel:
        """The same model with another module, in eval mode."""
        other = copy.copy(self)
        other.held = HeldModule(module, self.output, self.held.is_uncopyable)
        return other

    def arguments(self) -> ModelArguments:
        """The arguments by which another module is wrapped alike."""
        return ModelArguments(
            head=self.head,
            conditional=self.conditional,
            image_form=self.image_form,
            condition_shape=self.condition_shape,
            condition_dtype=self.like_conditions(each.dtype for each in self.conditions.values()),
            output=self.output,
        )

    def example(
        self, seed: int = 0, n: int = EXAMPLE_BATCH, half: int | None = None
    ) -> tuple[Tensor, Conditioning]:
        """Random values [n, C, H, W], with what the model takes besides images; other seeds give other labels.

        half: 0 or 1, for levels of the lower or the upper half only; a real number x becomes x / 2 or (x + 1) / 2.
        """
        generator = torch.Generator().manual_seed(seed)
        values = self.head.examples((n, *self.shape), generator).to(self.device)
        if half is not None:
            values = (values + half) / 2 if self.levels is None else values // 2 + half * (self.levels // 2)
        if self.levels is None:
            values = values.to(self.dtype).to(values.dtype)  # as the model sees them
        labels = self.labels.examples(seed, n, self.device) if self.conditional else None
        made = (x.example(n, generator, self.device, self._own_dtype) for x in self.conditions.values())
        return values, Conditioning(labels, self.like_conditions(made))

    def like_conditions(self, values: Iterable[Any]) -> Any:
        """The values, one of each condition, as these are given: one, or in a tuple or a dict."""
        return next(iter(values), None) if None in self.conditions else like(self.condition_shape, values)

    def examples_that_differ(self) -> Iterator[tuple[str, Tensor, Conditioning]]:
        """Yields, for labels and each condition: what it is, and one image with different ones."""
        many = self._how_many_to_try()
        values, given = self.example(n=max(2, min(many, self.labels.accepted)) if self.conditional else many)
        first = given.with_tensors(x if x is None else x[:1].expand_as(x) for x in given.tensors)
        same = values[:1].expand_as(values)
        if given.labels is not None:
            yield "the labels", same, first._replace(labels=given.labels)
        for name, different in named(given.condition).items():
            yield self.conditions[name].what, same, first.with_condition(name, different)

    def _how_many_to_try(self) -> int:
        """How many labels, or conditions, are tried: fewer for a large model."""
        weights = sum(p.numel() for p in self.module.parameters()) or 1  # none may be registered
        most = CHECKED_WORK // (weights * self.shape[1] * self.shape[2])
        return max(FEWEST_DIFFERENT, min(MOST_DIFFERENT, most))

    def examples_to_check(self) -> list[tuple[Tensor, Conditioning]]:
        """Examples other than the recorded ones, mostly of other batch sizes: dark and bright
        images if they are small; partly drawn ones if Python reads numbers off them; and
        random ones, with every label if these are few and the model is small."""
        pixels = self.shape[1] * self.shape[2]
        n = max(1, min(63, CHECKED_PIXELS // pixels))
        extremes = [self.example(1, 1, half=0), self.example(2, 4, half=1)] if n > 3 else []
        if self.conditional:
            n = max(n, min(self._how_many_to_try(), self.labels.accepted))
        if n in (EXAMPLE_BATCH, EXAMPLE_BATCH + 1):
            n = EXAMPLE_BATCH + 2 if self.conditional else 1
        return [*extremes, *self._drawn_in_part(), self.example(3, n)]

    def _drawn_in_part(self) -> Iterator[tuple[Tensor, Conditioning]]:
        """Images as sampling meets them, if Python reads numbers off these: the lowest
        level everywhere, or from the second pixel, the second row or the middle on, and the
        highest level."""
        if self.levels is not None and self.reads_images:
            values, given = self.example(4)
            values[1:] = values[:1]  # two of one image: its statistics are those of the batch
            _, height, width = self.shape
            for drawn in (0, 1, width, height * width // 2):
                pixels = torch.arange(height * width, device=values.device).view(height, width)
                yield values.where(pixels < drawn, 0), given
            yield torch.full_like(values, self.levels - 1), given

    @torch.no_grad()
    def distribution_parameters(self, values: Tensor, given: Conditioning) -> Tensor:
        """values: [N, C, H, W] -> what the head reads, [N, D, H, W, P]."""
        return as_of_several(lambda images: self._parameters(values[images], given.part(images)), len(values))

    def _parameters(self, values: Tensor, given: Conditioning) -> Tensor:
        with computing(self.dtype, self._own_dtype):
            output = self.read(self.run(values, given))
            head = resolved(self.head, output, (len(values), *self.shape))
            return head.arranged(output, self.shape[0])

    def log_probability(
        self,
        values: Tensor,
        given: Conditioning,
        live: nn.Module | None = None,
        read: Callable[[], Container[str]] = tuple,
        ranks: int = 1,
    ) -> Tensor:
        """ln p of images, [n, C, H, W] -> [n], under its own module or a live one, through whose tensors gradients go.
        read: gives the paths of what the forward reads; ranks: how many processes average gradients."""
        if ranks > 1 and live is not None and torch.is_grad_enabled() and ".ranks" not in self.told:
            self.told.add(".ranks")
            tell(
                "the gradients of log_prob are this process's own: DistributedDataParallel averages those of its own "
                "forward alone. To train by log_prob, average them: all_reduce(p.grad, ReduceOp.AVG) for each parameter"
            )
        with (
            self.in_use(),
            computing(self.dtype, self._own_dtype),
            eagerly if live is None else nullcontext(),
            nullcontext(self.module)
            if live is None
            else standing_for(live, self.device, self.dtype, read) as module,
        ):
            given = given.in_dtype(self.dtype)

            def scored(images: slice | list[int]) -> Tensor:
                taken, part = self.encode(values[images]), given.part(images)
                output = self.read(
                    with_any_batch(lambda x: part.call(x, taken, self.form), module, len(taken))
                )
                head = resolved(self.head, output, (len(taken), *self.shape))
                drawn = taken if self.levels is None else values[images].to(self.device)
                return -head.nll(head.arranged(output, self.shape[0]), drawn)

            result = as_of_several(scored, len(values))
        found = () if live is None or not torch.is_grad_enabled() else without_gradients(live, result)
        if new := [path for path in found if path not in self.told]:
            self.told.update(new)
            tell(
                f"log_prob gives no gradients to {', '.join(new)}: eval mode, in which it is computed, computes "
                f"without them, as parts of {type(live).__name__} set other weights in train() or eval(): to train "
                "these, compute the loss from the model itself, in train mode"
            )
        return result

    def replayed(
        self, values: Tensor, given: Conditioning, replay: Callable[[Tensor, Conditioning], Tensor]
    ) -> Tensor:
        """As ``distribution_parameters``. replay: computes the part of the module's output that is read."""
        return self.head.arranged(replay(self.encode(values), given.in_dtype(self.dtype)), self.shape[0])

    @torch.no_grad()
    def run(self, values: Tensor, given: Conditioning) -> Any:
        """values: [N, C, H, W] -> what the module returns."""
        images, given = self.encode(values), given.in_dtype(self.dtype)
        with computing(self.dtype, self._own_dtype):
            if self.held.is_uncopyable:
                return given.call(self.module, images, self.form)
            return with_any_batch(lambda x: given.call(x, images, self.form), self.module, len(images))

    def read(self, returned: Any) -> Tensor:
        """The part of what the module returns that the head reads."""
        return self.form.rows_last(picked(returned, self.output), self.shape[1:])

    @property
    def can_try(self) -> bool:
        """Whether labels may be tried that it perhaps does not take: a wrong index leaves CUDA unusable."""
        return self.device.type == "cpu" and self.held.is_there

    def takes(self, values: Tensor, given: Conditioning) -> bool:
        """Whether the model can be run on this."""
        try:
            with self.in_use():
                self.run(values, given)
        except ModelFailed:
            return False
        return True

    # -- what users give

    def encode(self, values: Tensor) -> Tensor:
        """Values as they are drawn -> images in the plain form from which those that the module takes are made."""
        values = values.to(self.device)
        if self.levels is None:
            return values.to(self.dtype)
        return from_levels(values, self.form.base, self.levels, self.dtype)

    def checked_images(self, images: Tensor) -> Tensor:
        """A user's images as the head draws them, [n, C, H, W]; codes may be [n, H, W]. Raises ValueError."""
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

    def identity(self) -> Iterator[object]:
        """What tells this model from others, besides its forward."""
        yield from (self.shape, self.dtype, self.image_form, type(self.head).__qualname__)
        around = nn.Module()
        vars(around)["head"] = self.head  # which may hold anything
        held = Contents(around)
        yield from described(held.settings)
        yield from chain.from_iterable(sorted(held.tensors.items()))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the module may be run: without autocast, and locked if it can't be copied."""
        with ExitStack() as stack:
            if self.held.uncopyable is not None:
                stack.enter_context(exclusively(self.held.uncopyable))
            for device in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield


@contextmanager
def scripted_parts_named(module: nn.Module) -> Iterator[None]:
    """A context whose errors name the first scripted part of a model that is not captured."""
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
