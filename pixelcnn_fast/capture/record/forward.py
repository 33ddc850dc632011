"""Runs one forward of a model and records it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.record.recorder import (
    CONDITION,
    IMAGE,
    LABELS,
    Reads,
    Recorder,
    Recording,
    module_paths,
)
from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.heads import Head, resolved
from pixelcnn_fast.heads.output import Output, picked
from pixelcnn_fast.image_forms import with_channels
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.user_model.contents import Contents


class Forward:
    """Runs a model on an example and records what it does.

    recording: the calls; head: with its layout; parameters: what the head reads, [n, D, H, W, P].
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        given: Conditioning,
        head: Head,
        output: Output = None,
        allows_autocast: bool = False,
    ) -> None:
        """output: which part of what the model returns the head reads. allows_autocast: whether autocast within the
        forward is recorded, too, which no program follows; else it is refused."""
        shape = with_channels(images.shape)
        recorder = Recorder(shape[0], Contents(model).tensors.items())
        recorder.allows_autocast = allows_autocast
        self.recording = recorder.recording
        self.recording.images = recorder.input(images, IMAGE)
        self.recording.given = tuple(
            x if x is None else recorder.input(x, of) for x, of in zip(given, (LABELS, CONDITION), strict=True)
        )
        with torch.no_grad(), module_paths(model, recorder.path), Reads(recorder), recorder:
            logits = picked(_called(model, images, given), output)
            self.head = resolved(head, logits, shape)
            self.parameters = self.head.arranged(logits, shape[1])
        self.recording.outputs = recorder.view(logits), recorder.view(self.parameters)


def _called(model: nn.Module, images: Tensor, given: Conditioning) -> Any:
    try:
        return given.call(model, images)
    except ModelFailed as failed:
        if type(failed.__cause__).__module__ == "torch._dynamo.exc":
            raise Unsupported(
                "the model compiles a part of itself when it is called, as torch.cond and torch.while_loop do: call "
                "the functions themselves"
            ) from failed
        raise


def shared(one: Recording, two: Recording) -> list[Tensor]:
    """The tensors without a name that the output depends on and that both recordings have read: no call made them,
    and the model's copies have them in common."""
    places = {x.data_ptr() for x in two.unnamed() if x.numel()}
    return [x for x in one.unnamed() if x.data_ptr() in places]
