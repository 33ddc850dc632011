"""Compares a program with the model that it was captured from, distribution by distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import module_paths
from pixelcnn_fast.capture.record.replay import NotInFloat64, Replay
from pixelcnn_fast.check.fast_products import FastProducts
from pixelcnn_fast.check.tolerance import (
    EXACT,
    IMPRECISE,
    UNDEFINED,
    UNSEEN,
    WRONG,
    check_error,
    check_finite,
    rounding_unit,
    slack,
)
from pixelcnn_fast.passes.precision import in_dtype
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

Examples = Sequence[tuple[Tensor, Conditioning]]  # values [N, C, H, W], and what else the model takes


class Expected(NamedTuple):
    """What a program is compared with, on examples that it was not captured with.

    by_model: the model's parameters [N, D, H, W, P] for each; exact: those of the recorded
    calls in float64, if they can be made there; check_last: compares these calls in the
    model's dtype with the model on the last example, where that was not done yet.
    """

    examples: Examples
    by_model: Sequence[Tensor]
    exact: Sequence[Tensor] | None
    check_last: Callable[[], None] | None = None


def expectations(model: WrappedModel, replay: Replay) -> Expected:
    """Runs model and recorded calls on other examples. Raises CaptureMismatch if they differ, or NonFiniteLogits."""
    examples = model.examples_to_check()
    with module_paths(model.module, []):  # it may look at its hooks, which were there when it was recorded
        by_model = list(by_module(model, examples))
    if model.dtype == torch.float64:
        return Expected(examples, by_model, by_model)

    @cache
    def exact(at: int) -> Tensor:
        with FastProducts():
            return model.replayed(*examples[at], replay.in_float64).cpu()

    def check(at: int) -> None:
        as_is = model.replayed(*examples[at], replay).cpu()
        check_recorded(as_is, by_model[at], partial(exact, at), model)

    for at in range(len(examples) - 1):
        check(at)
    check_last = partial(check, len(examples) - 1)
    try:
        return Expected(examples, by_model, [exact(at) for at in range(len(examples))], check_last)
    except NotInFloat64:
        check_last()
        return Expected(examples, by_model, None)


def check_recorded(found: Tensor, expected: Tensor, exact: Callable[[], Tensor], model: WrappedModel) -> None:
    """Compares what the recorded calls give in the model's dtype with the model. Raises
    CaptureMismatch. exact: computes what the calls give in float64; it may raise NotInFloat64.

    The results are the same bit by bit, unless PyTorch takes sums in another order, for
    example for single images, where an axis of size 1 may have any stride. Then they may
    differ by as much as rounding matters, which ``exact`` tells.
    """
    if torch.equal(found, expected):
        return
    try:
        yardstick = exact()
    except NotInFloat64:
        yardstick = found
    error, own = (model.head.distance(found, other, model.shape[0]) for other in (expected, yardstick))
    least, factor = 4 * rounding_unit(model) + slack(expected, model, 4), 64 if len(found) == 1 else 4
    check_error(error, least + factor * own.max(), model, UNSEEN)
    mean = least.mean() / 16 + factor / 2 * own.mean()
    check_error(error.mean().expand_as(error), mean.expand_as(error), model, UNSEEN)


def check_program(
    program: Program,
    conditions: ConditionProgram,
    model: WrappedModel,
    expected: Expected,
    factor: float = 2,
    *,
    cast: Program | None = None,
) -> None:
    """Compares a program with the recorded calls and, once cast, with the model. Raises
    CaptureMismatch. factor: as for ``check_rounded``; cast: the program in the model's dtype, if there is one."""
    # On the CPU, float64 is known to exist.
    on_cpu = replace(program.converted(Tensor.cpu), device=torch.device("cpu"))
    computed = on_examples(in_dtype(on_cpu, torch.float64), conditions, expected.examples)
    if expected.exact is not None:
        check_exact(computed, model, expected.exact)
    if model.dtype != torch.float64:
        if expected.exact is not None:
            # The program is right; one example tells roughly how much it rounds, hence 8.
            last = slice(-1, None)
            expected = expected._replace(examples=expected.examples[last], by_model=expected.by_model[last])
            computed, factor = computed[last], 8
        cast = cast or in_dtype(program, model.dtype)
        check_rounded(cast, conditions, model, computed, expected, factor)


