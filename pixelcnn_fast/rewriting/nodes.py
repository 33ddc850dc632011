"""What the calls of a captured graph call, and what they write into."""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional as F

from pixelcnn_fast import ops  # noqa: F401  # registers torch.ops.pixelcnn_fast

MUL = frozenset((operator.mul, torch.mul, torch.multiply, "mul", "multiply"))
MUL_IN_PLACE = frozenset((operator.imul, "mul_", "multiply_"))
DIV = frozenset((operator.truediv, torch.div, torch.true_divide, "div", "true_divide"))
ADD = frozenset((operator.add, torch.add, "add"))
ADD_IN_PLACE = frozenset((operator.iadd, "add_"))
CONV2D = frozenset((torch.conv2d, F.conv2d))
MASKED_CONV2D = torch.ops.pixelcnn_fast.masked_conv2d.default
TANH = frozenset((torch.tanh, F.tanh, "tanh"))
SIGMOID = frozenset((torch.sigmoid, torch.special.expit, F.sigmoid, "sigmoid"))
# These write into their first argument.
WRITING = frozenset(
    getattr(operator, name)
    for name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift imatmul setitem".split()
)
DUNDER_WRITING = frozenset(f"__{target.__name__}__" for target in WRITING)
# What ``weight.data = …`` becomes, also after ``weight.data *= …``.
NEW_DATA = ("shallow_copy_data_", "set_")
# The model in Dynamo's names for its modules.
_SOURCE = re.compile(r"^L\['\w+'\](\.__self__)?\.?")
BATCH_NORM = frozenset((F.batch_norm, torch.batch_norm))
_PACKAGES = (
    "torch",
    "operator",
    "_operator",
    "math",
    "builtins",
)  # others' functions may have been allowed in a graph
_EMBEDDING = frozenset((F.embedding, F.embedding_bag))
STATISTICS = BATCH_NORM | frozenset((F.instance_norm, torch.instance_norm))


def spelled(*names: str) -> frozenset[Any]:
    """What a graph may call for pointwise functions of these names, in place or not."""
    all_names = [f"{name}{suffix}" for name in names for suffix in ("", "_")]
    found = {getattr(module, name, None) for module in (operator, torch, F) for name in all_names}
    return frozenset((found - {None}) | {*all_names})


def calls(node: Any, targets: Collection[Any]) -> TypeGuard[fx.Node]:
    """Whether a node calls one of some functions, or methods by name."""
    return isinstance(node, fx.Node) and is_any_call(node) and node.target in targets


def is_call(node: Any, targets: Collection[Any]) -> TypeGuard[fx.Node]:
    """Whether a node does so, with its first argument by position and no ``out=``."""
    return calls(node, targets) and bool(node.args) and "out" not in node.kwargs


def is_any_call(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method")


def arguments(node: fx.Node) -> SimpleNamespace:
    """What a Python function is called with, by the names of its parameters."""
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]  # a function
    bound.apply_defaults()
    return SimpleNamespace(**bound.arguments)


def argument(node: fx.Node, at: int, name: str, default: Any = None) -> Any:
    return node.args[at] if at < len(node.args) else node.kwargs.get(name, default)


def slices(node: Any) -> list[slice] | None:
    """What a call x[:, a:b, ...] takes of each axis of a map [N, C, H, W], if these are runs."""
    if not is_call(node, (operator.getitem,)) or not isinstance(node.args[1], tuple):
        return None
    index: list[Any] = list(node.args[1])
    if index.count(...) == 1:
        at = index.index(...)
        index[at : at + 1] = (5 - len(index)) * [slice(None)]
    index += (4 - len(index)) * [slice(None)]
    if len(index) != 4 or any(not isinstance(x, slice) or x.step not in (None, 1) for x in index):
        return None
    are_known = all(isinstance(n, int | None) for x in index for n in (x.start, x.stop))
    return index if are_known and len(size(node.args[0]) or ()) == 4 else None


def proxies(graph: fx.Graph, *given: Any) -> list[Any]:
    """Nodes, such that what is computed with them is put into the graph; others as they are."""
    tracer = GraphAppendingTracer(graph)
    return [fx.Proxy(x, tracer) if isinstance(x, fx.Node) else x for x in given]


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def name_of(node: fx.Node) -> str:
    """The name of what a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def value(node: Any) -> Tensor | None:
    """The fake tensor that a node stands for, if it is one."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def size(node: Any) -> tuple[Any, ...] | None:
    found = value(node)
    return None if found is None else tuple(found.shape)


