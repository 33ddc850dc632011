"""A copy of the user's module in eval mode, through which gradients reach the module's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.program.calls import flat
from pixelcnn_fast.user_model.contents import Contents, parameters_of
from pixelcnn_fast.user_model.held_module import Substituted
from pixelcnn_fast.user_model.model_arguments import ON_META
from pixelcnn_fast.user_model.private_copy import (
    changes_with_its_mode,
    copy_or_why_not,
    eagerly,
    exclusively,
    sets_more,
)
from pixelcnn_fast.user_model.tensors import duplicate, in_place_of, overlapping, unreached


@contextmanager
def standing_for(
    live: nn.Module, device: torch.device, dtype: torch.dtype, read: Callable[[], Container[str]]
) -> Iterator[nn.Module]:
    """A context that gives a module in eval mode, on a device and in a dtype, through which
    gradients reach the live one's tensors: a copy, which runs eagerly; or the live one itself,
    if ``accelerate`` or its own ``compile()`` has compiled it and nothing else would differ.

    read: gives the paths of tensors that the forward reads. Raises ValueError if some of those have no values.
    """
    is_as_wanted = (
        not any(each.training for each in live.modules())
        and all(x.device == device for x in live.parameters())
        and all(x.dtype == dtype for x in live.parameters() if x.is_floating_point())
    )
    if live._compiled_call_impl is not None and is_as_wanted:
        yield live
        return
    with eagerly, _copy_of(live, device, dtype, read) as copied:
        yield copied


@contextmanager
def _copy_of(
    live: nn.Module, device: torch.device, dtype: torch.dtype, read: Callable[[], Container[str]]
) -> Iterator[nn.Module]:
    """A copy of the module in eval mode with clones of its tensors; if it can't be copied, itself with clones."""
    own = Contents(live).tensors
    on_meta = [path for path, x in own.items() if x.is_meta]
    if on_meta and any(path in read() for path in on_meta):
        raise ValueError(f"a part of the model is {ON_META}")
    copied: nn.Module | str = "its copies know nothing of clones"
    others = _clones(live, own, device, dtype)
    try:
        found = copy_or_why_not(live, in_place_of(own, others), is_trained=True)
        # A ``__deepcopy__`` of the module's own may not know of the trained tensors that it was given.
        wanted = {id(x) for x in others.values() if x.requires_grad}
        held = set() if isinstance(found, str) else set(map(id, Contents(found).tensors.values()))
        if isinstance(found, str) or not wanted or wanted & held:
            copied = found
    except Exception:  # its eval() does what goes with parameters alone, such as freezing them
        copied = _linked(live, own, _clones(live, own, device, dtype))  # some may have been written into
    if isinstance(copied, nn.Module):
        yield copied
        return
    with exclusively(live):  # its eval() may have changed its weights
        yield Substituted(live, _clones(live, Contents(live).tensors, device, dtype))


def _linked(live: nn.Module, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> nn.Module | str:
    """A copy, or why there is none, for modules whose ``eval()`` asks for
    parameters: those still trained are then replaced by clones of the module's
    own, with the numbers of eval mode."""
    parameters = in_place_of(own, {path: x.detach() for path, x in others.items()})
    origins = {id(parameters[id(x)]): x for x in own.values()}
    copied = copy_or_why_not(live, dict(parameters), is_trained=True)
    if isinstance(copied, str):
        return copied
    now = Contents(copied).tensors
    memo: dict[int, Any] = {id(x): x for x in now.values() if not x.is_leaf}
    for x in now.values():
        if x.requires_grad and id(x) in origins:
            memo[id(x)] = clone = origins[id(x)].to(x.device, x.dtype, copy=True)
            clone.data = x.detach()
    return duplicate(copied, memo)


def _clones(
    live: nn.Module, own: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Clones of tensors, by path, which share memory as before unless they are trained.
    Those of the module's own dtype get ``dtype``."""
    computes_in = {x.dtype for x in parameters_of(live, own.values()) if x.is_floating_point()}
    sharing = {path for pair in overlapping(own) for path in pair}
    storages, once = dict[tuple[int, torch.dtype], Tensor](), dict[int, Tensor]()
    for path, x in own.items():
        kind = dtype if x.dtype in computes_in else x.dtype
        if path in sharing and not x.requires_grad:
            key = x.untyped_storage().data_ptr(), x.dtype
            if key not in storages:
                storages[key] = flat(x).to(device, kind, copy=True)
            once[id(x)] = storages[key].as_strided(x.shape, x.stride(), x.storage_offset())
        elif id(x) not in once:
            once[id(x)] = x.to(x.device if x.is_meta else device, kind).clone()
    return {path: once[id(x)] for path, x in own.items()}


def without_gradients(live: nn.Module, result: Tensor) -> list[str]:
    """The paths of trainable parameters without gradients: eval mode computes with others instead."""
    held = Contents(live)
    if not changes_with_its_mode(held):
        return []
    parts = [f"{path}." if path else "" for path, each in held.modules.items() if sets_more(each)]
    return [path for path in unreached(result, held.tensors) if path.startswith(tuple(parts))]
