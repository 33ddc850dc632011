"""State dicts of the PixelSNAIL that is trained on VQ-VAE-2 codes, https://github.com/rosinality/vq-vae-2-pytorch.

A key there is one of ``PixelSNAIL`` with ``conv`` once or twice before its last part, and with
other names for a few: ``horizontal.conv.conv.bias`` is ``above.bias``, ``vertical`` is ``left``,
and ``cond_resnet.blocks`` is ``cond_resnet``. Tensors are the same, except that
- ``causal_attention`` has linear layers there, and 1x1 convolutions here;
- ``background``, the coordinates of a map of one size, is not needed.
A prior there that ``PixelSNAIL`` describes has channel = n_res_channel, and as a bottom prior
cond_res_channel = channel and cond_res_kernel = 3; these are what is trained by default.
Until 2 July 2020 its ELUs were in place, so that residuals added the ELU of what they were given:
files from then have the same keys, and give other logits here.
Taps that are not causal are zeroed in its weights at each call, and left out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelcnn_fast.models import pixelcnnpp_port
from pixelcnn_fast.models.pixelsnail import PixelSNAIL

FAMILY = PixelSNAIL
NAMES = {"horizontal.": "above.", "vertical.": "left.", "cond_resnet.blocks.": "cond_resnet."}
DROPPED = "background"
HEADS = 8  # there, whatever the size


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its tensors by the keys of ``PixelSNAIL``, in its shapes."""
    found = {}
    for key, value in pixelcnnpp_port.renamed(tensors).items():
        start = next((name for name in NAMES if key.startswith(name)), "")
        found[NAMES.get(start, "") + key.removeprefix(start)] = value
    found.pop(DROPPED, None)
    return found


def config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What builds the ``PixelSNAIL`` that renamed tensors fit, if there is one. Raises KeyError for what is missing."""

    def count(of: str) -> int:
        """Parts 0, 1, ... of a list."""
        return len({key[len(of) :].split(".")[0] for key in tensors if key.startswith(of)})

    of_condition = tensors.get("cond_resnet.0.weight_v")
    return {
        "levels": tensors["above.weight_v"].shape[1],
        "channels": tensors["above.bias"].shape[0],
        "kernel_size": tensors["blocks.0.resblocks.0.conv1.weight_v"].shape[3],
        "n_blocks": count("blocks."),
        "n_res_blocks": count("blocks.0.resblocks."),
        "n_heads": HEADS,
        "attention": any(key.startswith("blocks.0.causal_attention.") for key in tensors),
        "n_out_res_blocks": count("out.") - 1,
        "condition_levels": None if of_condition is None else of_condition.shape[1],
        "n_cond_res_blocks": 3 if of_condition is None else count("cond_resnet.") - 1,
    }


def rearranged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renamed tensors that fit -> those of a ``PixelSNAIL`` that gives the same logits."""
    return dict(tensors)
