"""Programs that break a rule are refused, and the error names the rule."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pixelcnn_fast.errors import InvalidProgram, Unsupported
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import ConditionOperand, Read, Step, Tap
from pixelcnn_fast.program.phased import Phase, PhasedProgram, Run, Scan, Storage, Wavefront
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.verify import verify


def weight(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


LEVELS = FromLevels(0, 1, "input")
CONV = Convolution(1, 4, "conv", (Tap(0, -1, 0, weight(1, 4)), Tap(0, 0, -1, weight(1, 4))), weight(4))
GATE = Pointwise(2, 4, "gate", Read(1), steps=(Step("multiply", value=Read(1)),))
LOGITS = Convolution(3, 3, "logits", (Tap(2, 0, 0, weight(4, 3)),))


def program(*instructions: Instruction) -> Program:
    return Program((1, 4, 5), 3, instructions, (3,), torch.float64)


VALID = program(LEVELS, CONV, GATE, LOGITS)
INDEX = torch.zeros(4, 5, 3, dtype=torch.long)


def changing(**changes: dict[str, Any]) -> Program:
    """The valid one, with other fields of instructions, by their names."""
    return program(*(replace(i, **changes.get(i.name, {})) for i in VALID.instructions))


def stepping(kind: Any, **operands: Any) -> Program:
    """Its gate has this step."""
    return changing(gate=dict(steps=(Step(kind, **operands),)))


BROKEN = {
    "used before it is defined": (program(LEVELS, GATE, CONV, LOGITS), "defined before it is read"),
    "a value that is not there": (changing(gate=dict(base=Read(9, 0, -1), steps=())), "%9 is defined"),
    "defined twice": (changing(gate=dict(out=1)), "defined once"),
    "no such output": (replace(VALID, outputs=(7,)), "output %7 is not defined"),
    "too few outputs": (replace(VALID, parameters=4), "3 channels in all, expected 4"),
    "a read output": (replace(VALID, outputs=(2,)), "nobody reads the outputs"),
    "a tap's rows": (changing(conv=dict(taps=(Tap(0, 0, -1, weight(2, 4)),))), r"\[1, 4\]"),
    "a bias": (changing(conv=dict(bias=weight(3))), r"not \[3\]"),
    "a dtype": (changing(conv=dict(bias=weight(4, dtype=torch.float32))), "not torch.float32"),
    "a device": (changing(conv=dict(bias=weight(4).to("meta"))), "not torch.float64 on meta"),
    "an operand's channels": (stepping("add", value=Read(0)), "as many channels"),
    "a pick that falls": (changing(gate=dict(pick=torch.tensor([1, 0, 2, 3]))), "rise"),
    "a base's channels": (changing(gate=dict(channels=3, steps=())), "its base's channels"),
    "an image channel": (changing(input=dict(pick=torch.tensor([1]))), "rise and exist"),
    "an image channel below 0": (changing(input=dict(pick=torch.tensor([-1]))), "rise and exist"),
    "a scale alone": (stepping("affine", scale=weight(4)), "its kind declares"),
    "a scale": (stepping("affine", scale=weight(4), shift=weight(3)), r"not \[3\]"),
    "an unknown step": (stepping("log_softmax"), "declares, not"),
    "a missing operand": (stepping("add"), "its kind declares"),
    "an operand too many": (stepping("relu", value=Read(1)), "its kind declares"),
    "no channels": (changing(input=dict(channels=0)), "a value has channels"),
    "no output": (replace(VALID, outputs=()), "there is at least one"),
    "an output twice": (replace(VALID, outputs=(3, 3), parameters=6), "each is another value"),
    "a table of one row": (changing(input=dict(table=weight(9))), "a row for each level"),
    "a table's width": (changing(input=dict(table=weight(9, 2))), "as many as the table is wide"),
    "a table's dtype": (changing(input=dict(table=weight(9, 1, dtype=torch.float32))), "not torch.float32"),
    "a condition's frame": (
        stepping("add_condition", condition=ConditionOperand(0, INDEX, True)),
        r"\[4, 5, 4\]",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_refused_by_its_rule(name: str) -> None:
    verify(VALID)
    broken, rule = BROKEN[name]
    with pytest.raises(InvalidProgram, match=rule):
        verify(broken)


def assert_refused(valid: PhasedProgram, breaks: Callable[[PhasedProgram], PhasedProgram], rule: str) -> None:
    verify(valid)
    with pytest.raises(InvalidProgram, match=rule):
        verify(breaks(valid))


def phased() -> PhasedProgram:
    return pipeline.phased(VALID)


def changed(program: PhasedProgram, out: int, **changes: Any) -> PhasedProgram:
    instructions = tuple(replace(i, **changes) if i.out == out else i for i in program.instructions)
    return replace(program, instructions=instructions)


CONDITION_STEP = Step("add_condition", condition=ConditionOperand(0, torch.zeros(1, dtype=torch.long), False))


def with_tap(program: PhasedProgram, dy: int, dx: int) -> PhasedProgram:
    """A valid one but for what its last convolution reads."""
    run = Run(2, dy, dx, 1, weight(4, 3))
    instruction = replace(LOGITS, taps=(Tap(2, dy, dx, run.weight),))
    storage = {value: Storage(s.channels, s.rows, 1, 1) for value, s in program.storage.items()}
    return replace(
        changed(program, 3, instruction=instruction, pixel_runs=(run,), row_runs=()), storage=storage
    )


def wide() -> PhasedProgram:
    """One that reads the row above two columns to the right."""
    taps = (Tap(0, -1, 2, weight(1, 4)), Tap(0, 0, -1, weight(1, 4)))
    return pipeline.phased(program(LEVELS, replace(CONV, taps=taps), GATE, LOGITS))


BROKEN_PHASES = {
    "a lost run": (lambda p: changed(p, 1, pixel_runs=()), "its runs hold all its taps"),
    "a run in the wrong phase": (
        lambda p: changed(
            p, 1, row_runs=p.instructions[1].row_runs + p.instructions[1].pixel_runs, pixel_runs=()
        ),
        "summed when it is known",
    ),
    "a run's weight": (
        lambda p: changed(
            p, 1, pixel_runs=(replace(p.instructions[1].pixel_runs[0], weight=2 * weight(1, 4)),)
        ),
        "holds taps",
    ),
    "values that are not kept": (
        lambda p: replace(p, storage={v: s for v, s in p.storage.items() if v != 1}),
        "its channels are kept",
    ),
    "levels before the draw": (
        lambda p: changed(p, 0, after=0, phase=Phase.PIXEL),
        "are drawn before it runs",
    ),
    "too early": (lambda p: changed(p, 1, phase=Phase.ROW), "not known there"),
    "too late": (lambda p: changed(p, 2, after=1, phase=Phase.DRAWN), "is drawn later"),
    "too few rows": (
        lambda p: replace(p, storage={**p.storage, 0: Storage(1, 1, 1, 0)}),
        "a row that is not kept",
    ),
    "no padding": (
        lambda p: replace(p, storage={**p.storage, 0: Storage(1, 2, 0, 0)}),
        "a column that is not there",
    ),
    "no padding to the right": (
        lambda p: replace(wide(), storage={**wide().storage, 0: Storage(1, 2, 1, 1)}),
        "a column that is not there",
    ),
    "too few channels kept": (
        lambda p: replace(p, storage={**p.storage, 1: replace(p.storage[1], channels=3)}),
        "its channels are kept",
    ),
    "an operand elsewhere": (
        lambda p: changed(p, 2, instruction=replace(GATE, steps=(Step("multiply", value=Read(1, -1, 0)),))),
        r"%1\(-1, \+0\) reads a row that is not kept",
    ),
    "an operand of levels": (
        lambda p: changed(p, 0, instruction=replace(LEVELS, steps=(CONDITION_STEP,))),
        "turned into values one by one",
    ),
    "drawn, and yet before the draw": (lambda p: changed(p, 2, phase=Phase.DRAWN), "phase and draws agree"),
    "a tap below": (lambda p: with_tap(p, 1, 0), "reads a row below"),
    "a tap ahead": (lambda p: with_tap(p, 0, 1), "reads ahead of the pixel"),
    "too small a lag": (
        lambda p: replace(wide(), wavefront=Wavefront(1, dict.fromkeys(p.storage, 0))),
        "the wavefront computes %0 before it is read",
    ),
    "no lag": (
        lambda p: replace(p, wavefront=Wavefront(0, dict.fromkeys(p.storage, 0))),
        "a lag of 1 or more",
    ),
    "no leads": (lambda p: replace(p, wavefront=Wavefront(2, {})), "a lead for each value"),
    "an output after its draw": (
        lambda p: changed(p, 3, after=1, phase=Phase.DRAWN),
        "of draw 0 comes after 1",
    ),
    "a scan at pixels": (lambda p: changed(p, 2, scan=Scan(0, False)), "is of a whole row"),
    "a draw too many": (lambda p: changed(p, 1, after=2), "0 to 1 draws"),
}


@pytest.mark.parametrize("name", BROKEN_PHASES)
def test_a_broken_phased_program_is_refused_by_its_rule(name: str) -> None:
    assert_refused(phased(), *BROKEN_PHASES[name])


def from_the_right(dy: int) -> list[Instruction]:
    """Values 4 and 5, a recurrence along a row from the right: a convolution of the image's row ``dy`` and a gate."""
    taps = (Tap(0, dy, 0, weight(1, 4)), Tap(5, 0, 1, weight(4, 4)))
    return [Convolution(4, 4, "right", taps=taps), Pointwise(5, 4, "right", base=Read(4))]