def line(node: fx.Node) -> str:
    """Where the model's code makes a call, and how: "model.py:12, in forward: return F.conv2d(...)"."""
    trace = [text.strip() for text in (node.meta.get("stack_trace") or "").splitlines() if text.strip()]
    places = [at for at, text in enumerate(trace) if text.startswith("File ")]
    if not places:  # called by nn.Sequential, say
        modules = list((node.meta.get("nn_module_stack") or {}).values())
        return f"in module {_SOURCE.sub('', modules[-1][0])}" if modules else "?"
    where, code = trace[places[-1]], trace[places[-1] + 1 :]
    _, file, rest = where.split('"', 2)
    number, _, function = rest.removeprefix(", line ").partition(", in ")
    return f"{file.rsplit('/', 1)[-1]}:{number}, in {function}" + (f": {code[0]}" if code else "")


class Writes:
    """Which calls of a graph may write into which memory: fake tensors that share memory share a storage.

    A tensor that is given other data keeps its fake storage, so the two count as one.
    """

    def __init__(self, graph: fx.Graph, inference: bool) -> None:
        self.inference = inference
        self._same: dict[int, int] = {}
        for node in graph.nodes:
            if name_of(node) in NEW_DATA and is_any_call(node):
                given = [self._one(storage) for x in node.all_input_nodes for storage in storages(x)]
                self._same.update((storage, given[0]) for storage in given[1:] if storage != given[0])
        self._into: dict[int, list[fx.Node]] = {}
        self._known_outside: set[int] = set()
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._inputs = self._storages(inputs)
        arguments = self._storages([node for node in inputs if _is_argument(node)])
        # Other inputs may share memory with an argument the next time.
        self._arguments, self._into_arguments, self.into_inputs = arguments, list[fx.Node](), list[fx.Node]()
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                self._known_outside.update(self._storages([node, *node.all_input_nodes]))
            into = {self._one(storage) for storage in written(node)}
            for storage in into:
                self._into.setdefault(storage, []).append(node)
            if into.isdisjoint(self._inputs) or isinstance(_written(node), _Guess):
                continue
            self.into_inputs.append(node)
            if not into.isdisjoint(arguments):
                self._into_arguments.append(node)

    def _one(self, storage: int) -> int:
        while storage in self._same:
            storage = self._same[storage]
        return storage

    def _storages(self, nodes: Collection[Any]) -> set[int]:
        return {self._one(storage) for x in nodes for storage in storages(x)}

    def into(self, read: Collection[Any]) -> Iterator[fx.Node]:
        """The calls that may write into what some nodes hold."""
        storages_ = self._storages(read)
        for storage in storages_:
            yield from self._into.get(storage, ())
        if not storages_.isdisjoint(self._arguments):
            yield from self.into_inputs
        elif not storages_.isdisjoint(self._inputs):
            yield from self._into_arguments

    def none_before_backward(self, kept: Collection[Any]) -> bool:
        """Whether nobody but the graph can write into what an op keeps for its backward."""
        return self.inference or not self.are_known_outside(kept)

    def are_known_outside(self, nodes: Collection[Any]) -> bool:
        """Whether some of what nodes hold is an input or a result of the graph."""
        return not self._known_outside.isdisjoint(self._storages(nodes))

    def none_between(self, start: fx.Node, end: fx.Node, read: Collection[Any]) -> bool:
        """Whether no call between two others may write into what some nodes hold."""
        return not any(start < node < end for node in self.into(read))

    def none_after(self, start: fx.Node, read: Collection[Any], but: Collection[fx.Node] = ()) -> bool:
        """``none_between`` until the end, which what an op keeps for its backward needs."""
        return not any(start < node for node in self.into(read) if node not in but)


