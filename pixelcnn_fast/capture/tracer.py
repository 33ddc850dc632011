"""Capture: from a model's forward, recorded on two examples, to a program.

A forward computes with three kinds of tensors: constants, such as weights; conditions, such as labels and their
embeddings; and feature maps, which depend on the image. Calls on constants are run once, calls on conditions are kept
to be run for each batch, and calls on feature maps become instructions. One that can't is refused, but only if the
output needs its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.agreement import agreed
from pixelcnn_fast.capture.conditional import check_conditions
from pixelcnn_fast.capture.model_arguments import dtype_and_device
from pixelcnn_fast.capture.parts import Held
from pixelcnn_fast.capture.recorder import CONDITION, IMAGE, LABELS, Reads, Recorder, Recording, module_paths
from pixelcnn_fast.capture.replay import Replay
from pixelcnn_fast.capture.tensors import duplicate
from pixelcnn_fast.capture.trace import Trace
from pixelcnn_fast.capture.weights import WeightRecorder
from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.heads import Head, resolved
from pixelcnn_fast.image_forms import with_channels
from pixelcnn_fast.program.conditions import Conditions, Given
from pixelcnn_fast.program.program import Program, condition_operands

Example = tuple[Tensor, Given]  # images, as the model takes them, and what it takes besides


class Captured(NamedTuple):
    """A captured model. parameters: the model's own on the first example, [n, D, H, W, P]; head: with its layout;
    weights: within this context, calls on the program's weights are recorded, to be made again for others; replay:
    makes the recorded calls on other examples; recording: of the first example; outside: tensors that the forward
    reads and that copies of the model share."""

    program: Program
    conditions: Conditions
    parameters: Tensor
    head: Head
    weights: WeightRecorder
    replay: Replay
    recording: Recording
    outside: Sequence[Tensor]


def capture(
    model: nn.Module,
    examples: Sequence[Example],
    head: Head,
    levels: Tensor | None = None,
    classes: int | None = None,
    can_be_copied: bool = True,
) -> Captured:
    """Runs ``model`` on examples, and turns what it does into a program, in float64 where the device has that.

    What does not depend on the image, and what tables of levels hold, is computed in the model's dtype.

    examples: two of different batch sizes, images [n, C, H, W], or [n, H, W] for one channel, and others that are run
    only if Python reads numbers off the image; levels: what the model is given for each level, or None if it takes
    real numbers; classes: how many labels there are, if it is known.
    Raises Unsupported, naming the module and the call, for a call that has no place in a program, and UnknownLayout
    for an output that the head can't read.
    """
    shape = with_channels(examples[0][0].shape)

    # What a forward keeps is to be made in each recording, so each runs a model that has never run.
    untouched = duplicate(model) if can_be_copied else model

    def another(example: Example) -> Forward:
        return Forward(duplicate(untouched) if can_be_copied else model, *example, head)

    first, second = Forward(model, *examples[0], head), None
    head = first.head
    try:
        second = another(examples[1])
        recording = agreed(first.recording, second.recording)
    except Unsupported:  # perhaps its code keeps something outside of it, which is there from now on
        first, second = another(examples[0]), another(examples[1])
        recording = agreed(first.recording, second.recording)
    if any(IMAGE in escape.of for escape in recording.escapes):
        for example in examples[2:]:
            agreed(first.recording, another(example).recording)
    own, device = dtype_and_device(model)
    dtype = own if device.type == "mps" else torch.float64
    output, arranged = recording.outputs
    weights = WeightRecorder()
    for leaf in recording.leaves.values():
        if leaf.parameters:
            weights.leaf(leaf)
    with weights:
        with weights.for_python():  # what is written into is copied
            trace = Trace(recording, shape, own, dtype, device, None if levels is None else levels.to(dtype))
        trace.run((output.slot, arranged.slot), weights)
        with weights.for_python():
            weights.written.update(trace.written())
        trace.check_last_call(output, head)
        instructions, result, parameters, normalised = trace.finished(arranged, head)
    program = Program(
        shape[1:],
        parameters,
        tuple(instructions),
        (result,),
        dtype,
        device,
        normalised,
        head.joint,
        tuple(
            f"{escape.where}: an if on the image is {escape.value}"
            if escape.is_branch
            else f"{escape.where}: {escape.what} reads a number off the image"
            + ("" if escape.value is None else f", which was {escape.value} in an example")
            for escape in recording.escapes
            if IMAGE in escape.of
        ),
    )
    operands = condition_operands(program.instructions)
    conditions = trace.operands.conditions(operands, recording.given)
    if any(x is not None for x in examples[0][1]):

        def record_again(given: Given) -> None:
            try:
                again = another((examples[1][0], given)).recording
            except ModelFailed:  # it takes no such labels, or conditions
                return
            agreed(first.recording, again)

        check_conditions(recording, conditions, operands, examples[0][1], classes, record_again)
    return Captured(
        program,
        conditions,
        first.parameters,
        head,
        weights,
        Replay(recording, frozenset(trace.as_is), own),
        first.recording,
        shared(first.recording, second.recording),
    )


def shared(one: Recording, two: Recording) -> list[Tensor]:
    """Tensors without a name that the output depends on, and that two recordings have in common."""
    places = {x.data_ptr() for x in two.unnamed() if x.numel()}
    return [x for x in one.unnamed() if x.data_ptr() in places]


class Forward:
    """A forward of the model, recorded. allows_autocast: whether that is recorded, too, which no program follows."""

    def __init__(
        self, model: nn.Module, images: Tensor, given: Given, head: Head, allows_autocast: bool = False
    ) -> None:
        shape = with_channels(images.shape)
        recorder = Recorder(shape[0], Held(model).tensors.items())
        recorder.allows_autocast = allows_autocast
        self.recording = recorder.recording
        self.recording.images = recorder.input(images, IMAGE)
        self.recording.given = tuple(
            x if x is None else recorder.input(x, of) for x, of in zip(given, (LABELS, CONDITION), strict=True)
        )
        with torch.no_grad(), module_paths(model, recorder.path), Reads(recorder), recorder:
            output = _called(model, images, given)
            self.head = resolved(head, output, shape)
            self.parameters = self.head.arranged(output, shape[1])
        self.recording.outputs = recorder.view(output), recorder.view(self.parameters)


def _called(model: nn.Module, images: Tensor, given: Given) -> Any:
    try:
        return given.call(model, images)
    except ModelFailed as failed:
        if type(failed.__cause__).__module__ == "torch._dynamo.exc":
            raise Unsupported(
                "the model compiles a part of itself when it is called, as torch.cond and torch.while_loop do: call "
                "the functions themselves"
            ) from failed
        raise
