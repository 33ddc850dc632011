"""Capture: run the user's module once on an example and record what it does to the image.

A forward computes with three kinds of tensors: constants, such as weights; conditions, such as labels and their
embeddings; and feature maps, which depend on the image. Calls on constants are not recorded. Calls on conditions are
recorded to be replayed for other labels. Calls on feature maps become instructions; one that can't is refused, but
only if the output needs its result: a reduction that only steers an ``if`` does no harm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pixelcnn_fast.capture.builder import Builder
from pixelcnn_fast.capture.decompositions import OWN_OPS
from pixelcnn_fast.capture.lowering import (
    ARITHMETIC,
    FRESH,
    JOINS,
    LIKE,
    LOWERINGS,
    MOVEMENTS,
    is_in_place,
    plain_name,
)
from pixelcnn_fast.capture.shadow import ShadowMap
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.heads import Head, resolved
from pixelcnn_fast.image_forms import with_channels
from pixelcnn_fast.program.conditions import Call, Condition, Conditions, Given, leaves, map_leaves
from pixelcnn_fast.program.program import Instruction, Pointwise, Program, Read, needed
from pixelcnn_fast.program.steps import KINDS


@dataclass(frozen=True)
class Opaque:
    """The mark of a tensor that depends on the image in a way that no instruction expresses."""

    reason: str


Mark = ShadowMap | Condition | Opaque


def capture(
    model: nn.Module, images: Tensor, given: Given, head: Head
) -> tuple[Program, Conditions, Tensor, Head]:
    """Runs ``model`` on an example -> (program, conditions, the model's logits on the example, the resolved head).

    images: [2, C, H, W], or [2, H, W] for one channel, as the model takes them; given: for both images;
    logits: [2, C, H, W, L].
    Raises Unsupported, naming the module and the call, for a call that has no place in a program, and UnknownLayout
    for an output that the head can't read.
    """
    parameter = next(model.parameters())
    tracer = Tracer(images, given, parameter.dtype, parameter.device, head.levels)
    with torch.no_grad(), _module_paths(model, tracer.path), tracer:
        output = given.call(model, images)
        tracer.check_last_call(output, head)
        head = resolved(head, output, tracer.shape)
        output = head.arranged(output, tracer.shape[1])
    instructions, result, parameters, normalised = tracer.finish(output, head)
    program = Program(
        tracer.shape[1:],
        parameters,
        tuple(instructions),
        (result,),
        parameter.dtype,
        parameter.device,
        normalised,
        head.joint,
    )
    return program, Conditions(tracer.builder.calls), output, head


@contextmanager
def _module_paths(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Within the context, ``path`` holds the names of the modules whose forward is running."""

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


class Tracer(TorchFunctionMode):
    def __init__(
        self, images: Tensor, given: Given, dtype: torch.dtype, device: torch.device, levels: int | None
    ) -> None:
        super().__init__()
        self.path: list[str] = []
        self.levels = levels
        self.shape = with_channels(images.shape)
        self.builder = Builder(self.shape, dtype, device)
        self.builder.where = self._where
        self._tracked: dict[int, tuple[Tensor, Mark]] = {}
        self._forgotten: dict[int, tuple[Mark, Tensor]] = {}  # the former mark, and the view that was changed
        self.holds_levels = bool((images == images.floor()).all())
        addresses = self.builder.images.addresses
        self._track(images, ShadowMap(self.builder.space, addresses=addresses.view(images.shape)))
        for index, tensor in enumerate(given):
            if tensor is not None:
                self.builder.calls.append(Call(operator.getitem, (Condition(0), index), {}))
                self._track(tensor, Condition(len(self.builder.calls) - 1))

    # -- following tensors through calls

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OWN_OPS:
            with self:
                return OWN_OPS[func](*args[:-1])  # without the last one, the backend
        if plain_name(func) == "setitem":
            self._recall(args[0], args[2])
        if plain_name(func) in LIKE and not isinstance(self.mark(args[0]), (ShadowMap, Opaque)):
            args = (args[0], *map_leaves(self._blank, args[1:]))
        marks = [mark for x in leaves((args, kwargs)) if (mark := self.mark(x)) is not None]
        of_condition = all(isinstance(mark, Condition) for mark in marks)
        if plain_name(func) == "setitem" and not of_condition:
            self._assign(func, args)
            return func(*args)
        if plain_name(func) == "fill" and not of_condition:
            self._assign(Tensor.__setitem__, (args[0], ..., args[1]))
            return func(*args)
        before, in_place = args, bool(marks) and (is_in_place(func) or kwargs.get("inplace") is True)
        if in_place and self.mark(args[0]) is None:
            before = (args[0].clone(), *args[1:])  # a constant until now
        output = func(*args, **kwargs)
        if in_place and of_condition:
            self._record_condition(_on_a_copy(func), before, kwargs, args[0])
            self._forget_views(func, args[0])
            return output
        if not marks or plain_name(func) in FRESH or not any(isinstance(x, Tensor) for x in leaves(output)):
            return output
        if of_condition:
            self._record_condition(func, args, kwargs, output)
            return output
        result = self._marks_of(func, marks, before, kwargs, output)
        for x, mark in zip(_tensors(output), _tensors(result), strict=False):
            self._track(x, mark)
        if in_place:
            self._forget_views(func, args[0])
        return output

    def mark(self, x: Any) -> Mark | None:
        entry = self._tracked.get(id(x))
        return entry[1] if entry is not None else None

    def feature_map(self, x: Any) -> ShadowMap:
        mark = self.mark(x)
        if not isinstance(mark, ShadowMap):
            raise Unsupported("an argument is not a feature map")
        return mark

    def constant(self, x: Any) -> Any:
        """Returns x, or raises Unsupported if it depends on the image or the condition."""
        if self.mark(x) is not None:
            raise Unsupported("its weights depend on the image or the condition")
        return x

    def _track(self, tensor: Tensor, mark: Mark) -> None:
        old = self.mark(tensor)
        if isinstance(old, ShadowMap) and isinstance(mark, ShadowMap) and old.has_addresses:
            old.addresses.copy_(mark.addresses)  # in place, so that views of the tensor see it too
            return
        self._tracked[id(tensor)] = (tensor, mark)  # keeping the tensor keeps its id from being reused

    def _forget_views(self, func: Callable, changed: Tensor) -> None:
        """Marks tensors that share the memory of one that was changed in place as opaque: what they hold now is not
        known, unless their addresses share memory, too."""
        mark = self.mark(changed)
        refusal = self._refusal(
            func, "it changes a tensor in place, and another tensor that shares its memory is used later"
        )
        for key, (tensor, other) in list(self._tracked.items()):
            if tensor is changed or isinstance(other, Opaque) or not _share_memory(tensor, changed):
                continue
            if isinstance(mark, ShadowMap) and isinstance(other, ShadowMap):
                if _share_memory(mark.addresses, other.addresses):
                    continue
            self._tracked[key] = (tensor, refusal)
            self._forgotten[key] = (other, changed)

    def _recall(self, target: Tensor, x: Any) -> None:
        """Restores the mark of e in ``e[:, :3] *= 2``, which changes a view of e and then assigns it to where it is."""
        before, changed = self._forgotten.get(id(target), (None, None))
        if before is not None and changed is x:
            self._tracked[id(target)] = (target, before)

    def condition(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The result of a call on conditions, which is recorded as if the model had made it."""
        output = func(*args, **kwargs)
        self._record_condition(func, args, kwargs, output)
        return output

    def _record_condition(self, func: Callable, args: tuple, kwargs: dict, output: Any) -> None:
        def marked(x: Any) -> Any:
            return self.mark(x) or x

        calls = self.builder.calls
        calls.append(Call(func, map_leaves(marked, args), map_leaves(marked, kwargs)))
        whole = len(calls) - 1
        if isinstance(output, Tensor):
            self._track(output, Condition(whole))
            return
        for index, x in enumerate(output):
            if isinstance(x, Tensor):
                calls.append(Call(lambda parts, i: parts[i], (Condition(whole), index), {}))
                self._track(x, Condition(len(calls) - 1))

    def _marks_of(self, func: Callable, marks: list[Mark], args: tuple, kwargs: dict, output: Any) -> Any:
        """The marks of a call's output, in the output's own structure."""
        opaque = next((mark for mark in marks if isinstance(mark, Opaque)), None)
        if opaque is not None:
            return map_leaves(lambda _: opaque, output)
        name = plain_name(func)
        try:
            if name in MOVEMENTS:
                return self._moved(func, args, kwargs, output)
            if name not in LOWERINGS:
                raise Unsupported("this call is not supported")
            if name in ARITHMETIC and output.dtype in (torch.uint8, torch.int8, torch.int16):
                raise Unsupported(
                    f"arithmetic in {output.dtype}, which may wrap round: convert it to floats first"
                )
            return LOWERINGS[name](self, output, *args, **kwargs)
        except Unsupported as error:
            refusal = self._refusal(func, str(error))
        except TypeError as error:
            refusal = self._refusal(func, f"it is not supported with these arguments ({error})")
        return map_leaves(lambda _: refusal, output)

    def _moved(self, func: Callable, args: tuple, kwargs: dict, output: Any) -> Any:
        """Runs a call that only moves elements on their addresses."""

        def addresses(x: Any) -> Any:
            mark = self.mark(x)
            if isinstance(mark, Condition) and plain_name(func) not in JOINS:
                raise Unsupported("how it moves the elements of a feature map depends on the condition")
            if mark is not None or (isinstance(x, Tensor) and x.is_floating_point()):
                return self.addresses(x, x.shape)
            return x.cpu() if isinstance(x, Tensor) else x

        on_addresses = Tensor.reshape if func is Tensor.view else func  # their strides may differ
        result = on_addresses(*map_leaves(addresses, args), **map_leaves(addresses, kwargs))
        taken = [x for x in leaves((args, kwargs)) if isinstance(self.mark(x), ShadowMap)]
        copied = not any(_share_memory(x, y) for x in _tensors(output) for y in taken)
        return map_leaves(
            lambda x: (
                ShadowMap(self.builder.space, addresses=x.clone() if copied else x)
                if isinstance(x, Tensor)
                else x
            ),
            result,
        )

    def addresses(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The addresses of x, broadcast to a shape. A condition or a constant becomes a feature map first."""
        mark = self.mark(x)
        if isinstance(mark, ShadowMap):
            return mark.addresses.expand(shape)
        zeros = ShadowMap(self.builder.space, addresses=torch.zeros(shape, dtype=torch.long))
        if isinstance(mark, Condition):
            return self.builder.with_condition("add", zeros, mark, x).addresses
        return (self.builder.with_constant("add", zeros, x) if bool(x.any()) else zeros).addresses

    def _blank(self, x: Any) -> Any:
        """A constant of the same shape and dtype in place of x, unless x is a constant itself."""
        return x if self.mark(x) is None else x.new_zeros(()).expand(x.shape)

    def _assign(self, func: Callable, args: tuple) -> None:
        """Performs ``target[index] = x`` on addresses."""
        target, index, x = args
        refused = next((m for m in map(self.mark, (target, x)) if isinstance(m, Opaque)), None)
        if refused is None:
            try:
                if any(self.mark(i) is not None for i in leaves(index)):
                    raise Unsupported("the index that it assigns to depends on the image or the condition")
                if not isinstance(self.mark(target), ShadowMap):
                    addresses = self.addresses(target, target.shape)
                    self._tracked[id(target)] = (
                        target,
                        ShadowMap(self.builder.space, addresses=addresses),
                    )
                func(self.feature_map(target).addresses, index, self._assigned(func, target.shape, index, x))
            except Unsupported as error:
                refused = self._refusal(func, str(error))
        if refused is not None:
            self._tracked[id(target)] = (target, refused)

    def _assigned(self, func: Callable, shape: torch.Size, index: Any, x: Any) -> Tensor:
        """The addresses of what an assignment writes into a map of this shape."""
        if isinstance(mark := self.mark(x), ShadowMap):
            return mark.addresses
        whole = torch.zeros(shape, dtype=self.builder.dtype, device=self.builder.device)
        if mark is None:
            func(whole, index, x)
        else:
            whole = self.condition(_on_a_copy(func), whole, index, x)
        return self.addresses(whole, shape)[index]

    def _refusal(self, func: Callable, why: str) -> Opaque:
        return Opaque(f"{self._where()}: {resolve_name(func) or plain_name(func)}: {why}")

    def _where(self) -> str:
        return (self.path[-1] if self.path else "") or "model"

    # -- the result

    def check_last_call(self, output: Any, head: Head) -> None:
        """Raises Unsupported if the last call shows that the output is not what the head reads."""
        mark = self.mark(output)
        if not isinstance(mark, ShadowMap):
            return
        for kind in KINDS:
            if (misread := head.misread(kind)) and self.builder.made_by(kind, mark) is not None:
                raise Unsupported(f"cannot sample from this model: {misread}")

    def finish(self, output: Any, head: Head) -> tuple[list[Instruction], int, int, bool]:
        """-> (instructions, output value, number of parameters, whether the model's output is their log-softmax)."""
        mark = self.mark(output)
        if isinstance(mark, Opaque):
            raise Unsupported(f"cannot sample from this model: {mark.reason}")
        if not isinstance(mark, ShadowMap):
            raise Unsupported("cannot sample from this model: its output does not depend on the image")
        n, c, height, width = self.shape
        shape = list(output.shape)
        expected = [n, head.distributions(c), height, width]
        if len(shape) != 5 or shape[:4] != expected:
            raise Unsupported(
                f"cannot sample from this model: its output has shape {shape}, expected "
                f"[N, distributions, H, W, parameters] = [{', '.join(map(str, expected))}, parameters]"
            )
        parameters, normalised = mark.addresses.permute(0, 1, 4, 2, 3), False
        if head.of_logits:
            parameters, normalised = without_log_softmax(self.builder, parameters)
        result = self.builder.gathered(ShadowMap(self.builder.space, addresses=parameters.flatten(1, 2)))
        if any(read.value == result for i in self.builder.instructions for read in i.reads()):
            # Runtimes do not keep logits for other instructions to read.
            result = self.builder.emit(
                Pointwise, self.builder.space.channels(result), base=Read(result)
            ).value()
        instructions = without_softmax(self.builder, needed(self.builder.instructions, [result]), head)
        return instructions, result, shape[4], normalised


def _on_a_copy(func: Callable) -> Callable:
    """The in-place call on a copy of its argument, which other calls may still read; it returns the copy."""

    def call(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = target.clone()
        func(target, *args, **kwargs)
        return target

    return call


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.numel() > 0 and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _tensors(x: Any) -> list[Any]:
    return [leaf for leaf in leaves(x) if isinstance(leaf, (Tensor, ShadowMap, Opaque))]


# -- a closing softmax over the levels is removed, since logits do as well; any other softmax is refused


def without_log_softmax(builder: Builder, logits: Tensor) -> tuple[Tensor, bool]:
    """Removes a closing log-softmax over the levels. logits: addresses of the model's output, [N, C, L, H, W]
    -> (addresses of what remains, whether there was one). Raises Unsupported for a log-softmax over other axes."""
    taken_of = builder.made_by("log_softmax", ShadowMap(builder.space, addresses=logits))
    if taken_of is None:
        return logits, False
    rows = _sorted_rows(logits.movedim(2, -1))
    if not any(_among(rows, _sorted_rows(known)) for known in builder.distributions):
        raise Unsupported("cannot sample from this model: its last call is a softmax, but not over the levels")
    return builder.space.moved(logits, taken_of), True


def without_softmax(builder: Builder, instructions: list[Instruction], head: Head) -> list[Instruction]:
    """The instructions. Raises Unsupported if one of them is a softmax."""
    for i in instructions:
        if i.out in builder.closings and not head.of_logits:
            raise Unsupported(
                f"cannot sample from this model: {i.name}: softmax: a program has none, and {head} does not read "
                "logits, for which it could be left out. Return what the softmax is taken of, and take it in the "
                "head's draw and log_probability; or set of_logits = True there if it changes no distribution"
            )
        if i.out in builder.closings:
            raise Unsupported(
                f"cannot sample from this model: {i.name}: softmax: it is supported only as the last call, over the "
                "levels. If the model returns probabilities, say so: "
                "head=heads.Categorical(levels, layout, probabilities=True)"
            )
    return instructions


def _sorted_rows(addresses: Tensor) -> Tensor:
    return addresses.flatten(0, -2).sort(-1).values


def _among(rows: Tensor, known: Tensor) -> bool:
    """Whether all of the sorted rows [n, L] are among the known ones [m, K], no two of which share an element."""
    if rows.shape[1] != known.shape[1]:
        return False
    known = known[known[:, 0].argsort()]
    at = torch.searchsorted(known[:, 0].contiguous(), rows[:, 0].contiguous()).clamp_max(len(known) - 1)
    return torch.equal(known[at], rows)
