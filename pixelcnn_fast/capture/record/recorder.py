"""Records a model's ATen calls, the storages in use, and what Python reads off tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, Memory, View, draws, flat, leaves, map_leaves, needed
from pixelcnn_fast.program.dispatch_mode import DispatchMode
from pixelcnn_fast.program.sketch import sketched

# What a tensor may depend on, besides the weights.
IMAGE, LABELS, CONDITION = "image", "labels", "condition"

# What reads elements past PyTorch: no number that comes of it can be followed.
PAST_TORCH = {
    getattr(Tensor, name): name for name in ("numpy", "__array__", "tolist", "__dlpack__", "data_ptr")
}
SHOWN = (Tensor.__repr__, Tensor.__format__)  # as text, from which numbers may be read
BRANCH = "if"
NUMBERS = {
    **{getattr(of, name): BRANCH for of in (Tensor, torch) for name in ("is_nonzero", "equal", "allclose")},
    Tensor.__bool__: BRANCH,
    Tensor.item: "item()",
    Tensor.__float__: "float()",
    Tensor.__int__: "int()",
    Tensor.__index__: "an index",
}
CHECK = "check"  # of a call of PyTorch, which reads numbers only to raise
SCALAR = torch.ops.aten._local_scalar_dense.default
NUMBERS_BELOW = (SCALAR, torch.ops.aten.equal.default, torch.ops.aten.allclose.default)


@dataclass(frozen=True)
class Escape:
    """A number that Python read off a tensor, after ``at`` calls. of: what the tensor depends on."""

    at: int
    where: str
    what: str
    of: frozenset[str]
    is_branch: bool = False
    call: Call | None = None
    value: Any = None

    def __str__(self) -> str:
        return (
            f"{self.what} in {self.where} of a tensor that depends on the {' and the '.join(sorted(self.of))}"
        )

    @property
    def taken_for_granted(self) -> str:
        """What a program takes for granted of all images, if the number was read off one."""
        if self.is_branch:
            return f"{self.where}: an if on the image is {self.value}"
        read = f"{self.where}: {self.what} reads a number off the image"
        return read if self.value is None else f"{read}, which was {self.value} in an example"


@dataclass
class Leaf:
    """A storage that no call created. parameters: the parameters and buffers on it, by
    name, with their places; before: a copy, if a call has written into it."""

    held: Tensor
    parameters: tuple[tuple[str, View], ...] = ()
    before: Tensor | None = None

    @property
    def name(self) -> str | None:
        return self.parameters[0][0] if self.parameters else None

    @property
    def tensor(self) -> Tensor:
        return self.held if self.before is None else self.before


@dataclass
class Recording:
    """The calls of one forward. images, given: the views that the model was given; outputs:
    the view that it returned, and the same as parameters; constants_read: the views of all
    else that Python read, with the number of calls before."""

    n: int
    calls: list[Call] = field(default_factory=list)
    escapes: list[Escape] = field(default_factory=list)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    whole: dict[int, View] = field(default_factory=dict)  # each slot's layout when it was first seen
    images: View | None = None
    given: tuple[View | None, ...] = ()
    outputs: tuple[View, ...] = ()
    constants_read: list[tuple[int, View]] = field(default_factory=list)

    def inputs(self) -> set[int]:
        return {view.slot for view in (self.images, *self.given) if view is not None}

    @cached_property
    def needed(self) -> list[Call]:
        return needed(self.calls, [view.slot for view in self.outputs])

    def read(self, by_python: bool = False) -> dict[int, Leaf]:
        """The leaves that the needed calls read, and with by_python Python; not what the model was given."""
        calls, views = [*self.needed], list[View]()
        if by_python:
            views += [view for _, view in self.constants_read]
            views += [view for escape in self.escapes if escape.call for view in escape.call.inputs]
            calls += needed(self.calls, [view.slot for view in views])
        views += [view for call in calls for view in call.inputs]
        slots = dict.fromkeys(view.slot for view in views)
        return {
            slot: self.leaves[slot] for slot in slots if slot in self.leaves and slot not in self.inputs()
        }

    def unnamed(self) -> list[Tensor]:
        """The tensors without a name that no call created and the needed calls read."""
        found = dict.fromkeys(view for call in self.needed for view in call.inputs)
        read = {slot: leaf.tensor for slot, leaf in self.read().items() if not leaf.parameters}
        return [
            read[view.slot].as_strided(*view.at(self.n))
            for view in found
            if view.slot in read and view.dtype == read[view.slot].dtype
        ]

    def memory(
        self,
        n: int,
        converted: Callable[[Tensor], Tensor] = lambda x: x,
        calls: Collection[Call] | None = None,
    ) -> Memory:
        """The storages before the first call, for n images; copies where a call writes into them. calls: those whose
        storages are wanted (None: all)."""
        used = None if calls is None else set[int]().union(*(call.read | call.written for call in calls))
        held = {slot: leaf.tensor for slot, leaf in self.leaves.items() if used is None or slot in used}
        return Memory.before(self.calls, n, held, converted)


class Recorder(DispatchMode):
    """Records calls. ``path``: the modules whose forward is running."""

    def __init__(self, n: int, named: Iterable[tuple[str, Tensor]] = (), is_sketch: bool = False) -> None:
        """named: the parameters and buffers, with their names; is_sketch: whether products of
        what depends on the image are zeros, which takes less time."""
        super().__init__()
        self._is_sketch = is_sketch
        self.recording = Recording(n)
        self.path: list[str] = []
        self._named: dict[int, list[tuple[str, View]]] = defaultdict(list)  # by storage
        for name, x in named:
            self._named[x.untyped_storage()._cdata].append((name, View.of(x, -1)))
        # by storage; weak references keep identities from being used again
        self._slots: dict[int, int] = {}
        self._references: list[StorageWeakRef] = []
        self._depends: list[frozenset[str]] = []
        self.allows_autocast = False
        self.reading = ""  # the Python-level call that reads a number, if there is one

    def where(self) -> str:
        return (self.path[-1] if self.path else "") or "model"

    def depends_on(self, tensor: Tensor) -> frozenset[str]:
        slot = self._slots.get(tensor.untyped_storage()._cdata)
        return frozenset() if slot is None else self._depends[slot]

    def input(self, tensor: Tensor, of: str) -> View:
        """Registers a tensor that the model is given, and says what it is ``of``."""
        view = self.view(tensor)
        self._depends[view.slot] = frozenset({of})
        return view

    def view(self, tensor: Tensor, depends: frozenset[str] | None = None) -> View:
        """The view that a tensor is. depends: what a call's result depends on; None if it is
        no result: a new storage is then a leaf."""
        storage = tensor.untyped_storage()
        if (slot := self._slots.get(storage._cdata)) is not None:
            return View.of(tensor, slot)
        self._references.append(StorageWeakRef(storage))
        slot = self._slots[storage._cdata] = len(self._depends)
        self._depends.append(depends or frozenset())
        view = self.recording.whole[slot] = View.of(tensor, slot)
        if depends is None:
            self.recording.leaves[slot] = Leaf(tensor.detach(), tuple(self._named.get(storage._cdata, ())))
        return view

    def _check_dense(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            if x.is_nested or x.layout is not torch.strided:
                kind = "nested" if x.is_nested else f"of layout {x.layout}"
                raise Unsupported(f"{self.where()}: a tensor that is {kind}; only dense tensors are followed")
            if x.is_neg() or x.is_conj():
                raise Unsupported(
                    f"{self.where()}: the conjugate of complex numbers, which PyTorch only takes when it is read, is "
                    "not followed: write it as torch.complex(x.real, -x.imag)"
                )

    supports_higher_order_operators = True  # to refuse them

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # which marks what is in a trace
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.HigherOrderOperator):
            raise Unsupported(f"{self.where()}: {func.name()}: it takes functions; call them instead")
        if _is_composite(func):
            with self:  # in inference mode, PyTorch has not taken it apart
                return func.decompose(*args, **kwargs)
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._check_dense(tensors)
        recorded_args, recorded_kwargs = map_leaves(
            lambda x: self.view(x) if isinstance(x, Tensor) else x, (args, kwargs)
        )
        depends = frozenset().union(*(self.depends_on(x) for x in tensors))
        if func._schema.is_mutable:
            for x in tensors:
                leaf = self.recording.leaves.get(self._slots[x.untyped_storage()._cdata])
                if leaf is not None and leaf.before is None:
                    leaf.before = flat(leaf.held).clone()
        is_view = torch.Tag.inplace_view in func.tags  # such as transpose_; resize_ may need more memory
        before = _memory(tensors[0]) if is_view else None
        out = sketched(func, args) if self._is_sketch and IMAGE in depends and not kwargs else None
        out = func(*args, **kwargs) if out is None else out
        moves_nothing = _memory(tensors[0]) == before if is_view else not func._schema.is_mutable
        if func in NUMBERS_BELOW:
            is_yes_or_no = tensors[0].dtype is torch.bool or func is not SCALAR
            self._escaped(func, recorded_args, depends, is_yes_or_no, out)
            return out
        results = leaves(out)
        found = [x for x in results if isinstance(x, Tensor)]
        if draws(func, args, kwargs) and IMAGE not in depends:
            for x in found:  # a constant, if it is the same in each recording
                self._slots.pop(x.untyped_storage()._cdata, None)
                self.view(x)
            return out
        self._check_dense(found)
        storages = {x.untyped_storage()._cdata for x in tensors}
        if found and moves_nothing and all(x.untyped_storage()._cdata in storages for x in found):
            return out
        views = tuple(self.view(x, depends) if isinstance(x, Tensor) else None for x in results)
        call = Call(func.name(), recorded_args, recorded_kwargs, views, self.where())
        if depends:
            for slot in call.written:
                self._depends[slot] |= depends
            if call.has_size_of_values:
                self._noted("the size", depends, value=[list(x.shape) for x in found])
        self.recording.calls.append(call)
        if call.has_size_of_values and not depends:  # which Python may look at
            masks = [view for view in call.inputs if view.dtype is torch.bool]
            self._noted("the size", depends, masks or call.outputs)
        return out

    def _escaped(
        self, func: Any, args: tuple, depends: frozenset[str], is_yes_or_no: bool, value: Any
    ) -> None:
        if self.reading == CHECK:
            return
        is_branch = is_yes_or_no if not self.reading else self.reading == BRANCH
        what = "a branch" if is_branch else (self.reading or "item()")
        value = bool(value) if is_branch else value
        call = Call(func.name(), args, {}, (None,), self.where())
        self._noted(what, depends, call.inputs, is_branch=is_branch, call=call, value=value)

    def _noted(
        self, what: str, depends: frozenset[str], views: Iterable[View] = (), **of_number: Any
    ) -> None:
        """Notes that Python reads a number, and from which views if it depends on nothing given."""
        at = len(self.recording.calls)
        if depends:
            self.recording.escapes.append(Escape(at, self.where(), what, depends, **of_number))
        else:
            self.recording.constants_read += [(at, view) for view in views]

    def __reduce__(self) -> tuple:
        """Copies and pickles have None in a recorder's place."""
        return NoneType, ()

    def check_autocast(self, x: object) -> None:
        """Raises Unsupported within autocast, which does not show below Python. x: a first argument."""
        if self.allows_autocast or not isinstance(x, Tensor) or x.dtype != torch.float32:
            return
        if torch.is_autocast_enabled(x.device.type):
            raise Unsupported(
                f"{self.where()}: autocast within forward, whose rounding is not followed: convert the model itself, "
                "as by model.to(torch.bfloat16), or leave autocast to those who call it"
            )

    def read_unseen(self, tensor: Tensor, what: str) -> None:
        self._noted(what, self.depends_on(tensor), [self.view(tensor)])


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _memory(x: Tensor) -> tuple[int, int]:
    storage = x.untyped_storage()
    return storage._cdata, storage.nbytes()


class Reads(TorchFunctionMode):
    """Notices which call from Python reads a number off a tensor."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._recorder.check_autocast(args[0] if args else None)
        if (name := PAST_TORCH.get(func)) is not None and isinstance(args[0], Tensor):
            if self._recorder.depends_on(args[0]) or name != "data_ptr":  # which says nothing of the values
                self._recorder.read_unseen(args[0], f"{name}()")
        if func in SHOWN and args[0].numel():
            self._recorder.read_unseen(args[0], "the text")
        is_check = func is F.one_hot and (len(args) > 1 or "num_classes" in kwargs)
        before = self._recorder.reading
        self._recorder.reading = CHECK if is_check else NUMBERS.get(func, before)
        try:
            return func(*args, **kwargs)
        finally:
            self._recorder.reading = before


@contextmanager
def module_paths(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Within the context, ``path`` holds the names of the modules whose forward is running."""

    def leave(*_: Any) -> None:
        path.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
                hooks.enter_context(module.register_forward_hook(leave, always_call=True))
        yield
