"""The generated parts of architecture.md: one small model, printed after each station, and two drawings."""

from __future__ import annotations

import inspect
import textwrap
from functools import cache

import drawings as svg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.capture.capture import capture
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.passes.pipeline import phased, simplified, watches
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program

SHAPE, LEVELS = (1, 5, 5), 3


class ThreeLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, 4, 3, mask_type="A")
        self.second = MaskedConv2d(4, 4, 3, mask_type="B")
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:  # uint8 [N, 1, 5, 5] -> logits of 3 levels, [N, 3, 5, 5]
        x = F.relu(self.first(images / 2))
        return self.last(self.second(x))


class ShiftedDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 3, (1, 3), padding=(0, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = F.pad(images / 2, (0, 0, 1, 0))  # a row of zeros on top
        x = x[:, :, :-1]  # the last row cut off
        return self.mix(x)


def captured(model: nn.Module) -> Program:
    examples = [(torch.zeros(n, *SHAPE, dtype=torch.uint8), Conditioning()) for n in (2, 3)]
    return capture(model.eval(), examples, Categorical(LEVELS)).program


@cache
def passes() -> tuple[list[tuple[str, Program | PhasedProgram]], PhasedProgram]:
    """What each pass makes of the three layers, and the program after the last of them."""
    seen: list[tuple[str, Program | PhasedProgram]] = []

    def watch(name: str, program: Program | PhasedProgram) -> None:
        seen.append((name, program))

    watches.append(watch)
    program = phased(simplified(captured(ThreeLayers())))
    watches.remove(watch)
    return seen, program


def listing(text: object, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def after_passes() -> str:
    """The program wherever a pass has changed it."""
    seen, _ = passes()
    before, idle, lines = str(captured(ThreeLayers())), [], []
    for name, program in seen:
        if str(program) == before:
            idle.append(f"`{name}`")
            continue
        lines += [_left_as_it_is(idle), f"After `{name}`:\n\n{listing(program)}"]
        before, idle = str(program), []
    return "\n\n".join(line for line in [*lines, _left_as_it_is(idle)] if line)


def _left_as_it_is(names: list[str]) -> str:
    if not names:
        return ""
    who = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return f"{who} {'find' if len(names) > 1 else 'finds'} nothing to change here."


def lag() -> int:
    """How many columns a row of the three layers is behind the row above."""
    _, program = passes()
    assert program.wavefront is not None
    return program.wavefront.lag


@cache
def steps() -> list[list[int]]:
    """The step at which the wavefront draws each pixel, by row and column."""
    _, height, width = SHAPE
    return [[x + lag() * y for x in range(width)] for y in range(height)]


def wavefront() -> str:
    last = max(map(max, steps()))
    most = max(sum(row.count(step) for row in steps()) for step in range(last + 1))
    return (
        f"The lag of the three layers is {lag()}. Their {SHAPE[1] * SHAPE[2]} pixels take {last + 1} steps, with up to "
        f"{most} pixels in flight at one step:"
    )


def seen_from(row: int, column: int) -> set[tuple[int, int]]:
    """The pixels (row, column) that the three layers' output at one pixel depends on, by gradients."""
    model = ThreeLayers()
    for weight in model.parameters():
        nn.init.ones_(weight)
    image = torch.ones(1, *SHAPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(image)[0, :, row, column].sum(), image)
    return {(y, x) for _, _, y, x in gradient.nonzero().tolist()}


def parts() -> dict[str, str]:
    """The generated parts of the page, by the names of their markers."""
    return {
        "three layers": listing(inspect.getsource(ThreeLayers).strip(), "python"),
        "captured": listing(captured(ThreeLayers())),
        "after passes": after_passes(),
        "shifted down": listing(textwrap.dedent(inspect.getsource(ShiftedDown.forward)).strip(), "python"),
        "shifted down, captured": listing(captured(ShiftedDown())),
        "wavefront": wavefront(),
    }


def drawings() -> dict[str, str]:
    """The drawings, by the names of their files."""
    x = torch.arange(1, 10).view(1, 1, 3, 3)  # the addresses of a value of 3x3 pixels
    padded = F.pad(x, (0, 0, 1, 0))
    shifted = padded[:, :, :-1]
    step = 6
    pixel = next((y, x) for y, row in enumerate(steps()) for x, at in enumerate(row) if at == step and y == 2)
    return {
        "provenance.svg": svg.provenance(
            [
                ("x", x[0, 0].tolist()),
                ("F.pad(x, (0, 0, 1, 0))", padded[0, 0].tolist()),
                ("…[:, :, :-1]", shifted[0, 0].tolist()),
            ],
            [
                "Each number is the address of one element; 0 is the address of a zero.",
                "The last tensor holds the addresses of x at (row − 1, column), and zeros outside.",
            ],
        ),
        "wavefront.svg": svg.wavefront(steps(), step, pixel, seen_from(*pixel)),
    }
