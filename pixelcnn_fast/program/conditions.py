"""The part of a model that depends on labels and condition alone, which runs for each batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, PixelCNNFastError, Unsupported
from pixelcnn_fast.image_forms import PLAIN, Form, other_forms
from pixelcnn_fast.program.calls import Call, Memory, View, needed, plain_name, read_by, written_by
from pixelcnn_fast.program.operands import ConditionOperand, Convert
from pixelcnn_fast.program.sketch import Sketching

T = TypeVar("T")
# One, or several, by number or by name. A name of one alone is None.
OneOrMore: TypeAlias = T | tuple[T, ...] | Mapping[str, T]
Name: TypeAlias = str | int | None
Condition: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def named(x: Any) -> dict[Name, Any]:
    """What is one, or several in a tuple, a list or a dict, by name; None: there is none."""
    if isinstance(x, Mapping):
        return dict(x)
    if isinstance(x, (tuple, list)):
        return dict(enumerate(x))
    return {} if x is None else {None: x}


def like(x: Any, values: Iterable[Any]) -> Any:
    """The values of ``named(x)``, replaced by others."""
    if isinstance(x, Mapping):
        return dict(zip(x, values, strict=True))
    if isinstance(x, (tuple, list)):
        return tuple(values)
    return next(iter(values), None)


class Conditioning(NamedTuple):
    """What a model takes besides images: either, both or neither; one entry per image."""

    labels: Tensor | None = None  # [n]
    condition: OneOrMore[Tensor] | None = None  # [n, ...]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The labels and each condition."""
        return self.labels, *named(self.condition).values()

    def with_tensors(self, tensors: Iterable[Tensor | None]) -> Conditioning:
        labels, *conditions = tensors
        return Conditioning(labels, like(self.condition, conditions))

    def with_conditions(self, change: Callable[[Name, Tensor], Tensor]) -> Conditioning:
        changed = [change(*each) for each in named(self.condition).items()]
        return self._replace(condition=like(self.condition, changed))

    def with_condition(self, name: Name, x: Tensor) -> Conditioning:
        return self.with_conditions(lambda each, before: x if each == name else before)

    def in_dtype(self, dtype: torch.dtype) -> Conditioning:
        return self.with_conditions(lambda _, x: x.to(dtype) if x.is_floating_point() else x)

    @property
    def images(self) -> int:
        """For how many images it is; 0 if it is empty."""
        return next((len(x) for x in self.tensors if x is not None), 0)

    def part(self, images: slice | Tensor | list[int]) -> Conditioning:
        return self.with_tensors(x if x is None else x[images] for x in self.tensors)

    def call(self, module: nn.Module, images: Tensor, form: Form = PLAIN) -> Any:
        """Calls the module, which takes images in this form, with those in the plain one.

        A dict of conditions goes by name if these are arguments of the module's forward. Else the
        condition, a dict or a tuple of several as it is, goes by name if there is a ``condition``;
        else last, a tuple of several as one argument each.
        Raises ModelFailed for all that the module raises but the library's errors and MemoryError.
        """
        # It may write into what it is given.
        given = self.with_tensors(x if x is None else x.clone() for x in self.tensors)
        condition, names = given.condition, arguments_of(module)
        positional, by_name = list[Any](), dict[str, Any]()
        if isinstance(condition, dict) and are_arguments(condition, names):
            by_name.update(condition)
        elif condition is not None and "condition" in names:
            by_name["condition"] = condition
        elif condition is not None:
            positional += condition if isinstance(condition, tuple) else [condition]
        if given.labels is not None:
            first, *others = [*names, ""]
            free = [name for name in others if name and name not in by_name]
            if first in by_name and free:  # labels come after it
                by_name[free[0]] = given.labels
            else:
                positional.insert(0, given.labels)
        images = form.made(images)
        try:
            return module(images.clone(), *positional, **by_name)
        except (PixelCNNFastError, MemoryError):
            raise
        except Exception as error:
            raise ModelFailed(
                f"the model raised {type(error).__name__}: {error}\n"
                f"It was given images of {images.dtype} {list(images.shape)}{self.described()}. "
                f"{_what_to_say(images, form)}"
            ) from error

    def described(self) -> str:
        """Text that continues a sentence, such as ", labels [2] of 0, 1", or none."""
        found = "" if self.labels is None else f", labels {list(self.labels.shape)} of {_some(self.labels)}"
        for name, x in named(self.condition).items():
            what = "a condition" if name is None else f"the condition {name!r}"
            found += f", {what} of {x.dtype} {list(x.shape)}"
            found += "" if x.is_floating_point() else f" of {_some(x)}"
        return found


