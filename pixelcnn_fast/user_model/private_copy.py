"""Copies the user's module into eval mode, so that the module itself is never touched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import HOOKS, SWAPPED_FROM, Contents, unwrapped
from pixelcnn_fast.user_model.random_state import random_state_kept
from pixelcnn_fast.user_model.tensors import are_equal, duplicate


def private_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module | None:
    """A copy in eval mode that runs eagerly; or None, with a warning. memo: as for ``copy.deepcopy``."""
    copied = copy_or_why_not(module, memo)
    if isinstance(copied, nn.Module):
        return copied
    tell(
        f"{type(module).__name__} can't be copied ({copied}), so the module itself is used, in eval mode meanwhile: "
        "let no other thread use it then, and do not train it before you are done"
    )
    return None


def copy_or_why_not(
    module: nn.Module, memo: dict[int, Any] | None = None, is_separate: bool = True, is_trained: bool = False
) -> nn.Module | str:
    """As ``private_copy``, or why there is no copy. memo: by id, what takes the place of
    tensors; is_separate: whether no function of the copy may lead to the module; is_trained:
    whether gradients are wanted."""
    held, memo = Contents(module), {} if memo is None else memo
    for x in held.tensors.values():
        if not x.is_leaf:  # such as the weight of torch.nn.utils.weight_norm
            memo.setdefault(id(x), x.detach().clone())
    try:
        copied = duplicate(module, memo, held)
        of_copy = Contents(copied)
        if is_separate:
            _check_separate(held, of_copy)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not is_trained:  # by which PyTorch decides how it multiplies matrices
        shared = {id(x) for x in held.tensors.values()}  # through functions, which are not copied
        for x in of_copy.tensors.values():
            if x.is_leaf and id(x) not in shared:
                x.requires_grad_(False)
    for parent in copied.modules():
        kind: Any = type(parent)
        if is_parametrized(parent) and kind.__name__.startswith("Parametrized"):
            # PyTorch has given it a class of its own, and changes that again.
            parent.__class__ = type(kind.__name__, kind.__bases__, {SWAPPED_FROM: kind, **vars(kind)})
        # It is the module's own, for one with a __getstate__ of its own.
        vars(parent).pop("_compiled_call_impl", None)
        for name, child in parent.named_children():
            if (inner := unwrapped(child)) is not child:
                setattr(parent, name, inner)
    # It may make modules, whose weights are random at first.
    with random_state_kept(held.device) if changes_with_its_mode(held) else nullcontext():
        returned: object = copied.eval()  # anything, if the user has replaced train()
    if isinstance(returned, nn.Module) and returned is not copied and unwrapped(returned) is not copied:
        tell(
            f"eval() of {type(module).__name__} returns another module, a {type(returned).__name__}, which is not "
            "taken: pass the result of model.eval() if that is the model"
        )
    return copied


def _check_separate(one: Contents, other: Contents) -> None:
    """Raises TypeError if two modules share a module, a parameter or a buffer."""
    # What a hook alone has seen is nothing that the module computes with.
    hooks = [f":{name}" for name in HOOKS]
    held = (*one.modules.items(), *one.tensors.items())
    own = {id(x) for path, x in held if not any(name in path for name in hooks)}
    for path, x in (*other.modules.items(), *other.tensors.items()):
        if id(x) in own and (":" not in path or isinstance(x, (nn.Module, nn.Parameter))):
            if "(" in path:
                raise TypeError(
                    "a function that it was given holds one of its modules, and functions are not copied"
                )
            raise TypeError(f"a {type(x).__name__} in it is its own copy")


def changes_with_its_mode(held: Contents) -> bool:
    """Whether ``train()`` or ``eval()`` of one of its modules may do more than set the mode."""
    return any(map(sets_more, held.modules.values()))


def sets_more(module: nn.Module) -> bool:
    kind, replaced = type(module), {"train", "eval"} & vars(module).keys()
    return bool(replaced) or (kind.train, kind.eval) != (nn.Module.train, nn.Module.eval)


def drifting(module: nn.Module | None, held: Contents) -> frozenset[str]:
    """The paths of a copy's tensors that train mode makes anew, which may round them. held: what it holds."""
    if module is None or not changes_with_its_mode(held):
        return frozenset()
    with suppress(Exception), random_state_kept(held.device):
        trained = Contents(duplicate(module).train()).tensors
        return frozenset(
            path for path, x in held.tensors.items() if path in trained and not are_equal(x, trained[path])
        )
    return frozenset(held.tensors)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


@contextmanager
def exclusively(module: nn.Module) -> Iterator[None]:
    """A context in which a module that can't be copied is in eval mode and locked; afterwards it is as it was."""
    with _locks_lock:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        held = Contents(module)
        before = [_State(each) for each in {id(each): each for each in held.modules.values()}.values()]
        kept = [*held.tensors.values()]  # merging and taking them out again may round
        if not changes_with_its_mode(held):
            kept = [x for each in held.modules.values() for x in each._buffers.values() if x is not None]
        tensors = [(x, x.data, x.detach().clone()) for x in {id(x): x for x in kept}.values()]
        if any(state.training for state in before):
            module.eval()
        try:
            yield
        finally:
            for state in before:
                if state.training and not state.module.training:
                    state.module.train()  # which may do more, such as taking adapters out of weights
            for state in before:
                state.restore()
            for x, data, was in tensors:
                if not are_equal(data, was):
                    data.copy_(was)
                if x.data_ptr() != data.data_ptr() or not are_equal(x, was):
                    x.data = data


class _State:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self._attributes = dict(vars(module))
        self._held = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}

    def restore(self) -> None:
        own = vars(self.module)
        for name in own.keys() - self._attributes.keys():
            del own[name]
        own.update(self._attributes)
        for name, held in self._held.items():
            own[name].clear()
            own[name].update(held)


class _Eagerly:
    """A context, shared by all threads, in which whatever ``torch.compile`` has wrapped runs eagerly."""

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
