"""Swaps layers of a model you already have for faster ones, in place, and can undo it."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import FusedSequential, MaskedConv2d, ResidualBlock
from pixelcnn_fast.nn.fused import is_masked
from pixelcnn_fast.ops.backend import choose


@dataclass
class Accelerated:
    """What ``accelerate`` did to a model, by module path. swapped: what became of it; left: why it was left."""

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _originals: list[tuple[nn.Module, type]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Turns every module back into what it was; parameters stay as they are now. A second call does nothing."""
        for module, original in self._originals:
            module.__class__ = original
        self._originals.clear()

    def __str__(self) -> str:
        lines = []
        for title, found in (("swapped", self.swapped), ("left", self.left)):
            groups = defaultdict(list)
            for path, text in found.items():
                groups[text].append(path or "the model itself")
            for text, paths in groups.items():
                some = ", ".join(paths[:3]) + (f", … ({len(paths)} in all)" if len(paths) > 3 else "")
                lines.append(f"{title:<8} {some}: {text}")
        return "\n".join(lines) or "nothing to swap: the model has no convolution but the library's own"


def accelerate(model: nn.Module, quiet: bool = False) -> Accelerated:
    """Swaps masked convolutions, and in inference what follows them, for this library's fast ones.

    It recognises this library's plain modules, ``nn.Conv2d`` subclasses that multiply their weight by a mask of zeros
    and ones (a buffer or an attribute, in place or not), and ``nn.Sequential`` in which convolution, batch norm and
    activation follow each other. A convolution is checked on a random input before it is swapped. The modules stay
    the same objects, with their parameters, state_dict keys and hooks; only this model changes. Unless ``quiet``, it
    prints what was swapped, and what was left and why.

        handle = accelerate(model)
        ...
        handle.undo()
    """
    handle = Accelerated()

    def swap(path: str, module: nn.Module, fast: type, text: str) -> None:
        handle._originals.append((module, type(module)))
        module.__class__ = fast
        handle.swapped[path] = text

    for path, module in model.named_modules():
        if "forward" in vars(module):
            handle.left[path] = "its forward was replaced on the instance"
        elif isinstance(module, nn.Conv2d) and not is_masked(module):
            mask_name, reason = _mask_of(module)
            if mask_name is None:
                handle.left[path] = reason
            else:
                backend = choose("auto", module.weight.device, module.weight.dtype)
                swap(
                    path,
                    module,
                    _subclass(MaskedConv2d, type(module), mask_name=mask_name),
                    f"{type(module).__name__} → masked convolution ({backend})",
                )
        elif type(module) is reference.ResidualBlock:
            swap(path, module, _subclass(ResidualBlock, type(module)), "ResidualBlock → fused in inference")
    for path, module in model.named_modules():
        if type(module) is nn.Sequential and FusedSequential.has_runs(module):
            swap(path, module, _subclass(FusedSequential, nn.Sequential), "Sequential → fused in inference")
    if not quiet:
        print(handle)
    return handle


def _subclass(fast: type[nn.Module], original: type[nn.Module], **attributes: object) -> type[nn.Module]:
    """A subclass of ``original`` with the forward of ``fast``: its instances are still instances of ``original``."""
    return type(
        original.__name__,
        (original,),
        {"forward": fast.forward, "__module__": original.__module__, **attributes},
    )


def _mask_of(conv: nn.Conv2d) -> tuple[str | None, str]:
    """The name of the attribute that holds the mask, or None and why the convolution is left."""
    kind = type(conv).__name__
    if type(conv) is nn.Conv2d:
        return None, "Conv2d without a mask of its own"
    if "weight" not in conv._parameters and not is_parametrized(conv):
        return (
            None,
            f"{kind} with the old weight_norm; one with torch.nn.utils.parametrizations.weight_norm can be swapped",
        )
    if conv.stride != (1, 1) or conv.groups != 1 or conv.padding_mode != "zeros":
        return None, f"{kind} with a stride, groups or padding other than zeros"
    if conv.kernel_size[0] % 2 == 0 or conv.kernel_size[1] % 2 == 0:
        return None, f"{kind} with an even kernel, which has no centre"
    names = [*dict(conv.named_buffers(recurse=False)), *vars(conv)]
    candidates = [name for name in names if _looks_like_mask(getattr(conv, name), conv.weight)]
    for name in candidates:
        if _computes_masked_conv2d(conv, getattr(conv, name)):
            return name, ""
    if candidates:
        return None, f"{kind} computes something other than a convolution masked by its {candidates[0]!r}"
    return None, f"{kind} has no mask of zeros and ones in the shape of its weight"


def _looks_like_mask(x: object, weight: Tensor) -> bool:
    if not isinstance(x, Tensor) or x.dim() != 4 or x.device != weight.device:
        return False
    fits = all(a in (1, b) for a, b in zip(x.shape, weight.shape, strict=True))
    return fits and bool(((x == 0) | (x == 1)).all())


@torch.no_grad()
def _computes_masked_conv2d(conv: nn.Conv2d, mask: Tensor) -> bool:
    """Tries a copy without hooks, so that the module itself is neither masked in place nor observed."""
    copied = copy.deepcopy(conv).eval()
    for hooks in (copied._forward_hooks, copied._forward_pre_hooks):
        hooks.clear()
    weight = copied.weight.clone()
    size = [d * (k - 1) + 3 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    x = torch.randn(1, conv.in_channels, *size, dtype=torch.float32).to(weight)
    expected = F.conv2d(x, weight * mask, conv.bias, padding=conv.padding, dilation=conv.dilation)
    try:
        got = copied(x)
    except Exception:  # for example, its forward takes other arguments; it is left alone
        return False
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return False
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.05
    return bool((got - expected).abs().max() <= tolerance * (1 + expected.abs().max()))
