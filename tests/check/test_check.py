"""The check can fail: every mutant of a captured program that moves a probability is found, for models of any dtype,
and also where a level is masked with -1e9."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import models
from pixelcnn_fast.check.against_model import Expected, check_program, expectations
from pixelcnn_fast.compiler import capture_model, compile_model
from pixelcnn_fast.errors import CaptureMismatch
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.passes.pipeline import simplified
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.foreign import LEVELS, NETWORKS
from tests.tiers import tiered

IMAGES, MOVED = 200, 1e-6
MOST = 40  # mutants of one network, or a few more


class Masked(nn.Module):
    """A network whose last level is never drawn, as people forbid one."""

    penalty: Tensor

    def __init__(self, inner: nn.Module, number: float) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("penalty", torch.zeros(LEVELS).index_fill(0, torch.tensor(LEVELS - 1), number))

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        logits = self.inner(x, *labels)  # [N, levels, ...]
        return logits + self.penalty.view(-1, *[1] * (logits.dim() - 2))


class InOneDtype(nn.Module):
    """A network that refuses to be run in another dtype."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        assert next(self.parameters()).dtype == self.dtype
        return self.inner(x, *labels)


@dataclass(frozen=True)
class Variant:
    """A network in a dtype, whose last level is masked with a number if there is one; only: in no other dtype."""

    network: str
    dtype: torch.dtype = torch.float64
    mask: float | None = None
    only: bool = False

    def model(self) -> WrappedModel:
        network = NETWORKS[self.network]
        model = network.model()
        model = (model if self.mask is None else Masked(model, self.mask)).to(self.dtype)
        return WrappedModel(
            InOneDtype(model, self.dtype) if self.only else model, network.shape, **network.settings()
        )


LEAST = torch.finfo(torch.float32).min
VARIANTS = {
    **{
        name: Variant(name)
        for name in (
            "cropped shifts",
            "channels last",
            "interleaved",
            "one-hot",
            "binary",
            "rare activations",
        )
    },
    "masked": Variant("in-place masks", mask=-1e9),
    "masked, with labels": Variant("dilated gated", mask=-1e9),
    "float32, masked": Variant("dilated gated", torch.float32, -1e9),
    "float32, masked with the least number": Variant("functional", torch.float32, LEAST),
    "bfloat16": Variant("scaled image", torch.bfloat16),
    "bfloat16, masked": Variant("residual added twice", torch.bfloat16, -1e9),
    "float16": Variant("dilated gated", torch.float16),
    "float16, masked": Variant("thirds", torch.float16, -6e4),
    "only float32": Variant("rare activations", torch.float32, -1e9, only=True),
    "only bfloat16": Variant("scaled image", torch.bfloat16, only=True),
    "only bfloat16, masked": Variant("dilated gated", torch.bfloat16, -1e9, only=True),
    "only float16": Variant("one-hot", torch.float16, only=True),
    "only float16, with labels": Variant("dilated gated", torch.float16, only=True),
}


# -- mutants


def another(x: Tensor, at: int, factor: float) -> Tensor:
    """x with one of its elements, not zero where there is one, changed."""
    changed = x.clone().contiguous().view(-1)
    candidates = changed.nonzero().flatten()
    index = candidates[at % len(candidates)] if len(candidates) else at % len(changed)
    changed[index] = changed[index] * factor if changed[index] != 0 else factor - 1
    return changed.view(x.shape)


def mutants_of_step(step: Step, at: int) -> Iterator[tuple[str, tuple[Step, ...]]]:
    yield f"without {step.kind}", ()
    yield f"{step.kind} twice", (step, step)
    yield f"another alpha of {step.kind}", (replace(step, alpha=1.01 * step.alpha),)
    if step.scale is not None and step.shift is not None:
        yield "another scale", (replace(step, scale=another(step.scale, at, 1.001)),)
        yield "another shift", (replace(step, shift=another(step.shift, at, 1.001)),)
    if (operand := step.condition) is not None:
        index = operand.index.roll(1, -1)
        yield "the condition's channels rolled", (replace(step, condition=replace(operand, index=index)),)
        index = operand.index.clone()
        index.view(-1)[at % index.numel()] = index.view(-1)[(at + 1) % index.numel()]
        yield "one channel of the condition", (replace(step, condition=replace(operand, index=index)),)
    if step.kind == "relu":
        yield "leaky", (replace(step, kind="leaky_relu", alpha=0.01),)


def mutants_of(i: Instruction, at: int) -> Iterator[tuple[str, Instruction]]:
    for k, step in enumerate(i.steps):
        for what, steps in mutants_of_step(step, at):
            yield what, replace(i, steps=(*i.steps[:k], *steps, *i.steps[k + 1 :]))
    if isinstance(i, FromLevels) and i.table is not None:
        yield "another entry of the table", replace(i, table=another(i.table, at, 1.001))
    if isinstance(i, Convolution):
        if i.bias is not None:
            yield "another bias", replace(i, bias=another(i.bias, at, 1.001))
        for k, tap in enumerate(i.taps):
            before, after = i.taps[:k], i.taps[k + 1 :]
            yield f"without tap {tap.dy, tap.dx}", replace(i, taps=(*before, *after))
            weight = replace(tap, weight=another(tap.weight, at, 1.001))
            yield f"another weight at {tap.dy, tap.dx}", replace(i, taps=(*before, weight, *after))
            if k % 3 == at % 3:
                moved = replace(tap, dy=tap.dy - 1)
                yield f"tap {tap.dy, tap.dx} moved up", replace(i, taps=(*before, moved, *after))