def are_arguments(conditions: Iterable[str], names: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a forward with arguments of these names takes each of the conditions by its name."""
    if any(p.kind is p.VAR_KEYWORD for p in names.values()):
        return "condition" not in names
    return all(name in names for name in conditions)


def _what_to_say(images: Tensor, form: Form) -> str:
    others = "conditional=, condition_shape= and condition_dtype= say what else it takes."
    if images.dtype != torch.uint8 or form != PLAIN:
        return f"image_form= says in what form it takes images, {others}"
    shape = tuple(images.shape[1:])
    return f"{other_forms(f'Sampler(model, {shape}, image_form=%r)', shape[0])}\nL is levels=; {others}"


def _some(x: Tensor) -> str:
    """The values in x as text: all of a few, or the first and the last."""
    values = [str(value) for value in x.unique().tolist()]
    return ", ".join(values) if len(values) <= 8 else f"{values[0]}...{values[-1]}"


def arguments_of(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The arguments of a module's forward besides the images, by name, as far as they are known."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # it is not written in Python
        return {}
    return dict(list(parameters.items())[1:])


NO_IF = "compute with the labels (embedding, one_hot, torch.where) in place of the if"
EXAMPLE_BATCH = 2  # not 1, so that a batch axis is never mistaken for one that broadcasts


class ReadByPython(NamedTuple):
    what: str
    of_condition: bool


@dataclass
class LabelBranch:
    """A branch on labels, which must be taken as it was recorded."""

    calls: Sequence[Call]  # what is computed before
    call: Call  # what reads the truth value
    leaves: Mapping[int, Tensor]  # what is in the slots that no call creates
    value: bool  # how it was taken
    what: str  # where it is, in words


class ConditionProgram:
    """The recorded calls on labels and condition; steps' operands read their slots.

    read_by_python: numbers that Python read, which may decide otherwise in batches that
    were not tried; verified: batches of labels that were tried.
    """

    def __init__(
        self,
        calls: Sequence[Call] = (),
        leaves: Mapping[int, Tensor] | None = None,
        given: Sequence[View | None] = (),
    ) -> None:
        """leaves: the slots that no call creates; given: where labels and condition are."""
        self._calls, self._leaves, self._given = calls, dict(leaves or {}), given
        self.read_by_python: list[ReadByPython] = []
        self.verified: set[tuple[int, ...]] = set()
        self.guards: list[LabelBranch] = []
        self._kept: dict[frozenset[int], tuple[list[Call], dict[int, Tensor]]] = {}

    def converted(self, convert: Convert) -> ConditionProgram:
        """The same calls on other constants."""

        def of(leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {slot: convert(x) for slot, x in leaves.items()}

        other = ConditionProgram(self._calls, of(self._leaves), self._given)
        other.read_by_python = self.read_by_python
        other.guards = [replace(guard, leaves=of(guard.leaves)) for guard in self.guards]
        return other

    @torch.no_grad()
    def __call__(
        self, operands: Sequence[ConditionOperand], given: Conditioning, n: int
    ) -> dict[ConditionOperand, Tensor]:
        """By operand, what the calls give for n images: [n, channels], or [n, H, W, channels].

        Raises ModelFailed if a call raises, for example for an unknown label, and
        Unsupported for a branch on labels that goes another way.
        """
        self._check_guards(given, n)
        if not operands:
            return {}
        memory = self._run(operands, given, n)
        return {operand: _filled(operand, memory[operand.node], n) for operand in operands}

    @torch.no_grad()
    def takes(self, operands: Sequence[ConditionOperand], given: Conditioning, n: int) -> bool:
        """Whether it raises nothing for these."""
        try:
            self._check_guards(given, n)
            with Sketching():
                self._run(operands, given, n)
        except (ModelFailed, Unsupported):
            return False
        return True

    def _check_guards(self, given: Conditioning, n: int) -> None:
        for guard in self.guards:
            memory = self._memory(guard.calls, guard.leaves, given, n)
            for call in guard.calls:
                memory.run(call)
            if bool(memory.result(guard.call)) != guard.value:
                raise Unsupported(f"{guard.what}: it falls otherwise for these labels; {NO_IF}")

    def _run(self, operands: Sequence[ConditionOperand], given: Conditioning, n: int) -> Memory:
        calls, leaves = self._needed_for(operands)
        memory = self._memory(calls, leaves, given, n)
        try:
            for call in calls:
                memory.run(call)
        except Exception as error:
            raise ModelFailed(
                f"what the model computes from the condition raised {type(error).__name__}: {error}\n"
                f"It was given {n} images{given.described()}."
            ) from error
        return memory

    def _needed_for(self, operands: Sequence[ConditionOperand]) -> tuple[list[Call], dict[int, Tensor]]:
        slots = frozenset(operand.node for operand in operands)
        if slots not in self._kept:
            self._kept[slots] = self._prepared(slots)
        return self._kept[slots]

    def elements(self, operands: Sequence[ConditionOperand]) -> int:
        """How many elements the calls make for an image, which tells how long they take."""
        calls, _ = self._needed_for(operands)
        return sum(math.prod(view.at(1)[0]) for call in calls for view in call.outputs)

    def rows_looked_up(self, which: int) -> int | None:
        """How many rows the smallest table has in which labels (which = 0) or the codes of a
        condition (1 and on) are looked up, if any."""
        rows = []
        copies = {view.slot for view in self._given[which : which + 1] if view is not None}
        for call in self._calls:
            if not call.inputs or call.inputs[-1].slot not in copies:
                continue
            if plain_name(call.name) in ("clone", "_to_copy"):
                copies |= call.written
            elif plain_name(call.name) in ("embedding", "index", "index_select"):
                rows += [size for table in call.inputs[:1] if isinstance(size := table.size[0], int)]
        return min(rows, default=None)

    def _memory(
        self, calls: Sequence[Call], leaves: Mapping[int, Tensor], given: Conditioning, n: int
    ) -> Memory:
        memory = Memory.before(calls, n, leaves)
        for view, x in zip(self._given, given.tensors, strict=False):
            if view is not None and x is not None:
                memory.put(view, x.to(view.dtype, copy=True))
        return memory

    def _prepared(self, slots: Iterable[int]) -> tuple[list[Call], dict[int, Tensor]]:
        """-> (the calls that slots need for each batch, and their leaves). All that depends
        on no batch is computed here, once."""
        calls = needed(self._calls, slots)
        each_time = self._each_time(calls)
        once = [call for call in calls if each_time.isdisjoint(call.written)]
        memory = Memory.before(once, 0, self._leaves)
        for call in once:
            memory.run(call)
        rest = [call for call in calls if not each_time.isdisjoint(call.written)]
        read, varying = read_by(rest) | set(slots), each_time | written_by(rest)
        leaves = {slot: memory[slot] for slot in read if slot in memory and slot not in each_time}
        leaves |= {slot: x for slot, x in self._leaves.items() if slot in read & varying}
        return rest, leaves

    def _each_time(self, calls: Sequence[Call]) -> set[int]:
        """The slots that are computed for each batch."""
        slots = {view.slot for view in self._given if view is not None}
        while True:
            before = len(slots)
            for call in calls:
                if call.follows_batch or any(v.slot in slots or v.follows_batch for v in call.inputs):
                    slots |= call.written
            last = {slot: at for at, call in enumerate(calls) for slot in call.written}
            for at, call in enumerate(calls):  # a constant that is changed after it was read
                if not slots.isdisjoint(call.written):
                    slots |= {v.slot for v in call.inputs if last.get(v.slot, -1) > at}
            if len(slots) == before:
                return slots


def _filled(operand: ConditionOperand, result: Tensor, n: int) -> Tensor:
    """result: a tensor whose storage holds the elements -> [n, *operand.index.shape]"""
    size = operand.index.shape
    if operand.layout is not None:
        strides, first = operand.layout
        elements = result.reshape(n, -1) if operand.per_image else result.reshape(1, -1).expand(n, -1)
        of_image, step = elements.stride()
        return elements[:, first:].as_strided((n, *size), (of_image, *(step * stride for stride in strides)))
    index = operand.index.to(result.device)
    if not operand.per_image:
        return result.flatten()[index].expand(n, *size)
    return result.reshape(n, -1)[:, index]
