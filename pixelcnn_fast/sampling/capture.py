"""Capture: run the user's module once on an example and record what it does to the image.

Three kinds of tensors meet in a forward: constants (weights), what depends on the condition alone (labels and
their embeddings), and feature maps, which depend on the image. Calls on constants are left alone. Calls on
conditions are kept to be replayed for other labels. Calls on feature maps become instructions, or are refused
as soon as the result is used for the output: a reduction that only steers an ``if`` does no harm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pixelcnn_fast.ops.gated_activation.reference import gated_activation
from pixelcnn_fast.ops.masked_conv2d.reference import masked_conv2d
from pixelcnn_fast.ops.masked_conv_block.reference import masked_conv_block
from pixelcnn_fast.sampling.addresses import FeatureMap
from pixelcnn_fast.sampling.conditions import Call, Conditions, Given, leaves, map_leaves
from pixelcnn_fast.sampling.handlers import FRESH, HANDLERS, MOVEMENTS, plain_name
from pixelcnn_fast.sampling.heads import Head, resolved
from pixelcnn_fast.sampling.marks import Condition, Opaque, Unsupported
from pixelcnn_fast.sampling.program import Program
from pixelcnn_fast.sampling.recording import Recording

Mark = FeatureMap | Condition | Opaque

# This library's own ops are recorded as the plain calls they stand for.
SPELLED_OUT = {
    torch.ops.pixelcnn_fast.masked_conv2d.default: masked_conv2d,
    torch.ops.pixelcnn_fast.masked_conv_block.default: masked_conv_block,
    torch.ops.pixelcnn_fast.gated_activation.default: gated_activation,
}


def capture(
    model: nn.Module, images: Tensor, given: Given, head: Head
) -> tuple[Program, Conditions, Tensor, Head]:
    """Runs ``model`` on an example -> (program, conditions, the model's logits on the example, the resolved head).

    images: [2, C, H, W] as the model takes them; given: of two images; logits: [2, C, H, W, L].
    Raises Unsupported, naming module and call, for what has no place in a program, and UnknownLayout for an output
    that the head can't read.
    """
    parameter = next(model.parameters())
    recorder = Recorder(images, given, parameter.dtype, parameter.device)
    with torch.no_grad(), _module_paths(model, recorder.path), recorder:
        output = given.call(model, images)
        head = resolved(head, output, images.shape)
        output = head.arranged(output, images.shape[1])
    recording, result, levels = recorder.finish(output)
    program = Program(
        tuple(images.shape[1:]),
        levels,
        tuple(recording.instructions),
        (result,),
        parameter.dtype,
        parameter.device,
    )
    return program, Conditions(recording.calls), output, head


@contextmanager
def _module_paths(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keeps in ``path`` the names of the modules whose forward is running."""

    def leave(*_: Any) -> None:
        path.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recorder(TorchFunctionMode):
    def __init__(self, images: Tensor, given: Given, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.path: list[str] = []
        self.recording = Recording(images.shape, dtype, device)
        self.recording.place = self._where
        self._tracked: dict[int, tuple[Tensor, Mark]] = {}
        self._images = images
        self._track(images, self.recording.images)
        for index, tensor in enumerate(given):
            if tensor is not None:
                self.recording.calls.append(Call(operator.getitem, (Condition(0), index), {}))
                self._track(tensor, Condition(len(self.recording.calls) - 1))

    # -- following tensors through calls

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SPELLED_OUT:
            *args, _ = args  # the backend
            with self:
                return SPELLED_OUT[func](*args)
        marks = [mark for x in leaves((args, kwargs)) if (mark := self.mark(x)) is not None]
        if plain_name(func) == "setitem" and any(isinstance(mark, (FeatureMap, Opaque)) for mark in marks):
            self._assign(func, args)
            return func(*args)
        output = func(*args, **kwargs)
        if not marks or plain_name(func) in FRESH or not any(isinstance(x, Tensor) for x in leaves(output)):
            return output
        if all(isinstance(mark, Condition) for mark in marks):
            self._record_condition(func, args, kwargs, output)
            return output
        result = self._placed(func, marks, args, kwargs, output)
        for x, mark in zip(_tensors(output), _tensors(result), strict=False):
            self._track(x, mark)
        return output

    def mark(self, x: Any) -> Mark | None:
        entry = self._tracked.get(id(x))
        return entry[1] if entry is not None else None

    def feature_map(self, x: Any) -> FeatureMap:
        mark = self.mark(x)
        if not isinstance(mark, FeatureMap):
            raise Unsupported("an argument is not a feature map")
        return mark

    def constant(self, x: Any) -> Any:
        """x, which must not depend on the image or the condition."""
        if self.mark(x) is not None:
            raise Unsupported("its weights depend on the image or the condition")
        return x

    def _track(self, tensor: Tensor, mark: Mark) -> None:
        old = self.mark(tensor)
        if isinstance(old, FeatureMap) and isinstance(mark, FeatureMap) and old.is_spelled_out:
            old.addresses.copy_(mark.addresses)  # written in place: views of the tensor see it too
            return
        self._tracked[id(tensor)] = (tensor, mark)  # the reference keeps the id from being used again

    def condition(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The result of a call on conditions, recorded like one that the model makes itself."""
        output = func(*args, **kwargs)
        self._record_condition(func, args, kwargs, output)
        return output

    def _record_condition(self, func: Callable, args: tuple, kwargs: dict, output: Any) -> None:
        def marked(x: Any) -> Any:
            return self.mark(x) or x

        calls = self.recording.calls
        calls.append(Call(func, map_leaves(marked, args), map_leaves(marked, kwargs)))
        whole = len(calls) - 1
        if isinstance(output, Tensor):
            self._track(output, Condition(whole))
            return
        for index, x in enumerate(output):
            if isinstance(x, Tensor):
                calls.append(Call(lambda parts, i: parts[i], (Condition(whole), index), {}))
                self._track(x, Condition(len(calls) - 1))

    def _placed(self, func: Callable, marks: list[Mark], args: tuple, kwargs: dict, output: Any) -> Any:
        """The marks of a call's output, in the output's own structure."""
        opaque = next((mark for mark in marks if isinstance(mark, Opaque)), None)
        if opaque is not None:
            return map_leaves(lambda _: opaque, output)
        name = plain_name(func)
        try:
            if name in MOVEMENTS:
                return self._moved(func, args, kwargs)
            if name not in HANDLERS:
                raise Unsupported("this call is not supported")
            return HANDLERS[name](self, output, *args, **kwargs)
        except Unsupported as error:
            refusal = self._refusal(func, str(error))
        except TypeError as error:
            refusal = self._refusal(func, f"not with these arguments ({error})")
        return map_leaves(lambda _: refusal, output)

    def _moved(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A call that only moves elements, run on their addresses."""

        def addresses(x: Any) -> Any:
            mark = self.mark(x)
            if isinstance(mark, FeatureMap):
                return mark.addresses
            if isinstance(mark, Condition):
                raise Unsupported(
                    "a condition is joined to a feature map: add it, or expand it to one by arithmetic"
                )
            if isinstance(x, Tensor) and x.is_floating_point():
                return self._of_constant(x).addresses
            return x.cpu() if isinstance(x, Tensor) else x

        result = func(*map_leaves(addresses, args), **map_leaves(addresses, kwargs))
        return map_leaves(
            lambda x: FeatureMap(self.recording.space, addresses=x) if isinstance(x, Tensor) else x, result
        )

    def _of_constant(self, x: Tensor) -> FeatureMap:
        zeros = FeatureMap(self.recording.space, addresses=torch.zeros(x.shape, dtype=torch.long))
        return self.recording.with_constant("add", zeros, x) if bool(x.any()) else zeros

    def _assign(self, func: Callable, args: tuple) -> None:
        """target[index] = x, on addresses."""
        target, index, x = args
        try:
            if self.mark(target) is None:
                self._track(target, self._of_constant(target))
            addresses = self.feature_map(target).addresses
            if isinstance(x, Tensor):
                x = (self.mark(x) or self._of_constant(x)).addresses
            elif x != 0:
                raise Unsupported(f"{x} is assigned to a part of a feature map; only zeros can be")
            func(addresses, index, x)
        except (Unsupported, AttributeError) as error:
            self._tracked[id(target)] = (target, self._refusal(func, str(error)))

    def _refusal(self, func: Callable, why: str) -> Opaque:
        return Opaque(f"{self._where()}: {resolve_name(func) or plain_name(func)}: {why}")

    def _where(self) -> str:
        return (self.path[-1] if self.path else "") or "model"

    # -- the result

    def finish(self, output: Any) -> tuple[Recording, int, int]:
        """-> (recording, output value, levels)."""
        mark = self.mark(output)
        if isinstance(mark, Opaque):
            raise Unsupported(f"cannot sample from this model: {mark.reason}")
        if not isinstance(mark, FeatureMap):
            raise Unsupported("cannot sample from this model: its output does not depend on the image")
        n, c, height, width = self._images.shape
        shape = list(output.shape)
        if len(shape) != 5 or shape[:4] != [n, c, height, width]:
            raise Unsupported(
                f"cannot sample from this model: its output has shape {shape}, expected logits "
                f"[N, C, H, W, levels] = [{n}, {c}, {height}, {width}, levels]"
            )
        logits = mark.addresses.permute(0, 1, 4, 2, 3).flatten(1, 2)
        result = self.recording.gathered(FeatureMap(self.recording.space, addresses=logits))
        if any(
            result in i.reads() for i in self.recording.instructions
        ):  # logits are not kept for others to read
            result = self.recording.emit(self.recording.space.channels(result), base=result).whole()
        return self.recording, result, shape[4]


def _tensors(x: Any) -> list[Any]:
    return [leaf for leaf in leaves(x) if isinstance(leaf, (Tensor, FeatureMap, Opaque))]
