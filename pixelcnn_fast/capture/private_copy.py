"""The module that is captured: a copy of the user's in eval mode, so that theirs is never touched."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pixelcnn_fast.program.calls import leaves
from pixelcnn_fast.telling import tell


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel``, an ``AveragedModel`` and what ``torch.compile``
    returns."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(module, _if_imported("torch.optim.swa_utils", "AveragedModel")):
            module = cast(nn.Module, module.module)
        elif isinstance(module, _if_imported("torch._dynamo", "OptimizedModule")):
            module = cast(nn.Module, module._orig_mod)
        else:
            return module


def _if_imported(module: str, name: str) -> tuple[type, ...]:
    """A type, if there can be instances of it: another thread may just be importing the compiler."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def private_copy(module: nn.Module) -> nn.Module | None:
    """A copy in eval mode that runs eagerly, or None, with a warning, for a module that can't be copied."""
    detached = {
        id(x): x.detach().clone()
        for each in module.modules()
        for x in leaves(vars(each))
        if isinstance(x, Tensor) and not x.is_leaf  # such as the weight of torch.nn.utils.weight_norm
    }
    try:
        if any(
            _holds_a_module(x) for each in module.modules() if unwrapped(each) is each for x in _functions(each)
        ):
            raise TypeError(
                "a function that it was given holds one of its modules, and functions are not copied"
            )
        copied = copy.deepcopy(module, detached)
        own = {id(x) for x in (*module.modules(), *module.parameters(), *module.buffers())}
        for x in (*copied.modules(), *copied.parameters(), *copied.buffers()):
            if id(x) in own:
                raise TypeError(f"a {type(x).__name__} in it is its own copy")
    except Exception as error:
        tell(
            f"{type(module).__name__} can't be copied ({type(error).__name__}: {error}), so the module itself is "
            "used, in eval mode meanwhile: let no other thread use it then, and do not train it before you are done"
        )
        return None
    for parent in copied.modules():
        for name, child in parent.named_children():
            if (inner := unwrapped(child)) is not child:
                setattr(parent, name, inner)
    copied.eval()  # whose result may be anything, if the user has replaced train()
    return copied


def _functions(module: nn.Module) -> list[FunctionType]:
    """The functions that a module was given as attributes or hooks; a copy leaves out what it compiled itself to."""
    given = [x for name, x in vars(module).items() if name != "_compiled_call_impl"]
    return [x for x in leaves(given) if isinstance(x, FunctionType)]


def _holds_a_module(x: Any, depth: int = 4) -> bool:
    """Whether a function holds a module, a parameter, or a method of one: in its closure, in its defaults, in what
    these hold."""
    if isinstance(x, (nn.Module, nn.Parameter)):
        return True
    if depth == 0:
        return False
    if isinstance(x, FunctionType):
        held = [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        for cell in x.__closure__ or ():
            with suppress(ValueError):  # the cell is empty
                held.append(cell.cell_contents)
    elif isinstance(x, partial):
        held = [x.func, *x.args, *x.keywords.values()]
    elif isinstance(x, MethodType):
        held = [x.__self__, x.__func__]
    elif isinstance(x, (list, tuple, set, dict)):
        held = list(x.values()) if isinstance(x, dict) else list(x)
    elif isinstance(x, (type, ModuleType, Tensor)):
        held = []
    else:
        held = list(getattr(x, "__dict__", {}).values())
    return any(_holds_a_module(each, depth - 1) for each in held)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """For a module that can't be copied: within the context it is in eval mode, and no other thread is in one for the
    same module; afterwards each of its modules is as it was."""
    with _locks_lock:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        before = [_State(each) for each in module.modules()]
        if any(state.training for state in before):
            module.eval()
        try:
            yield
        finally:
            for state in before:
                if state.training and not state.module.training:
                    state.module.train()  # which may do more, such as taking adapters out of the weights again
            for state in before:
                state.restore()


class _State:
    """What a module has as attributes, its mode among them, and what is in its buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self._attributes = dict(vars(module))
        self._held = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}
        self._buffers = [(x, x.clone()) for x in module._buffers.values() if x is not None]

    def restore(self) -> None:
        own = vars(self.module)
        for name in own.keys() - self._attributes.keys():
            del own[name]
        own.update(self._attributes)
        for name, held in self._held.items():
            own[name].clear()
            own[name].update(held)
        for x, kept in self._buffers:
            if not torch.equal(x, kept):
                x.copy_(kept)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Within the context, PyTorch's, Python's and NumPy's generators may be used: afterwards they are as they were."""
    is_cuda, numpy = device.type == "cuda", sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng([device] if is_cuda else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)


class _Eagerly:
    """A context, for all threads together, in which what is wrapped by ``torch.compile`` runs eagerly."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stance = threading.Lock(), 0, nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0 and "torch._dynamo" in sys.modules:  # else nothing can have been compiled
                self._stance = torch.compiler.set_stance("force_eager")
                self._stance.__enter__()
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                stance, self._stance = self._stance, nullcontext()
                stance.__exit__(*error)


eagerly = _Eagerly()