def _is_argument(node: fx.Node) -> bool:
    """Whether an input is what the caller gave, and no attribute of a module."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", ".")
    return "." not in (name if isinstance(name, str) else name())


class MemoryView(NamedTuple):
    """Where in which storage a tensor lies: tensors with equal views are the same numbers."""

    storage: int
    offset: Any
    size: tuple[Any, ...]
    stride: tuple[Any, ...]


def view(node: Any) -> MemoryView | None:
    found = value(node)
    if found is None:
        return None
    storage = found.untyped_storage()._cdata
    return MemoryView(storage, found.storage_offset(), tuple(found.shape), found.stride())


def storages(node: Any) -> set[int]:
    found = view(node)
    return set() if found is None else {found.storage}


def written(node: fx.Node) -> set[int]:
    """The storages that a call may write into."""
    return {storage for x in _written(node) for storage in storages(x)}


class _Guess(list[Any]):
    """What a call may write into, if it writes at all, which is not known."""


def _written(node: fx.Node) -> list[Any]:
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    everything, target, name = _Guess(node.all_input_nodes), node.target, name_of(node)
    if not is_any_call(node):
        return everything
    if isinstance(target, torch._ops.OpOverload):
        return _written_by_schema(node, target._schema)
    if isinstance(target, torch._ops.OpOverloadPacket):
        schemas = [getattr(target, overload)._schema for overload in target.overloads()]
        return everything if any(schema.is_mutable for schema in schemas) else []
    if target in STATISTICS:
        is_eval = target in BATCH_NORM and argument(node, 5, "training", False) is False
        source = argument(node, 0, "input")
        return [] if is_eval else [x for x in everything if x is not source]
    if target in _EMBEDDING:  # it may normalise its weight
        return list(node.args[1:2]) or everything
    if name.startswith("_foreach") and name.endswith("_"):
        return [*everything]
    if _may_write(target, name):
        return everything
    parameters = _parameters(target)
    given = dict(zip(parameters, node.args, strict=False)) | node.kwargs
    is_in_place = bool(given.get("inplace"))
    if "inplace" not in parameters:  # which may be any of them, as in torch.celu(x, 1, True)
        is_in_place = is_in_place or any(x is True for x in node.args)
    is_named_so = name.endswith("_") and not name.endswith("__")
    is_method_named_so = is_named_so and node.op == "call_method"
    if target in WRITING or name in DUNDER_WRITING or is_in_place or is_method_named_so:
        return [node.args[0]] if node.args else everything
    if is_named_so or name == "copyto":
        return [*everything]
    out = node.kwargs.get("out")
    return list(out) if isinstance(out, (list, tuple)) else [out]


def _may_write(target: Any, name: str) -> bool:
    module = str(getattr(target, "__module__", ""))
    return (
        isinstance(target, torch._ops.HigherOrderOperator)  # a checkpoint, whose body may write
        # Arrays share memory with tensors. ``array[:] = 3`` is wrapped___setitem__ of Dynamo's.
        or "numpy" in f"{name} {module}"
        or module.startswith("torch._dynamo")
        or name.startswith(("wrapped_", "embedding", "_foreach"))
        or any(part in name for part in ("batch_norm", "instance_norm", "moving_avg"))  # statistics
        or (isinstance(target, FunctionType) and module.partition(".")[0] not in _PACKAGES)
    )


@functools.cache
def _parameters(target: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(target).parameters) if isinstance(target, FunctionType) else ()


def _written_by_schema(node: fx.Node, schema: torch.FunctionSchema) -> list[Any]:
    given = [(each, argument(node, at, each.name)) for at, each in enumerate(schema.arguments)]
    written = [x for each, x in given if each.alias_info is not None and each.alias_info.is_write]
    return [x for each in written for x in (each if isinstance(each, (list, tuple)) else [each])]


def _is_known(node: fx.Node) -> bool:
    """Whether a call writes nothing, draws nothing, and is no operator of others."""
    if isinstance(node.target, torch._ops.OpOverload):
        is_foreign = node.target.namespace not in ("aten", "prims")
    else:
        is_foreign = isinstance(node.target, (torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator))
    is_random = any(
        part in name_of(node) for part in ("rand", "dropout", "bernoulli", "multinomial", "normal")
    )
    return is_any_call(node) and not is_foreign and not is_random and all(x is None for x in _written(node))


@torch.no_grad()
def evaluated(node: fx.Node, real: Mapping[fx.Node, Tensor], writes: Writes) -> Tensor | None:
    """What a node holds now, if that follows from the inputs. real: their tensors."""
    # After ``x.data *= …``, Dynamo takes an input for one without a gradient.
    found: dict[fx.Node, Any] = {
        x: now
        for x, now in real.items()
        if not now.requires_grad or (fake := value(x)) is None or fake.requires_grad
    }
    wanted = [node]
    while wanted:
        each = wanted[-1]
        if each in found:
            wanted.pop()
            continue
        if not _is_known(each) or any(writes.into([each])):
            return None
        if missing := [x for x in each.all_input_nodes if x not in found]:
            wanted += missing
            continue
        args, kwargs = fx.node.map_arg((each.args, each.kwargs), found.__getitem__)
        function: Any = getattr(type(args[0]), name_of(each)) if each.op == "call_method" else each.target
        found[each] = function(*args, **kwargs)
    return found[node] if isinstance(found[node], Tensor) else None