def scanning() -> PhasedProgram:
    """Two recurrences along a finished row, from the right and from the left, each of a convolution and a gate."""
    taps = (Tap(5, 0, 0, weight(4, 4)), Tap(7, 0, -1, weight(4, 4)))
    left = [Convolution(6, 4, "left", taps=taps), Pointwise(7, 4, "left", base=Read(6))]
    beside = Convolution(8, 4, "beside", taps=(Tap(0, 0, 1, weight(1, 4)),))  # for a whole row
    conv = replace(CONV, taps=(*CONV.taps, Tap(7, -1, 0, weight(4, 4)), Tap(8, -1, 0, weight(4, 4))))
    return pipeline.phased(program(LEVELS, conv, GATE, LOGITS, *from_the_right(0), *left, beside))


def in_order(program: PhasedProgram, *outs: int) -> PhasedProgram:
    by_out = {i.out: i for i in program.instructions}
    others = [i for i in program.instructions if i.out not in outs]
    return replace(program, instructions=(*others, *(by_out[out] for out in outs)))


BROKEN_SCANS = {
    "interleaved": (lambda p: in_order(p, 4, 8, 5, 6, 7), "before it is computed"),
    "a number twice": (
        lambda p: changed(changed(p, 6, scan=Scan(0, False)), 7, scan=Scan(0, False)),
        "follow each other",
    ),
    "in the wrong order": (lambda p: in_order(p, 6, 7, 4, 5), "%5 is defined before it is read"),
    "the other way": (
        lambda p: changed(changed(p, 4, scan=Scan(0, False)), 5, scan=Scan(0, False)),
        r"%5\(\+0, \+1\) is read before it is computed",
    ),
    "no scan": (lambda p: changed(changed(p, 6, scan=None), 7, scan=None), "summed when it is known"),
    "one scan of both": (
        lambda p: changed(changed(p, 6, scan=Scan(0, True)), 7, scan=Scan(0, True)),
        "summed when it is known|before it is computed",
    ),
    "a wavefront": (
        lambda p: replace(p, wavefront=Wavefront(9, dict.fromkeys(p.storage, 9))),
        "rows are scanned one at a time",
    ),
    "before the row is finished": (lambda p: changed(p, 5, phase=Phase.DRAWN), "finished"),
}


