"""Lists by path what a module holds: modules, tensors, and all else that decides what it does."""

from __future__ import annotations

import copyreg
import hashlib
import marshal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from itertools import chain
from operator import itemgetter
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, cast
from weakref import ProxyTypes

import torch
from torch import Tensor, nn

from pixelcnn_fast.fingerprint import fingerprint

STANDARD = frozenset(vars(nn.Module()))  # the attributes that every module has
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
# What no call depends on in eval mode; and what a module compiled itself to.
PASSED_OVER = STANDARD - {*HOOKS} | {"_compiled_call_impl"}
SWAPPED_FROM = "swapped_from"  # the attribute of a class that holds the one it stands for
MOST = 30_000  # settings, besides those of registered modules, that are looked at
LARGE = 1000  # items of a container, which comes after smaller ones
LONGEST = 600  # letters of a path, likewise
LARGEST = 1 << 20  # bytes of a NumPy array that are all looked at

ATOMS = frozenset((int, str, NoneType, bool, float, complex, bytes))
CONTAINERS = frozenset((tuple, list, dict))
PLAIN = ATOMS | CONTAINERS
SORTS = (*CONTAINERS, deque, set, frozenset)
NAMED = (type, Enum, ModuleType, torch.dtype, torch.device, torch.layout, torch.memory_format)


class NotPartOfModel:
    """What does not count as part of a model, even if the model holds it, such as its sampler. Copies of
    the model hold an empty one in its place."""


class Contents:
    """What was found in a module when this was made, by path: tensors, modules, and
    ``settings``, which are numbers, texts, functions, types, and which objects there are.
    Modules of equal settings compute the same functions of their tensors, as far as can be
    seen from outside.

    others: objects, each with the attribute that leads to it; leading: the ids of the
    attributes that lead to tensors or modules.

    It is walked as ``copy.deepcopy`` does, and into what functions hold. Paths of what is not registered have a colon.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self.settings: dict[str, object] = {}
        self.others: list[tuple[Any, Any]] = []
        self.leading: set[int] = set()
        # By id: its path, and itself, which keeps the id its own.
        self._seen: dict[int, tuple[str, object]] = {}
        self._next: deque[tuple[str, Any, Any]] = deque()  # to be looked into: path, object, attribute
        self._large: deque[tuple[str, Any, Any]] = deque()  # what comes last
        self._most = sys.maxsize
        self._module("", module)
        self._most = len(self.settings) + MOST
        while self._next or self._large:
            self._object(*(self._next or self._large).popleft())
        self._seen.clear()

    @property
    def device(self) -> torch.device:
        """The device of the tensors; the CPU if there are none."""
        return next((x.device for x in self.tensors.values()), torch.device("cpu"))

    def _module(self, path: str, module: nn.Module) -> None:
        found = list(parts(module, path))
        for at, each in found:
            is_new = id(each) not in self._seen
            self._seen.setdefault(id(each), (at, each))
            self.modules[at] = each
            kind = vars(type(each)).get(SWAPPED_FROM, type(each))
            registered = each._modules, each._parameters, each._buffers
            names = tuple(tuple((name, x is None) for name, x in [*held.items()]) for held in registered)
            self.settings[at] = kind, getattr(kind, "forward", None), names, is_new or self._seen[id(each)][0]
            for held in (each._parameters, each._buffers):
                for name, x in [*held.items()]:
                    if x is not None:
                        self._tensor(f"{at}.{name}" if at else name, x)
                        self._seen.setdefault(id(x), (f"{at}.{name}", x))
        for at, each in found:
            if self._seen[id(each)][0] != at:
                continue
            for name, value in _state(each):
                if name in HOOKS:
                    for number, hook in enumerate([*value.values()]):
                        self._value(f"{at}:{name}[{number}]", hook, hook)
                elif name not in PASSED_OVER:
                    self._value(f"{at}:{name}", value, value)
            for name, x in [*each._buffers.items()]:
                if x is not None and vars(x):
                    self._value(f"{at}:{name}", vars(x), x)
            if path or type(each).train is not nn.Module.train:  # it may keep its own mode
                self.settings[f"{at}:training"] = each.training

    def _tensor(self, path: str, x: Tensor) -> None:
        if isinstance(x, if_imported("torch._subclasses.fake_tensor", "FakeTensor")):
            return  # in the notes of a graph that was exported
        if x.layout is torch.strided and not x.is_nested:
            self.tensors[path] = x
        else:  # a forward that reads it can't be recorded
            self.settings[path] = (
                x.layout,
                fingerprint(x.detach().to_dense() if not x.is_nested else x.values()),
            )

    def _value(self, path: str, x: Any, attribute: Any) -> None:
        kind = type(x)
        if len(self.settings) >= self._most or len(path) >= LONGEST:
            return
        if kind is int or kind is str:
            self.settings[path] = x
        elif kind in ATOMS:
            self.settings[path] = kind, repr(x)  # -0.0 is not 0.0
        elif kind in CONTAINERS and (plain := _plain(x)) is not None:
            self.settings[path] = kind, plain
        elif kind in ProxyTypes or isinstance(x, NotPartOfModel):
            self.settings[path] = NotPartOfModel
            self.others.append((x, attribute))
        elif isinstance(x, NAMED):
            self.settings[path] = x
            self.others.append((x, attribute))
            if id(x) not in self._seen:
                self._seen[id(x)] = path, x
                self.settings.update((f"{path}.{name}", each) for name, each in _plain_attributes(x))
        elif id(x) in self._seen:
            self.settings[path] = "what is at", self._seen[id(x)][0]
        else:
            self.settings[path] = kind
            self._seen[id(x)] = path, x
            is_large = isinstance(x, SORTS) and len(cast(Any, x)) > LARGE
            (self._large if is_large else self._next).append((path, x, attribute))

    def _object(self, path: str, x: Any, attribute: Any) -> None:
        within: Iterable[tuple[str, Any]]
        if isinstance(x, (nn.Module, Tensor)):
            self.leading.add(id(attribute))
        if isinstance(x, nn.Module):
            self._module(path, x)
            return
        if isinstance(x, Tensor):
            self.settings[path] = Tensor
            self._tensor(path, x)
            within = () if isinstance(x, nn.Parameter) else _named(vars(x))
        else:
            self.others.append((x, attribute))
            self.settings[path], within = _looked_into(x)
        for name, each in within:
            if len(self.settings) >= self._most:
                break
            self._value(path + name, each, attribute)


def _state(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes with which a module is copied."""
    if type(module).__getstate__ is not nn.Module.__getstate__:
        with suppress(Exception):
            return [*module.__getstate__().items()]
    return [*vars(module).items()]  # another thread may be training it


