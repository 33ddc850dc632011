"""From a model to what the runtimes execute: capture, causality, passes, and the check against the model itself."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.private_copy import eagerly
from pixelcnn_fast.capture.recorder import module_paths
from pixelcnn_fast.capture.reevaluation import Reevaluation
from pixelcnn_fast.capture.replay import NotInFloat64, Replay
from pixelcnn_fast.capture.weights import WeightRecorder
from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.errors import CaptureMismatch, NonFiniteLogits, Unsupported
from pixelcnn_fast.heads import Head
from pixelcnn_fast.passes.pipeline import Watch, for_runtime, phased, show, simplified
from pixelcnn_fast.passes.precision import in_dtype
from pixelcnn_fast.program.causality import check_causal
from pixelcnn_fast.program.conditions import Conditions, Given
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Convert, Program, condition_operands
from pixelcnn_fast.runtimes import Precision, RuntimeName
from pixelcnn_fast.telling import tell

STORED: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}  # as narrow weights
Examples = Sequence[tuple[Tensor, Given]]  # values [N, C, H, W], and what the model takes besides images
MOST_SETTLED = 64  # images that are compared at once, on what a user gives besides them
HOT = 16  # the temperature at which logits are compared besides 1
EXACT = 1e-9  # how far a program's distributions may be from the model's if both compute in float64


@dataclass(frozen=True)
class Compiled:
    """A model as the runtimes take it.

    program: what each runtime's own is made of. conditions: the part of the model that depends on the condition alone,
    for ``program.condition_operands``; whole: the program before it was split into phases, if it is to be compared with
    the model again: Python reads numbers off labels or conditions.
    normalised: whether the model's logits are log-probabilities, whose closing softmax the program leaves out.
    weights: in what the calls on the program's weights were recorded; first: what it was when they were, if it has
    other weights now. Neither is kept in a pickle.
    """

    program: PhasedProgram
    conditions: Conditions
    normalised: bool
    precision: Precision
    weights: WeightRecorder | None
    whole: Program | None
    first: Compiled | None = None

    def having(self, weights: MutableMapping[str, Tensor], does_the_same: bool = False) -> Compiled | None:
        """The same with other weights of the model, by name, among which it puts those into which the model writes;
        None if it must be compiled anew, since what is zero, or a number that Python read, is another now, or since it
        comes out of a pickle. does_the_same: whether it is known that such numbers do not matter."""
        first = self.first or self
        if first.weights is None:
            return None
        constants = (first.evaluation_whatever_is_read if does_the_same else first.evaluation)(weights)
        if constants is None:
            return None
        in_turn = iter(constants)
        return replace(first.converted(lambda _: next(in_turn)), first=first)

    @cached_property
    def evaluation(self) -> Reevaluation:
        """What evaluates its constants from weights."""
        return self._evaluating(does_the_same=False)

    @cached_property
    def evaluation_whatever_is_read(self) -> Reevaluation:
        return self._evaluating(does_the_same=True)

    def _evaluating(self, does_the_same: bool) -> Reevaluation:
        assert self.weights is not None
        constants: list[Tensor] = []

        def seen(x: Tensor) -> Tensor:
            constants.append(x)
            return x

        self.converted(seen)
        return self.weights.evaluating(constants, does_the_same)

    def converted(self, convert: Convert) -> Compiled:
        """The same with its constants converted, in an order that is always the same."""
        program, conditions = self.program.converted(convert), self.conditions.converted(convert)
        whole = None if self.whole is None else self.whole.converted(convert)
        return replace(self, program=program, conditions=conditions, whole=whole)

    def __getstate__(self) -> dict[str, Any]:
        kept = {field.name: getattr(self._alone, field.name) for field in fields(self)}
        return {**kept, "weights": None, "first": None}

    @cached_property
    def _alone(self) -> Compiled:
        """The same with constants that share no storage: a pickle would hold what is shared again and again. It is
        kept, since a pickle for another process may only refer to it."""

        def alone(x: Tensor) -> Tensor:
            return x if x.nbytes == x.untyped_storage().nbytes() or not x.is_contiguous() else x.clone()

        return self.converted(alone)

    def program_for(self, runtime: RuntimeName, watch: Watch | None = None) -> PhasedProgram:
        """What this runtime executes."""
        return for_runtime(runtime, self.program, watch)

    def listing(self, runtime: RuntimeName) -> ProgramListing:
        """The program of the runtime that 'auto' stands for, to print or to ask for its costs."""
        stored = STORED.get(self.precision, self.program.dtype)
        return ProgramListing(self.program_for(runtime), runtime, stored.itemsize)


def compiled(model: WrappedModel, precision: Precision = "same", watch: Watch | None = None) -> Compiled:
    """Captures the model, whose head then has its layout, and compiles it. precision: as for ``Sampler``. watch: a
    function that is shown the captured program, and the program after each pass.

    Raises ValueError for a precision that does not go with the model's dtype, and what ``Sampler`` raises.
    """

    def prepared(program: Program) -> Program:
        check_causal(program)
        return simplified(program, watch)

    with collecting_later():
        program, conditions = captured(model, prepared, watch)
        stored = stored_dtype(program, precision)
        with model.weights:
            result = phased(program, stored, watch)
    whole = program if conditions.unsettled else None
    return Compiled(result, conditions, program.normalised, precision, model.weights, whole)


def captured(
    model: WrappedModel,
    prepared: Callable[[Program], Program] = lambda program: program,
    watch: Watch | None = None,
) -> tuple[Program, Conditions]:
    """Captures the model and compares the program with it -> (the program in the model's dtype, its conditions).

    prepared: what is done to a program after its capture, before it is compared.
    The program is made and compared in float64, where rounding hides no mistake, and then cast.
    Raises CaptureMismatch if program and model differ, NonFiniteLogits if the model's logits are not finite.
    """
    with model.in_use(), eagerly, collecting_later():
        model.settle_condition()
        program, conditions, replay = recorded(model, prepared, watch)
        check_program(program, conditions, model, expectations(model, replay))
        with model.weights:
            program = in_dtype(program, model.dtype)
        show(in_dtype.__name__, program, watch)
        return program, conditions


@contextmanager
def collecting_later() -> Iterator[None]:
    """Within the context, Python does not look for garbage: with so many small objects, that takes a fifth of the
    time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def recorded(
    model: WrappedModel, prepared: Callable[[Program], Program], watch: Watch | None = None
) -> tuple[Program, Conditions, Replay]:
    """The model's program, prepared, its conditions, and what was recorded: captured, and not compared yet."""
    program, conditions, parameters, replay = model.captured(*model.example())
    check_finite(parameters, model.head)
    show("capture", program, watch)
    model.explore(conditions, condition_operands(program.instructions))
    with model.weights:
        return prepared(program), conditions, replay


def settle(program: Program, conditions: Conditions, model: WrappedModel, given: Given) -> None:
    """Compares program and model on labels and conditions that a user gives, if Python reads numbers off them.

    Raises Unsupported if they differ.
    """
    n = given.images
    batches = [slice(image, image + 1) for image in range(n)]  # each image alone, and together
    batches += [slice(start, start + MOST_SETTLED) for start in range(0, n if n > 1 else 0, MOST_SETTLED)]
    if given.labels is not None and not any(read.of_condition for read in conditions.unsettled):
        batches = [
            labels for labels in batches if tuple(given.labels[labels].tolist()) not in conditions.settled
        ]
    if not batches:
        return
    for chosen in batches:
        part = given.part(chosen)
        try:
            compare(program, conditions, model, [(model.example(5, part.images)[0], part)], factor=50)
        except CaptureMismatch as error:
            raise Unsupported(
                "for these labels, or this condition, the model does something else than when it was captured. Python "
                f"took {conditions.unsettled[-1].what}: compute with the tensor itself (torch.where in place of an if)"
            ) from error
        if part.labels is not None:
            conditions.settled.add(tuple(part.labels.tolist()))


def warn_of_what_changes_nothing(model: WrappedModel) -> None:
    """Warns if the model gives the same distributions for different labels or conditions."""
    for name, values, given in model.examples_that_differ():
        with model.in_use(), eagerly:
            parameters = model.parameters(values, given).cpu()
        moved = model.head.distance(parameters, parameters[:1].expand_as(parameters), model.shape[0])
        if bool((moved <= (4 * rounding_unit(model) + slack(parameters, model, 4)) / 64).all()):
            tell(
                f"the {name} change{'s' if name == 'condition' else ''} nothing in the model's output: for the same "
                f"image, {len(values)} of them gave the same distributions. Does the model's forward do anything with "
                f"the {name}, and are the weights loaded?"
            )


def stored_dtype(program: Program, precision: Precision) -> torch.dtype | None:
    """What the program's weights are rounded to, if they are to be stored in fewer bits."""
    if precision != "same" and program.dtype != torch.float32:
        raise ValueError(f"precision={precision!r} goes with a float32 model, this one is {program.dtype}")
    return STORED.get(precision)


# -- the check


class Expected(NamedTuple):
    """What a program is compared with, on images and conditions other than those that it was captured with; of two
    large images, on the random one alone: whatever the values, a program does the same.

    by_model: for each example, the model's parameters [N, D, H, W, P]; exact: what was recorded gives in float64, or
    None if it can't be run there.
    """

    examples: Examples
    by_model: Sequence[Tensor]
    exact: Sequence[Tensor] | None


def expectations(model: WrappedModel, replay: Replay) -> Expected:
    """Runs the model, and what was recorded, on other examples.

    Raises CaptureMismatch if these differ, NonFiniteLogits if the model's logits are not finite.
    """
    examples = model.examples_to_check()
    with module_paths(model.module, []):  # its hooks were there when it was recorded, and it may look at them
        by_model = list(by_module(model, examples))
    if model.dtype == torch.float64:
        return Expected(examples, by_model, by_model)

    @cache
    def exact(at: int) -> Tensor:
        return model.replayed(*examples[at], replay.in_float64).cpu()

    as_is = [model.replayed(values, given, replay).cpu() for values, given in examples]
    check_recorded(as_is, by_model, exact, model)
    first = 0 if len(examples) > 2 else 1
    try:
        in_float64 = [exact(at) for at in range(first, len(examples))]
    except NotInFloat64:
        in_float64 = None
    return Expected(examples[first:], by_model[first:], in_float64)


def check_recorded(
    as_is: Sequence[Tensor], by_model: Sequence[Tensor], exact: Callable[[int], Tensor], model: WrappedModel
) -> None:
    """Compares what was recorded with the model: the same calls in the same dtype. exact: an example's number -> what
    was recorded gives in float64; may raise NotInFloat64.

    The results are the same bit by bit, unless PyTorch takes sums in another order, as it does for single images: an
    axis of size 1 may have any stride. They may then differ by as much as rounding matters, which ``exact`` tells.
    """
    for at, (found, expected) in enumerate(zip(as_is, by_model, strict=True)):
        if torch.equal(found, expected):
            continue
        try:
            yardstick = exact(at)
        except NotInFloat64:
            yardstick = found
        error, own = (model.head.distance(found, other, model.shape[0]) for other in (expected, yardstick))
        least, factor = 4 * rounding_unit(model) + slack(expected, model, 4), 64 if len(found) == 1 else 4
        check_error(error, least + factor * own.max(), model, UNSEEN)
        mean = least.mean() / 16 + factor / 2 * own.mean()
        check_error(error.mean().expand_as(error), mean.expand_as(error), model, UNSEEN)


def check_program(program: Program, conditions: Conditions, model: WrappedModel, expected: Expected) -> None:
    """Compares a program with what was recorded, and once it is cast, with the model: distribution by distribution.

    Raises CaptureMismatch if they differ.
    """
    computed = on_examples(in_dtype(on_cpu(program), torch.float64), conditions, expected.examples)
    examples, by_model, exact = expected
    if exact is not None:
        check_exact(computed, model, exact)
    if model.dtype != torch.float64:
        cast = in_dtype(program, model.dtype)
        if exact is None:
            check_rounded(cast, conditions, model, computed, examples, by_model)
        else:  # one example tells how much it rounds
            check_rounded(
                cast, conditions, model, computed[-1:], examples[-1:], by_model[-1:], 8, is_exact=True
            )


@torch.inference_mode()
def on_examples(program: Program, conditions: Conditions, examples: Examples) -> list[Tensor]:
    """What plain PyTorch makes of the program in its dtype: for each example, parameters [N, D, H, W, P]."""
    wanted = condition_operands(program.instructions)
    found = [conditions(wanted, given, len(values)) for values, given in examples]
    condition = {
        operand: torch.cat([operands[operand] for operands in found]).to(program.device, program.dtype)
        for operand in wanted
    }
    levels = torch.cat([values for values, _ in examples]).to(program.device)
    together = evaluate(program, levels, condition.__getitem__).cpu()
    return list(together.split([len(values) for values, _ in examples]))


def on_cpu(program: Program) -> Program:
    """The program where float64 is known to exist."""
    return replace(program.converted(Tensor.cpu), device=torch.device("cpu"))


def check_exact(computed: Sequence[Tensor], model: WrappedModel, exact: Sequence[Tensor]) -> None:
    """Compares a program with what was recorded, in float64. computed: by the program, ``on_examples``.

    Apart from ``EXACT``, they may differ by what a thousand roundings of the parameters do, which matters for large
    ones that are not masks. Logits are compared at a high temperature, too: a level that is all but certain hides much.
    """
    # Logits that are read off probabilities are rounded near 1.
    gives_logits = model.head.of_logits and not getattr(model.head, "probabilities", False)
    temperatures = (1, HOT) if gives_logits else (1,)
    why = UNSEEN if model.dtype == torch.float64 else WRONG
    for found, expected in zip(computed, exact, strict=True):
        for temperature in temperatures:
            one, other = found / temperature, expected / temperature
            error = model.head.distance(one, other, model.shape[0])
            if not bool((error <= EXACT).all()):
                moved = slack(other, model, 1000, torch.finfo(torch.float64).eps)
                check_error(error, EXACT + moved, model, UNDEFINED if bool(error.isnan().any()) else why)


def compare(
    program: Program, conditions: Conditions, model: WrappedModel, examples: Examples, factor: float = 2
) -> None:
    """Compares a program with a model, without what was recorded. Raises CaptureMismatch if they differ, and what
    ``by_module`` does."""
    computed = on_examples(in_dtype(on_cpu(program), torch.float64), conditions, examples)
    by_model = list(by_module(model, examples))
    if model.dtype == torch.float64:
        check_exact(computed, model, by_model)
    else:
        check_rounded(program, conditions, model, computed, examples, by_model, factor)


def check_rounded(
    program: Program,
    conditions: Conditions,
    model: WrappedModel,
    computed: Sequence[Tensor],
    examples: Examples,
    by_model: Iterable[Tensor],
    factor: float = 2,
    is_exact: bool = False,
) -> None:
    """Compares a program with a model in a dtype in which both round. computed: by the program in float64,
    ``on_examples``, the yardstick; is_exact: whether that is known to be right.

    The program's error may be at most twice (``factor``) that of plain PyTorch, which is the model's. The other way
    around, unless the yardstick is right, the model's may be at most four times (or ``factor``) the program's, which
    passes through fewer roundings: a wrong program, which makes a wrong yardstick, is no further from that than its own
    rounding, but the model is. Both are allowed a few roundings of the parameters. That holds for the largest error and
    for the mean: a model that rounding changes much at a few pixels would hide a program that is wrong at all of them.
    """
    head, channels = model.head, model.shape[0]
    plain = on_examples(program, conditions, examples)
    for exact, rounded, expected in zip(computed, plain, by_model, strict=True):
        own, theirs = (head.distance(x, exact, channels) for x in (rounded, expected))
        least = 4 * rounding_unit(model) + slack(expected, model, 4)
        if not is_exact:
            check_error(theirs, least + max(4, factor) * own.max(), model, UNSEEN)
        check_error(own, least + factor * theirs.max(), model, IMPRECISE)
        mean = least.mean() + factor * theirs.mean()
        check_error(own.mean().expand_as(own), mean.expand_as(own), model, IMPRECISE)


def by_module(model: WrappedModel, examples: Examples) -> Iterator[Tensor]:
    """For each example, the parameters that the model gives. Raises NonFiniteLogits if they are not finite."""
    for values, given in examples:
        parameters = model.parameters(values, given)
        check_finite(parameters, model.head)
        yield parameters.cpu()


def slack(parameters: Tensor, model: WrappedModel, roundings: float, unit: float | None = None) -> Tensor:
    """How far distributions move if each parameter is a bit larger or smaller, by so many roundings: [N, D, H, W].
    unit: of one rounding, if not in the model's dtype."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, parameters.shape, generator=generator).mul_(2).sub_(1)
    moved = parameters.double() * (1 + roundings * (unit or rounding_unit(model)) * sign)
    return model.head.distance(moved, parameters, model.shape[0])


def rounding_unit(model: WrappedModel) -> float:
    """The relative error of one rounding in what the model computes in."""
    # Not cudnn.allow_tf32, which raises where convolutions and recurrences differ.
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it at run time
    if model.device.type == "cuda" and model.dtype == torch.float32 and conv.fp32_precision == "tf32":
        return 2.0**-11  # of TF32, in convolutions
    return torch.finfo(model.dtype).eps


UNSEEN = (
    "Something in the model depends on the image, the condition or the batch in a way that capture can't see, such as "
    "a number that is read in Python (.item(), NumPy), a branch, or what an earlier call left behind. Compute it with "
    "tensor operations"
)
WRONG = "Capture did not follow one of the model's calls"
UNDEFINED = (
    "The program divides by zero, or multiplies infinity by zero, where the model's torch.where or masked_fill leaves "
    "the result out: make what is divided by, or the exponent, harmless before"
)
IMPRECISE = (
    "The program rounds more than the model: large numbers cancel in the way in which it computes one of the model's "
    "calls. Scale them down"
)


def check_error(error: Tensor, allowed: Tensor, model: WrappedModel, reason: str) -> None:
    """error, allowed: of each distribution, [N, D, H, W]. Raises CaptureMismatch if one is too large, or NaN."""
    if bool((error <= allowed).all()):
        return
    worst = int((error - allowed).nan_to_num(math.inf).argmax())
    read = f" It was taken for granted that {'; '.join(model.branches)}." if model.branches else ""
    _, distribution, row, column = (int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    raise CaptureMismatch(
        f"on random images the captured program differs from the model by up to {error.flatten()[worst].item():.3g} "
        f"({model.head.distance_name}; {allowed.flatten()[worst].item():.1g} is allowed), in distribution "
        f"{distribution} at row {row}, column {column}.{read} {reason}, or use Sampler(..., runtime='reference'), "
        "which runs the model itself. If you find no such thing, please report this with the model"
    )


def check_finite(logits: Tensor, head: Head) -> None:
    """logits: [N, C, H, W, L]. Raises NonFiniteLogits, naming the first sub-pixel whose logits are not finite."""
    bad = ~head.comparable(logits).isfinite()
    if bool(bad.any()):
        raise NonFiniteLogits(*bad.nonzero()[0, :4].tolist())