def mutants(program: Program) -> Iterator[tuple[str, Program]]:
    for at, i in enumerate(program.instructions):
        for what, mutant in mutants_of(i, 7 * at):
            instructions = (*program.instructions[:at], mutant, *program.instructions[at + 1 :])
            yield f"%{i.out} {i.name}: {what}", replace(program, instructions=instructions)


def mutants_of_labels(conditions: ConditionProgram) -> Iterator[tuple[str, ConditionProgram]]:
    """What is computed from labels, or conditions, with another weight."""
    for at, (slot, leaf) in enumerate(conditions._leaves.items()):
        if leaf.is_floating_point() and leaf.numel() > 1:
            leaves = {**conditions._leaves, slot: another(leaf, 5 * at, 1.001)}
            yield (
                f"a weight of shape {list(leaf.shape)}",
                ConditionProgram(conditions._calls, leaves, conditions._given),
            )


# -- the tests


def checked(model: WrappedModel) -> tuple[Program, ConditionProgram, Expected]:
    """-> its program, which passes, what is computed of its conditions, and what both are compared with"""
    found = capture_model(model)
    program, expected = simplified(found.program), expectations(model, found.replay)
    check_program(program, found.conditions, model, expected)
    return program, found.conditions, expected


def probabilities(program: Program, conditions: ConditionProgram, model: WrappedModel) -> Tensor:
    """On 200 random images."""
    values, given = model.example(seed=99, n=IMAGES)
    condition = conditions(condition_operands(program.instructions), given, IMAGES)
    return evaluate(program, values, lambda operand: condition[operand].to(program.dtype)).softmax(-1)


QUICK = (
    "cropped shifts",
    "interleaved",
    "masked, with labels",
    "bfloat16, masked",
    "only float16, with labels",
)


@pytest.mark.parametrize("name", tiered(VARIANTS, lambda name: name in QUICK))
def test_every_mutant_that_moves_a_probability_is_found(name: str) -> None:
    model = VARIANTS[name].model()
    program, conditions, expected = checked(model)
    before, moved, missed = probabilities(program, conditions, model), 0, []
    mutated = list(mutants(program))
    tried = [(what, mutant, conditions) for what, mutant in mutated[:: max(1, len(mutated) // MOST)]]
    tried += [(what, program, mutant) for what, mutant in mutants_of_labels(conditions)]
    for what, mutant, its_conditions in tried:
        if not (probabilities(mutant, its_conditions, model) - before).abs().max() <= MOVED:
            moved += 1
            try:
                check_program(mutant, its_conditions, model, expected)
                missed.append(what)
            except CaptureMismatch:
                pass
    assert moved > 15 and not missed


def test_a_mutant_is_found_where_a_level_is_all_but_certain() -> None:
    """At temperature 1, what it changes is less than any rounding."""
    model = Variant("functional", mask=60.0).model()
    program, conditions, expected = checked(model)
    *before, last = program.instructions
    assert isinstance(last, Convolution) and last.bias is not None
    mutant = replace(
        program, instructions=(*before, replace(last, bias=last.bias + torch.arange(LEVELS).to(last.bias)))
    )
    before_and_after = (probabilities(x, conditions, model) for x in (program, mutant))
    assert (next(before_and_after) - next(before_and_after)).abs().max() < 1e-9
    with pytest.raises(CaptureMismatch):
        check_program(mutant, conditions, model, expected)


@pytest.mark.parametrize("shape", [(1, 6, 6), (1, 28, 28)])
def test_a_mutant_of_any_label_is_found(shape: tuple[int, int, int]) -> None:
    """Also where images are so large that few of them are compared."""
    model = WrappedModel(models.PixelCNN(1, 8, 1, n_classes=10).double(), shape)
    program, conditions, expected = checked(model)
    (slot,) = (slot for slot, leaf in conditions._leaves.items() if leaf.shape[0] == 10)
    for label in range(10):
        table = conditions._leaves[slot].clone()
        table[label] += 0.01
        mutant = ConditionProgram(conditions._calls, {**conditions._leaves, slot: table}, conditions._given)
        with pytest.raises(CaptureMismatch):
            check_program(program, mutant, model, expected)


@pytest.mark.parametrize(
    "name",
    ["masked", "float32, masked", "bfloat16, masked", "float16", "only float16", "only bfloat16, masked"],
)
def test_a_mutant_is_not_let_through_by_the_model_s_own_dtype(name, monkeypatch):
    """A weight that is off by one part in 10^5 is less than rounding in half precision."""

    def wrong(program: Program) -> Program:
        *before, last = program.instructions
        assert isinstance(last, Convolution)
        tap = replace(last.taps[0], weight=1.00001 * last.taps[0].weight)
        return replace(program, instructions=(*before, replace(last, taps=(tap, *last.taps[1:]))))

    compile_model(VARIANTS[name].model())
    monkeypatch.setattr(pipeline, "SIMPLIFYING", (*pipeline.SIMPLIFYING, wrong))
    with pytest.raises(CaptureMismatch, match=r"total variation; 1e-09 is allowed"):
        compile_model(VARIANTS[name].model())
