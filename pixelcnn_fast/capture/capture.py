"""Turns a model into a program: records its forward on two examples, and lowers the calls.

Calls on constants, such as weights, run once; calls on conditions, such as labels, run for
each batch; and calls on feature maps, which depend on the image, become instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.lower.condition_checks import check_conditions
from pixelcnn_fast.capture.lower.final_softmax import InnerSoftmaxes
from pixelcnn_fast.capture.lower.translation import Translation
from pixelcnn_fast.capture.record.agreement import agreed, differs_for_one
from pixelcnn_fast.capture.record.forward import Forward, shared
from pixelcnn_fast.capture.record.loops import refuse_loops
from pixelcnn_fast.capture.record.recorder import IMAGE, Recording
from pixelcnn_fast.capture.record.replay import Replay
from pixelcnn_fast.capture.record.weight_recorder import WeightRecorder
from pixelcnn_fast.errors import ModelFailed, UnknownLayout, Unsupported
from pixelcnn_fast.heads import Head
from pixelcnn_fast.heads.output import Output
from pixelcnn_fast.image_forms import PLAIN, Form, with_channels
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.user_model.model_arguments import dtype_and_device
from pixelcnn_fast.user_model.of_one_batch import with_any_batch
from pixelcnn_fast.user_model.tensors import duplicate

Example = tuple[Tensor, Conditioning]  # images in a plain form, and the rest


class Captured(NamedTuple):
    """A captured model. recording: of the first example; head: with its layout; outside: tensors
    that the forward reads and copies of the model share."""

    program: Program
    conditions: ConditionProgram
    head: Head
    recorder: WeightRecorder
    replay: Replay
    recording: Recording
    outside: Sequence[Tensor]


def capture(
    model: nn.Module,
    examples: Sequence[Example],
    head: Head,
    levels: Tensor | None = None,
    classes: int | None = None,
    output: Output = None,
    form: Form = PLAIN,
    can_be_copied: bool = True,
) -> Captured:
    """Runs ``model`` on examples, and turns what it does into a program.

    What does not depend on the image, and tables of levels, are computed in the model's
    dtype; the program is in float64 where the device has that.

    examples: of two images, [n, C, H, W], or [n, H, W] for one channel; of one, which takes
    less time than more; and of three, for models that treat one image in another way, or
    read numbers off images; levels: what the model
    is given for each level, or None for real numbers; classes: the number of labels, if
    known; output: which part of the result is read; form: that in which the model takes
    images, of which the examples are in the plain one. Raises Unsupported, naming module and
    call, for a call that has no place in a program, and UnknownLayout for an output that
    the head can't read.
    """
    # Each recording runs a model that has never run, since a forward may keep what it makes.
    untouched = duplicate(model) if can_be_copied else model

    def fresh() -> nn.Module:
        return duplicate(untouched) if can_be_copied else model

    def another(example: Example, using: nn.Module | None = None, is_sketch: bool = False) -> Forward:
        def recorded(model: nn.Module) -> Forward:
            return Forward(model, *example, head, output, form, is_sketch=is_sketch)

        using = using or fresh()
        return with_any_batch(recorded, using, len(example[0])) if can_be_copied else recorded(using)

    shape, first = with_channels(examples[0][0].shape), _first(another, examples[0], model, can_be_copied)
    refuse_loops(first.recording, *shape[2:])
    first, second, recording = _recorded(first, another, model, fresh, examples)
    head = first.head
    own, device = dtype_and_device(model)
    dtype = own if device.type == "mps" else torch.float64
    result, parameters = recording.outputs

    def translated(inner_softmaxes: Collection[int] = ()) -> tuple[Translation, WeightRecorder, Program]:
        recorder = WeightRecorder(recording)
        with recorder:
            with recorder.without_guards():  # copying what the model writes into must not make any
                translation = Translation(recording, shape, own, dtype, device, levels)
            translation.builder.inner_softmaxes = inner_softmaxes
            translation.run((result.slot, parameters.slot), recorder)
            doubt = form.doubt(result.at(shape[0])[0], shape[2:])
            return translation, recorder, translation.finished(result, parameters, head, doubt)

    try:
        translation, recorder, program = translated()
    except InnerSoftmaxes as found:
        try:
            translation, recorder, program = translated(found.numbers)
        except Unsupported:
            raise Unsupported(str(found)) from None
    operands = condition_operands(program.instructions)
    conditions = translation.imageless.conditions(operands, recording.given)
    if any(x is not None for x in examples[0][1]):

        def record_again(given: Conditioning) -> None:
            with suppress(ModelFailed):  # it takes no such labels, or conditions
                agreed(first.recording, another((examples[2][0], given)).recording)

        check_conditions(recording, conditions, operands, examples[0][1], classes, record_again)
    return Captured(
        program,
        conditions,
        head,
        recorder,
        Replay(recording, frozenset(translation.as_is), own),
        first.recording,
        shared(first.recording, second.recording),
    )


def _first(another: Callable[..., Forward], example: Example, model: nn.Module, can_sketch: bool) -> Forward:
    with suppress(ModelFailed, UnknownLayout, Unsupported):  # it may refuse zeros
        if can_sketch:
            first = another(example, model, True)
            if not _reads_images(first.recording):
                return first
    return another(example, model)


def _recorded(
    first: Forward,
    another: Callable[..., Forward],
    called: nn.Module,
    fresh: Callable[[], nn.Module],
    examples: Sequence[Example],
) -> tuple[Forward, Forward, Recording]:
    # Perhaps its code keeps something, in it or outside, which is there after a call of so many images; or it treats
    # one image in another way. Between what is compared is an odd number of calls, so that what alternates is told.
    other = fresh()
    can_sketch = other is not called and not _reads_images(first.recording)
    tries = [(which, is_again, can_sketch) for which in (1, 2) for is_again in (False, True)]
    if differs_for_one(first.recording):
        tries = tries[2:]
    if can_sketch:
        tries.append((2, True, False))
    for which, is_again, is_sketch in tries:
        try:
            second = another(examples[which], other, is_sketch)
            if is_again:
                first = another(examples[0], called, is_sketch)
            recording = agreed(first.recording, second.recording)
            break
        except (ModelFailed, UnknownLayout, Unsupported):
            if (which, is_again, is_sketch) == tries[-1]:
                raise
    if _reads_images(recording):
        for example in examples[2:]:
            agreed(first.recording, another(example).recording)
    return first, second, recording


def _reads_images(recording: Recording) -> bool:
    return any(IMAGE in escape.of for escape in recording.escapes)