@pytest.mark.parametrize("name", BROKEN_SCANS)
def test_a_broken_scan_is_refused_by_its_rule(name: str) -> None:
    assert [i.scan for i in scanning().instructions if i.scan] == [Scan(0, True)] * 2 + [Scan(1, False)] * 2
    assert_refused(scanning(), *BROKEN_SCANS[name])


def scanning_before() -> PhasedProgram:
    """A recurrence along a row from the right, which is known before the row's pixels: it sees the row above alone."""
    conv = replace(CONV, taps=(*CONV.taps, Tap(5, 0, 1, weight(4, 4))))
    return pipeline.phased(program(LEVELS, *from_the_right(-1), conv, GATE, LOGITS))


BROKEN_SCANS_BEFORE = {
    "the other way": (
        lambda p: changed(changed(p, 4, scan=Scan(0, False)), 5, scan=Scan(0, False)),
        r"%5\(\+0, \+1\) is read before it is computed",
    ),
    "no scan": (lambda p: changed(changed(p, 4, scan=None), 5, scan=None), "summed when it is known"),
    "half after the row": (
        lambda p: changed(p, 5, phase=Phase.FINISHED),
        "not known there",
    ),
    "at pixels": (lambda p: changed(changed(p, 4, phase=Phase.PIXEL), 5, phase=Phase.PIXEL), "phase|ahead"),
}