def _plain(x: Any) -> bytes | None:
    """A container of ``ATOMS`` and such containers, as bytes; else None."""
    try:
        found = marshal.dumps(x, 2)  # a version that does not tell which objects are the same one
    except (ValueError, RuntimeError):  # another thread may be filling a dictionary
        return None
    within = [x]
    while within:  # NumPy's arrays would be bytes
        within = [*chain.from_iterable(chain(x, x.values()) if type(x) is dict else x for x in within)]
        if not PLAIN.issuperset(map(type, within)):
            return None
        within = [x for x in within if type(x) in CONTAINERS]
    return found


def _looked_into(x: Any) -> tuple[object, Iterable[tuple[str, Any]]]:
    """-> (what tells the object from others, what it holds by name)."""
    kind = type(x)
    if isinstance(x, MethodType):
        return kind, [(".__func__", x.__func__), (".__self__", x.__self__)]
    if isinstance(x, BuiltinFunctionType):
        return (x.__qualname__, kind), [(".__self__", x.__self__)]
    if isinstance(x, FunctionType):
        closure = [*(x.__defaults__ or ()), x.__kwdefaults__]
        for cell in x.__closure__ or ():
            with suppress(ValueError):  # the cell is empty
                closure.append(cell.cell_contents)
        return x.__code__, chain(_numbered(closure), _named(vars(x)))
    if isinstance(x, (dict, MappingProxyType)):
        pairs = [*x.items()]
        keys = [key if _is_plain(key) else number for number, (key, _) in enumerate(pairs)]
        items = ((f"[{key!r}]", each) for key, (_, each) in zip(keys, pairs, strict=True))
        of_keys = ((f"[key {number}]", key) for number, (key, _) in enumerate(pairs) if not _is_plain(key))
        return (kind, tuple(keys)), chain(items, of_keys, _named(_attributes(x)))
    if isinstance(x, (tuple, list, deque)):
        return (kind, len(x)), chain(_numbered(x, "[]"), _named(_attributes(x)))
    if isinstance(x, (set, frozenset)):  # whose order is another in a copy
        others = [each for each in x if not _is_plain(each)]
        by_kind = {(type(each).__qualname__, getattr(each, "__qualname__", "")): each for each in others}
        of_their_own = [(f"{{{kind}}}", by_kind[kind]) for kind in sorted(by_kind)]
        told = frozenset(filter(_is_plain, x))
        within = of_their_own if len(by_kind) == len(others) else []
        return (kind, len(x), told), chain(within, _named(_attributes(x)))
    if any(each.__module__ == "numpy" for each in kind.__mro__) and hasattr(x, "tobytes"):
        if not x.dtype.hasobject:
            step = x.nbytes // LARGEST + 1
            seen = x.reshape(-1)[::step] if step > 1 else x
            digest = hashlib.blake2b(seen.tobytes()).digest()
            return (kind, x.dtype, x.shape, digest), _named(_attributes(x))
        return (kind, x.shape), chain(_numbered(x.flat, "[]"), _named(_attributes(x)))
    for plain in (int, float, complex, str, bytes):
        if isinstance(x, plain):
            return (kind, plain.__repr__(x)), _named(_attributes(x))
    return _reduced(x)


