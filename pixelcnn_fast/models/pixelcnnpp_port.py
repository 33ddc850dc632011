"""State dicts of PixelCNN++'s common PyTorch port, https://github.com/pclucas14/pixel-cnn-pp.

A key of the port's ``PixelCNN`` is one of ``PixelCNNpp`` with ``conv``, ``deconv`` or ``lin_a``
before its last part: ``nin_out.lin_a.bias`` is ``nin_out.bias``. Tensors are the same, except that
- ``nin_skip`` and ``nin_out`` are linear layers in the port, and 1x1 convolutions here;
- ``down_layers.*.ul_stream.*.nin_skip`` reads elu(a), elu(b), elu(-a) and elu(-b) of two maps in the port, and
  elu(a), elu(-a), elu(b) and elu(-b) here;
- the port normalises the weights of ``upsize_*`` for each input channel: here, they are the
  same weights, normalised for each output channel.
The port's dropout leaves out whole channels, and ours single values, in training mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.models.pixelcnnpp import PARAMETERS, PixelCNNpp

FAMILY = PixelCNNpp
LAYERS = ("conv", "deconv", "lin_a")
# As torch.nn.utils.parametrizations.weight_norm names g and v.
LATER_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The port's tensors by the keys of ``PixelCNNpp``, in its shapes."""
    found = {}
    for key, value in tensors.items():
        for later, name in LATER_NAMES.items():
            key = key.replace(later, name)
        *path, name = key.split(".")
        while path and path[-1] in LAYERS:
            path.pop()
        found[".".join([*path, name])] = value[:, :, None, None] if value.dim() == 2 else value
    return found


def config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What builds the ``PixelCNNpp`` that renamed tensors fit, if there is one. Raises KeyError for what is missing."""
    colours = tensors["u_init.weight_v"].shape[1] - 1
    return {
        "input_channels": colours,
        "n_filters": len(tensors["u_init.bias"]),
        "n_resnets": sum(key.startswith("up_layers.0.u_stream.") for key in tensors) // 6,
        "n_mixtures": len(tensors["nin_out.bias"]) // PARAMETERS.get(colours, 1),
    }


def rearranged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renamed tensors that fit -> those of a ``PixelCNNpp`` that gives what the port's gives."""
    found = dict(tensors)
    for key, v in tensors.items():
        layer, _, name = key.rpartition(".")
        if name == "weight_v" and layer.startswith("upsize"):
            weight = torch._weight_norm(v, tensors[f"{layer}.weight_g"], 0).transpose(0, 1).contiguous()
            found |= {key: weight, f"{layer}.weight_g": weight.square().sum((1, 2, 3), keepdim=True).sqrt()}
        elif key.startswith("down_layers") and "ul_stream" in key and key.endswith("nin_skip.weight_v"):
            found[key] = v.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1, 2)
    return found
