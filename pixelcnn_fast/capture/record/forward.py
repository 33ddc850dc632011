"""Runs one forward of a model and records it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
from pixelcnn_fast.image_forms import PLAIN, Form, with_channels
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.user_model.contents import Contents


class Forward:
    """Runs a model on an example and records it. images: in the plain form from which those
    that the model takes, in ``form``, are made; output: which part of the result the head
    reads; allows_autocast: whether it records autocast, which no program follows; is_sketch:
    as for ``Recorder``."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        given: Conditioning,
        head: Head,
        output: Output = None,
        form: Form = PLAIN,
        allows_autocast: bool = False,
        is_sketch: bool = False,
    ) -> None:
        shape = with_channels(images.shape)
        recorder = Recorder(shape[0], Contents(model).tensors.items(), is_sketch)
        recorder.allows_autocast = allows_autocast
        self.recording = recorder.recording
        self.recording.images = recorder.input(images, IMAGE)
        labels, *conditions = given.tensors
        self.recording.given = (
            None if labels is None else recorder.input(labels, LABELS),
            *(None if x is None else recorder.input(x, CONDITION) for x in conditions),
        )
        with (
            torch.no_grad(),
            plain_attention(),
            module_paths(model, recorder.path),
            Reads(recorder),
            recorder,
        ):
            try:
                returned = given.call(model, images, form)
                logits = form.rows_last(picked(returned, output), shape[2:])
            except ModelFailed as failed:
                if type(failed.__cause__).__module__ == "torch._dynamo.exc":
                    raise Unsupported(
                        "the model compiles a part of itself when it is called, as torch.cond and torch.while_loop "
                        "do: call the functions themselves"
                    ) from failed
                raise
            self.head = resolved(head, logits, shape)
            parameters = self.head.arranged(logits, shape[1])
        self.recording.outputs = recorder.view(logits), recorder.view(parameters)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention is computed by the same calls everywhere: products, a softmax and a product."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def shared(one: Recording, two: Recording) -> list[Tensor]:
    """The unnamed tensors that both outputs depend on; copies of the model share them."""
    places = {x.data_ptr() for x in two.unnamed() if x.numel()}
    return [x for x in one.unnamed() if x.data_ptr() in places]