def _reduced(x: Any) -> tuple[object, Iterable[tuple[str, Any]]]:
    """``_looked_into`` by the function, the arguments and the state with which ``copy.deepcopy`` copies."""
    kind = type(x)
    try:
        made = copyreg.dispatch_table.get(kind, lambda x: x.__reduce_ex__(4))(x)
        function, arguments, *rest = (made, ()) if isinstance(made, str) else made
        state, items, pairs = (*rest, None, None, None)[:3]
    except Exception:  # it can't be copied
        return kind, _named(_attributes(x))
    if isinstance(made, str):  # it is what a global name stands for
        return (kind, made), _named(_attributes(x))
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # of slots, too
    named = [_named(each) for each in states if isinstance(each, dict)]
    others = [each for each in states if each is not None and not isinstance(each, dict)]
    return (kind, getattr(function, "__qualname__", "")), chain(
        *named,
        _numbered(others, "{}"),
        _numbered(arguments, "{}"),
        _numbered(items or (), "[]"),
        _numbered(pairs or (), "[]"),
    )


def _plain_attributes(x: object) -> Iterator[tuple[str, object]]:
    """The plain attributes, by name, of a class and those within it, or of a Python module."""
    is_file = isinstance(x, ModuleType) and not hasattr(x, "__path__")  # and no package, such as torch
    owners = x.__mro__[-2::-1] if isinstance(x, type) else (x,) if is_file else ()
    for owner in owners:
        for name, each in [*vars(owner).items()]:
            if name.startswith("__"):
                continue
            if isinstance(each, type) and each.__qualname__ == f"{getattr(owner, '__qualname__', '')}.{name}":
                yield from ((f"{name}.{inner}", plain) for inner, plain in _plain_attributes(each))
            elif type(each) in PLAIN and (plain := _plain((each,))) is not None:
                yield name, plain


def _named(held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f".{name}", each) for name, each in [*held.items()])


def _numbered(held: Iterable[Any], bracket: str = "()") -> Iterator[tuple[str, Any]]:
    return ((f"{bracket[:-1]}{number}{bracket[-1]}", each) for number, each in enumerate([*held]))


def _attributes(x: Any) -> dict[str, Any]:
    with suppress(Exception):  # of an object that makes its attributes up
        return dict(getattr(x, "__dict__", {}))
    return {}


def _is_plain(x: Any) -> bool:
    """Whether an object equals its copies and is fully described by its text."""
    return (
        type(x) in ATOMS or isinstance(x, Enum) or (type(x) in (tuple, frozenset) and all(map(_is_plain, x)))
    )


def are_same(settings: Mapping[str, object], others: Mapping[str, object]) -> bool:
    """Whether two modules have the same settings, in the order in which a forward may meet them."""
    return settings == others and list(settings) == list(others)


def described(settings: Mapping[str, object]) -> list[str]:
    """``Contents.settings`` as sorted texts, the same in another process."""
    return [f"{path}: {_text(x)}" for path, x in sorted(settings.items(), key=itemgetter(0))]


def _text(x: object) -> str:
    if isinstance(x, FunctionType):
        return _text(x.__code__)
    if isinstance(x, CodeType):
        return f"{x.co_name} {x.co_code.hex()} {x.co_names} {_text(x.co_consts)}"
    if isinstance(x, (type, BuiltinFunctionType)):
        return f"{x.__module__}.{x.__qualname__}"
    if isinstance(x, (tuple, list)):
        return f"({', '.join(map(_text, x))})"
    if isinstance(x, (frozenset, set)):
        return f"{{{', '.join(sorted(map(_text, x)))}}}"
    return x.__name__ if isinstance(x, ModuleType) else repr(x)


def parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module and all modules in it, by all their paths, which leave wrappers out."""
    module = unwrapped(module)
    yield path, module
    for name, child in [*module._modules.items()]:
        if child is not None:
            yield from parts(child, f"{path}.{name}" if path else name)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``DataParallel`` and its like, and ``torch.compile``'s, unless they do more."""
    while True:
        if isinstance(module, if_imported("torch._dynamo", "OptimizedModule")):
            module = cast(nn.Module, module._orig_mod)
            continue
        averaged = if_imported("torch.optim.swa_utils", "AveragedModel")
        kinds: tuple[Any, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel, *averaged)
        kind = next((kind for kind in kinds if isinstance(module, kind)), None)
        has_own = "forward" in vars(module) or any(vars(module)[name] for name in HOOKS)
        if kind is None or has_own or type(module).forward is not kind.forward:
            return module
        module = cast(nn.Module, module.module)


def parameters_of(module: nn.Module, tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parameters in whose dtype a module computes: those registered or, if none are, held."""
    return [*module.parameters()] or [x for x in tensors if isinstance(x, nn.Parameter)]


def ranks_averaged_over(module: nn.Module) -> int:
    if isinstance(module, if_imported("torch._dynamo", "OptimizedModule")):
        module = cast(nn.Module, module._orig_mod)
    return module.process_group.size() if isinstance(module, nn.parallel.DistributedDataParallel) else 1


def if_imported(module: str, name: str) -> tuple[type, ...]:
    """The type of that name, as a tuple for isinstance, empty while its module is not imported."""
    found = getattr(sys.modules.get(module), name, None)  # another thread may be importing it
    return () if found is None else (found,)