@torch.inference_mode()
def on_examples(program: Program, conditions: ConditionProgram, examples: Examples) -> list[Tensor]:
    """What plain PyTorch computes of the program for each example, [N, D, H, W, P]."""
    wanted = condition_operands(program.instructions)
    found = [conditions(wanted, given, len(values)) for values, given in examples]
    condition = {
        operand: torch.cat([operands[operand] for operands in found]).to(program.device, program.dtype)
        for operand in wanted
    }
    levels = torch.cat([values for values, _ in examples]).to(program.device)
    with FastProducts():
        together = evaluate(program, levels, condition.__getitem__).cpu()
    return list(together.split([len(values) for values, _ in examples]))


def check_exact(computed: Sequence[Tensor], model: WrappedModel, exact: Sequence[Tensor]) -> None:
    """Compares a program, of which ``computed`` comes, with the recorded calls in float64.

    Besides ``EXACT``, they may differ by a thousand roundings of the parameters, which
    matter for large ones. They are compared at a high temperature, too, since what is all
    but certain hides much.
    """
    head = model.head
    why = UNSEEN if model.dtype == torch.float64 else WRONG
    for found, expected in zip(computed, exact, strict=True):
        for one, other in ((found, expected), (head.hot(found), head.hot(expected))):
            if one is None or other is None:
                continue
            error = head.distance(one, other, model.shape[0])
            if not bool((error <= EXACT).all()):
                moved = slack(other, model, 1000, torch.finfo(torch.float64).eps)
                check_error(error, EXACT + moved, model, UNDEFINED if bool(error.isnan().any()) else why)


def check_rounded(
    program: Program,
    conditions: ConditionProgram,
    model: WrappedModel,
    computed: Sequence[Tensor],
    expected: Expected,
    factor: float,
) -> None:
    """Compares a program with a model in a dtype in which both round. computed: the program
    in float64, the yardstick, which is right if the recorded calls could be made there.

    The program's error may be at most ``factor`` times the model's. This holds for the
    largest error and for the mean, since large roundings at a few pixels would hide an
    error at all of them. If the yardstick may be wrong, the model's largest error may be at
    most four times (or ``factor``) the program's, which passes through fewer roundings: a
    wrong program makes a wrong yardstick, from which the model is further. Both are allowed
    a few roundings of the parameters.
    """
    head, channels = model.head, model.shape[0]
    plain = on_examples(program, conditions, expected.examples)
    for exact, rounded, by_model in zip(computed, plain, expected.by_model, strict=True):
        own, theirs = (head.distance(x, exact, channels) for x in (rounded, by_model))
        least = 4 * rounding_unit(model) + slack(by_model, model, 4)
        most = least + max(4, factor) * own.max()
        if expected.exact is None:
            check_error(theirs, most, model, UNSEEN)
        elif expected.check_last is not None:
            # Where the model does what was recorded, up to few and fine roundings, one forward is spared.
            if rounding_unit(model) > torch.finfo(torch.float32).eps or not bool((theirs <= most).all()):
                expected.check_last()
        check_error(own, least + factor * theirs.max(), model, IMPRECISE)
        mean = least.mean() + factor * theirs.mean()
        check_error(own.mean().expand_as(own), mean.expand_as(own), model, IMPRECISE)


def by_module(model: WrappedModel, examples: Examples) -> Iterator[Tensor]:
    """Yields the model's parameters by example. Raises NonFiniteLogits if they are not finite."""
    for values, given in examples:
        parameters = model.distribution_parameters(values, given)
        check_finite(parameters, model.head)
        yield parameters.cpu()
