"""The user's module as it is now, in eval mode, for gradients that go to its own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.kept_module import Substituted
from pixelcnn_fast.capture.parts import Held
from pixelcnn_fast.capture.private_copy import borrowed, changes_with_its_mode, copy_or_why_not, sets_more
from pixelcnn_fast.capture.tensors import in_place_of, overlapping, unreached
from pixelcnn_fast.program.calls import flat


@contextmanager
def standing_for(live: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """A copy of the module in eval mode, with clones of its tensors on a device and in a dtype, since it may write into
    them; if it can't be copied, itself, with the clones in the place of parameters and buffers.

    Raises ValueError if its tensors hold nothing.
    """
    own = Held(live).tensors
    if any(x.device.type == "meta" and x.numel() for x in own.values()):
        raise ValueError(
            "the model is on the device meta now, where tensors have no values: load its weights first"
        )
    others = _clones(own, device, dtype)
    try:
        copied = copy_or_why_not(live, in_place_of(own, others), is_trained=True)
    except RuntimeError:  # its eval() does what goes with parameters alone, and then there are no gradients
        plain = {path: x.detach() for path, x in others.items()}
        copied = copy_or_why_not(live, in_place_of(own, plain), is_trained=True)
    if isinstance(copied, nn.Module) and _has_any(copied, others):
        yield copied
    else:
        with borrowed(live):
            yield Substituted(live, others)


def _has_any(copied: nn.Module, others: Mapping[str, Tensor]) -> bool:
    """Whether a copy has any of the trained tensors that were to be in it, which a ``__deepcopy__`` of its own may not
    know of."""
    wanted = {id(x) for x in others.values() if x.requires_grad}
    found = {id(x) for x in Held(copied).tensors.values()}
    return not wanted or not wanted.isdisjoint(found)


def _clones(own: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Clones by path. Those of tensors that share memory do, too, unless they are trained."""
    sharing = {path for pair in overlapping(own) for path in pair}
    storages, once = dict[tuple[int, torch.dtype], Tensor](), dict[int, Tensor]()
    for path, x in own.items():
        kind = dtype if x.is_floating_point() else x.dtype
        if path in sharing and not x.requires_grad:
            key = x.untyped_storage().data_ptr(), x.dtype
            if key not in storages:
                storages[key] = flat(x).to(device, kind, copy=True)
            once[id(x)] = storages[key].as_strided(x.shape, x.stride(), x.storage_offset())
        elif id(x) not in once:
            once[id(x)] = x.to(device, kind).clone()
    return {path: once[id(x)] for path, x in own.items()}


def without_gradients(live: nn.Module, result: Tensor) -> list[str]:
    """The trainable parameters, by path, that get no gradients of a result since eval mode computes with something
    else that was made of them."""
    held = Held(live)
    if not changes_with_its_mode(held):
        return []
    parts = [f"{path}." if path else "" for path, each in held.modules.items() if sets_more(each)]
    return [path for path in unreached(result, held.tensors) if path.startswith(tuple(parts))]
