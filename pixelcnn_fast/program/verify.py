"""The rules for every program: checked after each pass in tests, and always in the fuzzer."""

from __future__ import annotations

from itertools import groupby

import torch

from pixelcnn_fast.errors import InvalidProgram
from pixelcnn_fast.program.grids import WHOLE, count, meet
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Step
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram, Wavefront
from pixelcnn_fast.program.program import AnyProgram, Program
from pixelcnn_fast.program.recurrence import components
from pixelcnn_fast.program.steps import KINDS, Operand


def verify(program: Program | PhasedProgram) -> None:
    """Raises InvalidProgram, naming instruction and rule, if the program breaks one."""
    if isinstance(program, PhasedProgram):
        _verify_instructions(program, tuple(i.instruction for i in program.instructions))
        _verify_phases(program)
    else:
        _verify_instructions(program, program.instructions)


def _require(holds: bool, i: Instruction, rule: str) -> None:
    if not holds:
        raise InvalidProgram(f"%{i.out} {i.name} breaks the rule: {rule}\n  {i}")


def _verify_instructions(program: AnyProgram, instructions: tuple[Instruction, ...]) -> None:
    channels, every = {i.out: i.channels for i in instructions}, {i.out: i.every for i in instructions}
    _require(len(channels) == len(instructions), instructions[-1], "a value is defined once")
    defined: set[int] = set()
    for i in instructions:
        _require(i.channels > 0, i, "a value has channels")
        _require(
            min(i.every) > 0 and (i.every == WHOLE or not i.reads_levels),
            i,
            "it has a grid, levels the image's",
        )
        for read in i.reads():
            _require(read.value in channels, i, f"%{read.value} is defined")
            met = [*map(meet, i.every, every[read.value], (read.dy, read.dx))]
            _require(None not in met, i, f"{read} is on the grid of %{read.value} from some pixel of its own")
            at_its_pixel = f"%{read.value} is defined before it is read at the pixel itself"
            _require(read.value in defined or not read.is_here, i, at_its_pixel)
        for holds, rule in i.rules(channels.__getitem__, program.shape[0]):
            _require(holds, i, rule)
        for constant, shape in i.constants(channels.__getitem__):
            size = list(constant.shape)
            _require(size == list(shape), i, f"a constant has shape {list(shape)}, not {size}")
            alike = constant.dtype == program.dtype and constant.device.type == program.device.type
            wanted, given = (f"{x.dtype} on {x.device}" for x in (program, constant))
            _require(alike, i, f"constants are {wanted}, not {given}")
        for step in i.steps:
            _verify_step(program, i, step, channels)
        defined.add(i.out)
    for component in components(instructions):
        component.schedule(*program.shape[1:])
        for i in component.instructions if component.is_recurrence else ():
            _require(i.every == WHOLE, i, "a recurrence is on the image's grid")
    for output in program.outputs:
        if output not in channels:
            raise InvalidProgram(f"output %{output} is not defined")
        if every[output] != WHOLE:
            raise InvalidProgram(f"output %{output} is not there for every pixel")
    if not program.outputs or len(set(program.outputs)) < len(program.outputs):
        raise InvalidProgram(f"outputs {program.outputs}: there is at least one, and each is another value")
    for i in instructions:
        for read in i.reads():
            _require(read.value not in program.outputs, i, f"nobody reads the outputs, %{read.value}")
    found = sum(channels[output] for output in program.outputs)
    if found != (expected := program.distributions * program.parameters):
        raise InvalidProgram(f"the outputs have {found} channels in all, expected {expected}")


def _verify_step(program: AnyProgram, i: Instruction, step: Step, channels: dict[int, int]) -> None:
    _require(step.kind in KINDS, i, f"steps are of a kind that program/steps.py declares, not {step.kind!r}")
    constants = None if step.shift is None else step.scale
    given = {Operand.VALUE: step.value, Operand.CONDITION: step.condition, Operand.CONSTANTS: constants}
    operands = [operand for operand, found in given.items() if found is not None] or [Operand.NONE]
    _require(operands == [KINDS[step.kind].operand], i, f"{step.kind} has the operand that its kind declares")
    if step.value is not None and not step.reads_all_channels:
        _require(channels[step.value.value] == i.channels, i, f"{step} reads a value with as many channels")
    if step.condition is not None:
        shape = [*(program.shape[1:] if step.condition.varies_over_pixels else ()), i.channels]
        _require([*step.condition.index.shape] == shape, i, f"{step} reads a condition of shape {shape}")
    if i.reads_levels and isinstance(program, PhasedProgram):
        alone = step.value is None and step.condition is None
        _require(alone, i, "levels are turned into values one by one: no operands")