@pytest.mark.parametrize("name", BROKEN_SCANS_BEFORE)
def test_a_broken_scan_before_its_row_is_refused_by_its_rule(name: str) -> None:
    scan = [i for i in scanning_before().instructions if i.scan]
    assert [i.out for i in scan] == [4, 5] and all(i.phase is Phase.ROW for i in scan)
    assert scanning_before().wavefront is None
    assert_refused(scanning_before(), *BROKEN_SCANS_BEFORE[name])


def test_an_output_that_needs_its_row_finished_is_refused() -> None:
    conv = replace(CONV, taps=(*CONV.taps, Tap(5, 0, 0, weight(4, 4))))
    with pytest.raises(
        Unsupported, match="right: it needs its whole row, and the model's output needs it in that row"
    ):
        pipeline.phased(program(LEVELS, *from_the_right(0), conv, GATE, LOGITS))


@pytest.mark.parametrize(
    ("dy", "why"), [(0, "it needs its whole row"), (1, r"tap \(\+1, \+1\) reads ahead of the present pixel")]
)
def test_a_layer_that_reads_ahead_is_refused_by_name(dy: int, why: str) -> None:
    ahead = replace(CONV, taps=(Tap(0, dy, 1, weight(1, 4)),))
    with pytest.raises(Unsupported, match=f"^conv: {why}"):
        pipeline.phased(program(LEVELS, ahead, GATE, LOGITS))


def test_scans_are_printed() -> None:
    printed = str(scanning())
    assert "after the row is finished" in printed and "scan 0 from the right" in printed
    assert "scan 1 from the left" in printed


def test_programs_print_before_and_after_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setattr(pipeline, "watches", [lambda name, p: seen.update({name: str(p)})])
    pipeline.simplified(VALID)
    names = [transform.__name__ for transform in pipeline.SIMPLIFYING]
    assert list(seen) == list(dict.fromkeys(names))
    assert "%1    conv                         4 ch = bias + %0(-1, +0) + %0(+0, -1)" in str(VALID)
    assert "| multiply %1" in str(VALID) and str(VALID).endswith("outputs: %3")


def test_the_tests_verify_after_every_pass() -> None:
    """conftest.py sees to it, so that a pass that breaks its program is noticed."""
    with pytest.raises(InvalidProgram, match="defined before it is read"):
        pipeline.simplified(BROKEN["used before it is defined"][0])
