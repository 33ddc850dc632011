"""Capture: run the user's module once on an example and record what it does to the image.

Three kinds of tensors meet in a forward: constants (weights), what depends on the condition alone (labels and
their embeddings), and feature maps, which depend on the image. Calls on constants are left alone. Calls on
conditions are kept to be replayed for other labels. Calls on feature maps become instructions, or are refused
as soon as the result is used for the output: a reduction that only steers an ``if`` does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pixelcnn_fast.sampling.conditions import Call, Conditions, leaves, map_leaves
from pixelcnn_fast.sampling.handlers import HANDLERS, plain_name
from pixelcnn_fast.sampling.heads import Head, resolved
from pixelcnn_fast.sampling.marks import Axis, Condition, FeatureMap, Opaque, Unsupported
from pixelcnn_fast.sampling.program import LEVELS, Instruction, Program, Step, Tap


def capture(
    model: nn.Module, images: Tensor, labels: Tensor | None, head: Head
) -> tuple[Program, Conditions, Tensor, Head]:
    """Runs ``model`` on an example -> (program, conditions, the model's logits on the example, the resolved head).

    images: [2, C, H, W] as the model takes them; labels: [2] or None; logits: [2, C, H, W, L].
    Raises Unsupported, naming module and call, for what has no place in a program, and UnknownLayout for an output
    that the head can't read.
    """
    recorder = Recorder(images, labels)
    with torch.no_grad(), _module_paths(model, recorder.path), recorder:
        output = model(images) if labels is None else model(images, labels)
        head = resolved(head, output, images.shape)
        output = head.arranged(output, images.shape[1])
    instructions, result, levels = recorder.finish(output)
    parameter = next(model.parameters())
    program = Program(tuple(images.shape[1:]), levels, instructions, result, parameter.dtype, parameter.device)
    return program, Conditions(recorder.calls, recorder.slots), output, head


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
    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.path: list[str] = []
        self.instructions: list[Instruction] = []
        self.calls: list[Call] = [Call(lambda: None, (), {})]  # node 0: the labels
        self.slots: list[int] = []
        self._tracked: dict[int, tuple[Tensor, FeatureMap | Condition | Opaque]] = {}
        self._images = images
        n, c, height, width = images.shape
        self._grid = (n, height, width)
        self._track(images, self._emit(c, base=LEVELS))
        if labels is not None:
            self._track(labels, Condition(0))

    # -- following tensors through calls

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        marks = [mark for x in leaves((args, kwargs)) if (mark := self.mark(x)) is not None]
        output = func(*args, **kwargs)
        if not marks or not any(isinstance(x, Tensor) for x in leaves(output)):
            return output
        if all(isinstance(mark, Condition) for mark in marks):
            self._record_condition(func, args, kwargs, output)
        elif isinstance(output, Tensor):
            self._track(output, self._place(func, marks, args, kwargs, output))
        else:
            for x in leaves(output):
                if isinstance(x, Tensor):
                    self._track(x, self._refusal(func, "its result is a tuple"))
        return output

    def mark(self, x: Any) -> FeatureMap | Condition | Opaque | None:
        entry = self._tracked.get(id(x))
        return entry[1] if entry is not None else None

    def _track(self, tensor: Tensor, mark: FeatureMap | Condition | Opaque) -> None:
        self._tracked[id(tensor)] = (tensor, mark)  # the reference keeps the id from being used again

    def _record_condition(self, func: Callable, args: tuple, kwargs: dict, output: Any) -> None:
        def marked(x: Any) -> Any:
            return self.mark(x) or x

        self.calls.append(Call(func, map_leaves(marked, args), map_leaves(marked, kwargs)))
        whole = len(self.calls) - 1
        if isinstance(output, Tensor):
            self._track(output, Condition(whole))
            return
        for index, x in enumerate(output):
            if isinstance(x, Tensor):
                self.calls.append(Call(lambda parts, i: parts[i], (Condition(whole), index), {}))
                self._track(x, Condition(len(self.calls) - 1))

    def _place(
        self, func: Callable, marks: list, args: tuple, kwargs: dict, output: Tensor
    ) -> FeatureMap | Opaque:
        for mark in marks:
            if isinstance(mark, Opaque):
                return mark
        handler = HANDLERS.get(plain_name(func))
        if handler is None:
            return self._refusal(func, "this call is not supported")
        try:
            return handler(self, output, *args, **kwargs)
        except Unsupported as error:
            return self._refusal(func, str(error))
        except TypeError as error:
            return self._refusal(func, f"not with these arguments ({error})")

    def _refusal(self, func: Callable, why: str) -> Opaque:
        return Opaque(f"{self._where()}: {resolve_name(func) or plain_name(func)}: {why}")

    def _where(self) -> str:
        return (self.path[-1] if self.path else "") or "model"

    # -- instructions

    def _emit(self, channels: int, axes: tuple[Axis, ...] | None = None, **fields: Any) -> FeatureMap:
        n, height, width = self._grid
        out = len(self.instructions)
        name = "input" if fields.get("base") == LEVELS else self._where()
        self.instructions.append(Instruction(out, channels, name, **fields))
        standard = (Axis("N", n), Axis("C", channels), Axis("H", height), Axis("W", width))
        return FeatureMap(out, axes or standard, channels)

    def feature_map(self, x: Any) -> FeatureMap:
        mark = self.mark(x)
        if not isinstance(mark, FeatureMap):
            raise Unsupported("an argument is not a feature map")
        return mark

    def standard(self, x: Any) -> FeatureMap:
        """The feature map behind x, which must be laid out [N, C, H, W]."""
        mark = self.feature_map(x)
        if [axis.kind for axis in mark.axes] != ["N", "C", "H", "W"] or mark.axes[1].stride != 1:
            raise Unsupported(f"its argument has shape {list(x.shape)}, which is not [N, channels, H, W]")
        return mark

    def convolution(
        self, output: Tensor, x: Tensor, taps: Sequence[tuple[int, int, Tensor]], bias: Any
    ) -> FeatureMap:
        """taps: (dy, dx, weight [in, out]); dead ones are dropped here."""
        source = self.standard(x)
        if output.shape[2:] != self._grid[1:]:
            raise Unsupported(f"it changes the grid from {list(self._grid[1:])} to {list(output.shape[2:])}")
        for tensor in (bias, *(weight for _, _, weight in taps)):
            if self.mark(tensor) is not None:
                raise Unsupported("its weights depend on the image or the condition")
        live = tuple(Tap(source.value, dy, dx, w.contiguous()) for dy, dx, w in taps if bool(w.any()))
        return self._emit(output.shape[1], taps=live, bias=None if bias is None else bias.detach().clone())

    def step(self, x: Tensor, step: Step) -> FeatureMap:
        mark = self.feature_map(x)
        return self._emit(mark.channels, mark.axes, base=mark.value, steps=(step,))

    def affine(self, x: Tensor, scale: Any, shift: Any) -> FeatureMap:
        """scale, shift: numbers, or constant tensors that broadcast along channels."""
        channels = self.feature_map(x).channels
        return self.step(
            x, Step("affine", scale=self._vector(x, scale, channels), shift=self._vector(x, shift, channels))
        )

    def _vector(self, x: Tensor, constant: Any, channels: int) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        tensor = torch.as_tensor(constant, dtype=dtype, device=x.device).detach()
        if tensor.numel() == 1:
            return tensor.reshape(1).expand(channels).clone()
        self.standard(x)
        if tensor.dim() > 4 or tensor.numel() != channels or tensor.dim() < 3 or tensor.shape[-3] != channels:
            raise Unsupported(
                f"a constant of shape {list(tensor.shape)} varies over the image: only channels may differ"
            )
        return tensor.reshape(channels).clone()

    def condition_slot(self, x: Tensor, condition: Tensor) -> int:
        """The slot of a condition that is combined with feature map x."""
        channels = self.standard(x).channels
        shape = list(condition.shape)
        if (
            condition.dim() != 4
            or shape[2:] != [1, 1]
            or shape[1] not in (1, channels)
            or shape[0] != self._grid[0]
        ):
            raise Unsupported(f"a condition of shape {shape}: only [N, channels, 1, 1] is supported")
        self.calls.append(Call(Tensor.expand, (self.mark(condition), -1, channels, -1, -1), {}))
        self.slots.append(len(self.calls) - 1)
        return len(self.slots) - 1

    def combine(self, kind: str, x: Any, y: Any, alpha: float = 1.0) -> FeatureMap:
        """x + alpha * y, or x * y, where at least one is a feature map."""
        if not isinstance(self.mark(x), FeatureMap):
            if kind == "add" and self.mark(x) is None:
                return self.affine(y, alpha, x)
            if kind == "add" and alpha != 1.0:
                raise Unsupported("a condition minus a feature map")
            x, y = y, x
        if self.mark(y) is None:
            return self.affine(x, *((1.0, alpha * y) if kind == "add" else (y, 0.0)))
        if isinstance(self.mark(y), Condition):
            return self.step(x, Step(f"{kind}_condition", alpha, condition=self.condition_slot(x, y)))
        if self.feature_map(x).axes != self.feature_map(y).axes:
            raise Unsupported(f"shapes {list(x.shape)} and {list(y.shape)} do not agree axis by axis")
        return self.step(x, Step(kind, alpha, value=self.feature_map(y).value))

    def relaid(self, output: Tensor, x: Tensor, axes: tuple[Axis, ...]) -> FeatureMap:
        """The same value under other axes."""
        if [axis.size for axis in axes] != list(output.shape):
            raise Unsupported(f"cannot follow the axes from {list(x.shape)} to {list(output.shape)}")
        mark = self.feature_map(x)
        return FeatureMap(mark.value, axes, mark.channels)

    # -- the result

    def finish(self, output: Any) -> tuple[tuple[Instruction, ...], int, int]:
        """-> (instructions, output value, levels)."""
        mark = self.mark(output)
        if isinstance(mark, Opaque):
            raise Unsupported(f"cannot sample from this model: {mark.reason}")
        if not isinstance(mark, FeatureMap):
            raise Unsupported("cannot sample from this model: its output does not depend on the image")
        c = self._images.shape[1]
        kinds = [axis.kind for axis in mark.axes]
        if (
            kinds != ["N", "C", "H", "W", "C"]
            or mark.axes[1].size != c
            or mark.axes[4].size * c != mark.channels
        ):
            raise Unsupported(
                f"cannot sample from this model: its output has shape {list(output.shape)}, expected logits "
                f"[N, C, H, W, levels] = [{self._grid[0]}, {c}, {self._grid[1]}, {self._grid[2]}, levels]"
            )
        result = self._in_order(mark)
        return tuple(self.instructions), result, mark.axes[4].size

    def _in_order(self, mark: FeatureMap) -> int:
        """The logits in the order channel * levels + level, by a 1x1 permutation where they are not."""
        channel, level = mark.axes[1], mark.axes[4]
        order = torch.arange(channel.size)[:, None] * channel.stride + torch.arange(level.size) * level.stride
        if torch.equal(order.flatten(), torch.arange(mark.channels)):
            return mark.value
        permutation = torch.zeros(mark.channels, mark.channels, dtype=self._dtype(), device=self._images.device)
        permutation[order.flatten(), torch.arange(mark.channels)] = 1
        return self._emit(mark.channels, taps=(Tap(mark.value, 0, 0, permutation),)).value

    def _dtype(self) -> torch.dtype:
        weights = [tap.weight for instruction in self.instructions for tap in instruction.taps]
        return weights[0].dtype if weights else torch.get_default_dtype()