def _verify_phases(program: PhasedProgram) -> None:
    rows, finished = ({i.out for i in program.in_phase(phase)} for phase in (Phase.ROW, Phase.FINISHED))
    after = {i.out: i.after for i in program.instructions}
    draws = len(program.outputs)
    for i in program.instructions:
        inner, is_finished = i.instruction, i.phase is Phase.FINISHED
        kept = program.storage.get(i.out)
        is_kept = kept is not None and (kept.channels, kept.every_y, kept.every_x) == (
            i.channels,
            *inner.every,
        )
        _require(is_kept, inner, "its channels are kept, on its grid")
        _verify_runs(program, i, rows)
        _require(not inner.reads_levels or i.after > 0, inner, "its levels are drawn before it runs")
        _require(0 <= i.after <= draws, inner, f"it comes after 0 to {draws} draws")
        is_drawn = i.after == draws and i.out not in rows
        _require(is_finished or (i.phase is Phase.DRAWN) == is_drawn, inner, "phase and draws agree")
        attended = inner.attended()
        for read in inner.reads():
            storage = program.storage[read.value]
            in_rows = read.dy < 0 or (read.dy == 0 and read.value in rows)
            is_whole = read.value in attended
            rules = {
                "reads a row below": read.dy <= 0,
                "is read in the row phase and not known there": i.phase is not Phase.ROW or in_rows,
                "is read before its row is finished": (
                    is_finished or read.dy < 0 or read.value not in finished
                ),
                "reads ahead of the pixel": is_finished or in_rows or read.dx <= 0,
                "is drawn later": not read.is_here or after[read.value] <= i.after,
                "reads a row that is not kept": is_whole or storage.rows > -read.dy // storage.every_y,
                "reads a column that is not there": is_whole
                or (
                    -read.dx // storage.every_x <= storage.pad_left
                    and count(read.dx, storage.every_x) <= storage.pad_right
                ),
            }
            for rule, holds in rules.items():
                _require(holds, inner, f"{read} {rule}")
    for draw, output in enumerate(program.outputs):
        if after[output] != draw:
            raise InvalidProgram(f"output %{output} of draw {draw} comes after {after[output]} draws")
    _verify_scans(program)
    if program.wavefront is not None:
        _verify_wavefront(program, program.wavefront)


def _verify_scans(program: PhasedProgram) -> None:
    """What is computed for whole rows must be known when it is read."""
    of_phase = {phase: {i.out for i in program.in_phase(phase)} for phase in (Phase.ROW, Phase.FINISHED)}
    numbers, known = set[int](), set[int]()
    for scan, group in groupby(program.instructions, key=lambda i: i.scan):
        instructions = list(group)
        if scan is not None:
            together = scan.number not in numbers
            _require(together, instructions[0].instruction, f"{scan}: its instructions follow each other")
            numbers.add(scan.number)
        members = set() if scan is None else {i.out for i in instructions}
        for i in instructions:
            alike = scan is None or i.phase is instructions[0].phase and i.phase in of_phase
            _require(alike, i.instruction, f"{scan} is of a whole row, before its pixels or after them")
            for read in i.instruction.reads():
                if read.dy < 0 or read.value not in of_phase.get(i.phase, ()):
                    continue
                own = scan is not None and read.value in members
                passed = own and (read.dx > 0 if scan.from_the_right else read.dx < 0)
                in_time = passed or (read.value in known and (read.is_here or read.value not in members))
                _require(in_time, i.instruction, f"{read} is read before it is computed")
            known.add(i.out)


def _verify_wavefront(program: PhasedProgram, front: Wavefront) -> None:
    if front.lag < 1 or front.leads.keys() != program.storage.keys():
        raise InvalidProgram(f"a wavefront has a lag of 1 or more, and a lead for each value; it is {front}")
    for i in program.instructions:
        _require(i.scan is None, i.instruction, "rows are scanned one at a time, without a wavefront")
    for i, read, begins in program.timed_reads():
        ahead = front.leads[i.out] + read.dx + front.lag * read.dy + begins
        in_time = ahead <= front.leads[read.value]
        _require(in_time, i.instruction, f"the wavefront computes %{read.value} before it is read")


def _verify_runs(program: PhasedProgram, i: PhasedInstruction, rows: set[int]) -> None:
    """The runs must hold exactly the taps, each in the phase in which what it reads is known."""
    left = list(i.instruction.taps)
    own = {j.out for j in program.instructions if i.scan and j.scan == i.scan}
    every = {j.out: j.instruction.every for j in program.instructions}
    for runs in (i.row_runs, i.pixel_runs):
        for run in runs:
            is_known = run.source in rows or i.phase is Phase.FINISHED
            in_row_phase = run.dy < 0 or (is_known and run.source not in own)
            _require(in_row_phase == (runs is i.row_runs), i.instruction, f"{run} is summed when it is known")
            _require(run.every == every[run.source], i.instruction, f"{run} is on its source's grid")
            for k, weight in enumerate(run.weight.chunk(run.width)):
                where = (run.source, run.dy, run.dx + k * run.every[1])
                held = [n for n, tap in enumerate(left) if (tap.source, tap.dy, tap.dx) == where]
                held = [n for n in held if torch.equal(left[n].weight, weight)]
                _require(bool(held), i.instruction, f"{run} holds taps")
                del left[held[0]]
    _require(not left, i.instruction, "its runs hold all its taps")
