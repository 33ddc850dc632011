"""What Python and C++ share besides steps: enumerations, constants, and a program's structs.

csrc/headers.py writes the C++ of all this, and what reads the structs from
Python, within CMake and a bare Python: so this imports the standard library
alone. A field is declared here, filled in by runtimes/native_program.py, and
there in C++; an enumerator is one more row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

# -- constants; in C++, TILE_SITES is kTileSites

# That a product of tensor cores computes at once, in csrc/cuda. A site is one pixel of one image.
TILE_SITES = 8
MOST_BLOCKS = 8  # of a cluster, which share their images: 2, 4 or 8
LANE_BITS, IMAGE_BITS, CHANNEL_BITS = 5, 24, 11  # of an error's code; the rest is the pixel's
WAITED_IN_VAIN = 0  # the code of threads that waited for each other too long
VALUE_BYTES = 4  # of a value while it is drawn: a level is int32, a real number float32
CONSTANTS = {name: x for name, x in globals().items() if isinstance(x, int)}

# -- enumerations; in C++, traits(kind) gives the columns of a row


class Phase(Enum):
    ROW = "row"  # sees only rows above: a whole row at once
    PIXEL = "pixel"  # needs the present row: pixel by pixel, before its last draw
    DRAWN = "drawn"  # after all of the pixel's levels are drawn
    # Needs pixels of the present row to its right: once the row is finished, for the rows below.
    FINISHED = "finished"


class WeightFormat(Enum):
    """How the CPU stores the weights of runs."""

    SAME = "same"
    BF16 = "bf16"


@dataclass(frozen=True)
class Math:
    """What a GPU multiplies, and its dtype in PyTorch; sums and steps are float32."""

    name: str
    dtype: str


MATHS = (Math("fp32", "float32"), Math("bf16", "bfloat16"), Math("fp16", "float16"))


@dataclass(frozen=True)
class InstructionTraits:
    """What an instruction's steps start from: out = steps(x).

    reads_image: whether x is part of the image, so that it is computed as values are drawn;
    sums: whether x is the sum of the bias and the runs, else one value; on_cuda:
    whether the CUDA runtime has it, or refuses the program.
    """

    name: str
    reads_image: bool
    sums: bool
    on_cuda: bool


INSTRUCTIONS = (
    InstructionTraits("from_levels", reads_image=True, sums=False, on_cuda=True),
    InstructionTraits("convolution", reads_image=False, sums=True, on_cuda=True),
    InstructionTraits("pointwise", reads_image=False, sums=False, on_cuda=True),
    InstructionTraits("attention", reads_image=False, sums=False, on_cuda=False),
)


@dataclass(frozen=True)
class HeadTraits:
    """What a pixel's values are drawn from, by ``Head.native``.

    single: whether a distribution gives one value, drawn with one uniform; on_cuda:
    whether the CUDA runtime has it, or refuses the program.
    """

    name: str
    single: bool
    on_cuda: bool


HEADS = (
    HeadTraits("categorical", single=True, on_cuda=True),  # parameters are the logits of the levels
    HeadTraits("logistic_mixture", single=False, on_cuda=False),
)

ENUMERATIONS = Phase, WeightFormat, MATHS, INSTRUCTIONS, HEADS

# -- structs; runtimes borrow a program's arrays only while they are built

# Addresses of arrays, with what C++ has in their place; 0: none.
Pointer = Annotated[int, "const void*"]  # in the program's dtype unless another is named
WritablePointer = Annotated[int, "void*"]
Flags = Annotated[int, "const uint8_t*"]
Uniforms = Annotated[int, "const double*"]
Scores = Annotated[int, "double*"]
SamplingOptions = Any  # heads/options.py
StepKind = str  # a name in steps.KINDS
InstructionKind = str  # in INSTRUCTIONS
HeadKind = str  # in HEADS


@dataclass(frozen=True)
class Step:
    """One operation on x, channel by channel; program/steps.py has the meaning of each kind and alpha."""

    kind: StepKind
    alpha: float = 1.0
    operand: int = -1  # the value, or the number of the condition operand, that it reads
    scale: Pointer = 0  # constants: [channels] each
    shift: Pointer = 0
    dy: int = 0  # where the value is read, from the pixel
    dx: int = 0


@dataclass(frozen=True)
class Run:
    """Taps that are adjacent in the source's grid, from (dy, dx) on to the right, as one matrix
    [width * source's channels, channels of out], row-major."""

    source: int
    dy: int
    dx: int
    width: int
    weight: Pointer


@dataclass(frozen=True)
class ImageInput:
    """The image as an instruction reads it: ``count`` channels, each as a number, or as row
    `level` of a table [levels, width]: a one-hot vector or an embedding. Together they have
    count * width channels."""

    first: int = 0
    count: int = 0
    width: int = 1
    table: Pointer = 0
    levels: int = 0  # rows of the table


@dataclass(frozen=True)
class KeyRange:
    """Pixels that follow each other, y * width + x: from the first up to the end."""

    first: int
    end: int


@dataclass(frozen=True)
class Attention:
    """What program/attention.py explains. query, key, value: values, or -1; keys and values may be
    of_condition; reach: how many rows above keys lie, at most. Tables are of ``tables`` heads, all
    or one; starts: of each table and query, where its ranges of keys begin, and at last where they
    end, [tables * pixels + 1]; keys: how many there are."""

    query: int = -1
    key: int = -1
    value: int = -1
    heads: int = 1
    reach: int = 0
    tables: int = 1
    starts: list[int] = field(default_factory=list)
    ranges: list[KeyRange] = field(default_factory=list)
    scale: Pointer = 0  # [tables, pixels, keys]; 0: ones
    added: Pointer = 0  # the same; 0: zeros
    factors: Pointer = 0  # the same; 0: ones
    epsilon: float = 0.0
    fill: float = 0.0
    pick: list[int] = field(default_factory=list)  # the channels that are kept; none: all
    keys: int = 0
    of_condition: bool = False


@dataclass(frozen=True)
class Instruction:
    out: int
    channels: int
    kind: InstructionKind
    phase: Phase
    input: ImageInput = ImageInput()  # if it reads the image
    bias: Pointer = 0  # convolution: [channels]; 0: zeros
    row_runs: list[Run] = field(default_factory=list)  # convolution; summed in the row phase
    pixel_runs: list[Run] = field(default_factory=list)
    value: int = -1  # pointwise; dy, dx: where it is read, from the pixel
    steps: list[Step] = field(default_factory=list)
    lead: int = 0  # in a wavefront: how many columns ahead of the pixel that is drawn
    after: int = 0  # how many draws of its pixel come before it
    dy: int = 0
    dx: int = 0
    # Instructions of one scan follow each other, and go through a row pixel by pixel, in
    # the phases row and finished. All others there, with -1, compute it at once.
    scan: int = -1
    from_the_right: bool = False  # a scan
    attention: Attention = Attention()  # if it is one


@dataclass(frozen=True)
class Storage:
    """What is kept of a value: the last ``rows`` rows of its grid, with zero columns on both
    sides. It exists at pixels with y % every_y == x % every_x == 0."""

    channels: int
    rows: int
    pad_left: int
    pad_right: int
    every_y: int = 1
    every_x: int = 1
    keys: bool = False  # whether it is kept of all pixels besides, as keys of an attention, or as its values
    values: bool = False


@dataclass(frozen=True)
class ConditionOperand:
    """What steps read of the condition: a vector per image or per pixel; or not per_image: the same for all."""

    channels: int
    varies_over_pixels: bool
    per_image: bool = True


@dataclass(frozen=True)
class Head:
    """The model's output at a pixel: each distribution takes ``uniforms`` numbers of the
    noise and gives the values of the next image_channels / distributions image channels."""

    kind: HeadKind
    distributions: int
    parameters: int
    uniforms: int
    levels: int  # that a sub-pixel of an image can have; 0: it is a real number
    real: bool = False  # whether values are real numbers while they are drawn, else levels
    components: int = 0  # of a mixture; the rest is explained in heads/logistic_mixture.py
    per_colour: bool = False
    uniform: float = 0.0


@dataclass(frozen=True)
class Program:
    """The phased program that compiled runtimes execute: program/phased.py says what it means."""

    image_channels: int
    height: int
    width: int
    head: Head
    # The values that hold the parameters, one per draw. A draw takes the next
    # (distributions / len(outputs)) distributions: all of them or, where each sees those
    # before, one.
    outputs: list[int]
    storage: list[Storage]  # by value; values are numbered from 0
    instructions: list[Instruction]
    conditions: list[ConditionOperand]
    lag: int = 0  # the least columns by which a row follows that above; 0: one row at a time


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch to sample, complete or teacher-force. Arrays are dense and the caller's."""

    images: int
    values: WritablePointer  # [images, C, H, W] of the head's type: known ones in, all of them out
    # [images, C, H, W]: nonzero where a value is known; 0: none is. A distribution is drawn
    # unless all its values are known.
    known: Flags = 0
    noise: Uniforms  # [images, distributions * uniforms, H, W] in [0, 1)
    # Per operand [images, channels] or [images, H, W, channels]; on CUDA in one array.
    conditions: list[Pointer]
    options: SamplingOptions
    parameters: WritablePointer = 0  # [images, distributions, H, W, parameters] or 0: not wanted
    log_probability: Scores = 0  # [images, C, H, W] of the values drawn, under the model itself; or 0


STRUCTS = (
    Step,
    Run,
    ImageInput,
    KeyRange,
    Attention,
    Instruction,
    Storage,
    ConditionOperand,
    Head,
    Program,
    Job,
)


def signature(steps: Iterable[str], *structs: type) -> str:
    """What a compiled module must have in common with Python, as text: constants, kinds of steps, fields."""
    fields = [f"{each.__name__} {each.__annotations__}" for each in structs]
    return "; ".join([str(CONSTANTS), ", ".join(steps), *fields])
